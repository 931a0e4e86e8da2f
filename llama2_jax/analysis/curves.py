"""Loss curves as pictures: against tokens seen (Fig. 5), and by position in a document (A.2.1)."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.analysis import figures
from llama2_jax.analysis.figures import Range

WINDOW = 20  # updates; the loss of one follows what it is of, such as the source of its documents


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to ``window - 1`` values before it."""
    averages, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        averages.append(total / min(index + 1, window))
    return averages


def plot_loss(
    path: Path, metrics: Sequence[dict[str, Any]], *, title: str, reference: dict[str, float]
) -> None:
    """Write a PNG of loss (nats per token) against tokens seen.

    Args:
      metrics: lines of ``metrics.jsonl``.
      reference: name -> loss, drawn as dashed horizontal lines (the unigram entropy).
    """
    updates = [line for line in metrics if "train/loss" in line]
    tokens_at = {0: 0.0, **{line["step"]: line["train/tokens_seen"] for line in updates}}
    losses = [line["train/loss"] for line in updates]
    tokens = [line["train/tokens_seen"] / 1e6 for line in updates]
    figure, axes = figures.subplots(figsize=(7, 4))
    axes.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(
        tokens, moving_average(losses, WINDOW), color="tab:blue", label=f"train, mean of {WINDOW} updates"
    )
    evals = [
        (tokens_at[line["step"]] / 1e6, line["eval/heldout/loss"])
        for line in metrics
        if "eval/heldout/loss" in line
    ]
    if evals:
        axes.plot(*zip(*evals, strict=True), "o-", color="tab:orange", markersize=4, label="held out")
    for name, value in reference.items():
        axes.axhline(value, color="gray", linestyle="--", linewidth=1, label=f"{name} {value:.2f}")
    axes.set(title=title, xlabel="tokens seen (millions)", ylabel="loss (nats per token)")
    figures.finish(figure, axes, path)


def plot_by_position(
    path: Path,
    edges: Sequence[int],
    losses: Mapping[str, Sequence[Range]],
    differences: Mapping[str, Sequence[Range]],
    *,
    baseline: str,
) -> None:
    """Write a PNG of loss by position in a document, and of what differs from a baseline (A.2.1).

    Args:
      edges: ends of the stretches of positions, one more than values of a curve.
      losses: nats per token, with intervals, which are not drawn: they are of the documents, not of models.
      differences: from the baseline in the same tokens, with intervals.
    """
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    figure, (left, right) = figures.subplots(1, 2, figsize=(11, 4))
    for number, (name, values) in enumerate(losses.items()):
        left.plot(
            middles, [value for value, *_ in values], "o-", color=f"C{number}", markersize=4, label=name
        )
        if name in differences:
            value, errors = figures.error_bars(differences[name])
            # side by side, where bars would hide one another
            places = np.array(middles) + (number - len(losses) / 2) * (edges[1] - edges[0]) / 16
            right.errorbar(
                places, value, errors, fmt="o-", color=f"C{number}", markersize=4,
                capsize=3, label=name,
            )  # fmt: skip
    right.axhline(0, color="gray", linewidth=1)
    left.set(title="Loss by position", xlabel="tokens before", ylabel="loss (nats per token)")
    right.set(title=f"Difference from {baseline}", xlabel="tokens before", ylabel="nats per token")
    figures.finish(figure, (left, right), path, fontsize=8)
