"""Pictures of safety context distillation (Llama 2, Figure 16)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llama2_jax.analysis import figures

COLOURS = ("tab:gray", "tab:blue", "tab:orange")
BINS = 25


def plot_scores(path: Path, scores: Mapping[str, Sequence[float]]) -> None:
    """Write a PNG of the distribution of safety scores by how the answer was sampled (Figure 16a).

    Args:
      scores: how -> scores in [0, 1], one per prompt.
    """
    figure, (above, below) = figures.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(1, 2))
    boxes = above.boxplot(
        list(scores.values())[::-1], orientation="horizontal", widths=0.6, patch_artist=True,
        medianprops={"color": "black"}, flierprops={"markersize": 3, "alpha": 0.4},
    )  # fmt: skip
    above.set_yticks(range(1, len(scores) + 1), list(scores)[::-1])
    for box, colour in zip(boxes["boxes"], COLOURS[: len(scores)][::-1], strict=True):
        box.set(facecolor=colour, alpha=0.5)
    for (name, values), colour in zip(scores.items(), COLOURS, strict=False):
        label = f"{name}: median {np.median(values):.2f}"
        below.hist(values, bins=BINS, range=(0, 1), histtype="stepfilled", alpha=0.25, color=colour)
        below.hist(values, bins=BINS, range=(0, 1), histtype="step", color=colour, label=label)
    below.set(xlabel="safety score", ylabel="answers", xlim=(0, 1))
    below.legend()
    above.grid(alpha=0.3, axis="x")
    below.grid(alpha=0.3)
    figure.suptitle("Safety score of answers to adversarial prompts")
    figures.save(figure, path)


def plot_increase(path: Path, groups: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Write a PNG of the change of the score against the original score (Figure 16b).

    Args:
      groups: what became of answers -> original score and increase of each.
    """
    figure, axes = figures.subplots(figsize=(7, 4))
    for (name, points), colour, marker in zip(
        groups.items(), ("tab:blue", "tab:gray", "tab:red"), "o.x", strict=True
    ):
        before, change = np.array(points, np.float64).reshape(-1, 2).T
        axes.scatter(before, change, s=14, alpha=0.5, color=colour, marker=marker,
                     label=f"{name}: {len(points):,}")  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        title="What the preprompts change", xlabel="safety score of the original answer",
        ylabel="increase of the score", xlim=(-0.02, 1.02), ylim=(-1.05, 1.05),
    )  # fmt: skip
    figures.finish(figure, axes, path)
