"""Pictures of safety tuning: scores before and after, measures by share of data (Figures 14, 15 and 33)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama2_jax.analysis import figures
from llama2_jax.analysis.figures import Range
from llama2_jax.losses.preference import displayed

COLOURS = ("tab:blue", "tab:orange", "tab:green")
BINS = np.linspace(0, 1, 31)


class Curve(NamedTuple):
    """One measure at every share of the data, and where the paper gives it, its values."""

    values: Sequence[Range]
    paper: Sequence[float | None]


def plot_by_share(
    path: Path,
    percents: Sequence[float],
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    label: str,
    scale: float = 1.0,
) -> None:
    """Write a PNG with a panel of curves over the share of the safety data (Figures 15 left and 33).

    Args:
      percents: the shares.
      panels: title -> name of each curve to the curve; the paper's values are drawn hollow.
      label: of the vertical axis; values are multiplied by ``scale``.
    """
    figure, grid = figures.subplots(1, len(panels), figsize=(5.2 * len(panels), 4), squeeze=False)
    for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
        for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
            value, errors = figures.error_bars(curve.values, scale=scale)
            axes.errorbar(percents, value, errors, fmt="o-", color=colour, capsize=3, label=name)
            pairs = zip(percents, curve.paper, strict=True)
            known = [(percent, scale * paper) for percent, paper in pairs if paper is not None]
            if known:
                axes.plot(
                    *zip(*known, strict=True),
                    "s--",
                    color=colour,
                    mfc="none",
                    alpha=0.5,
                    label="the paper" if len(curves) == 1 else f"{name}, the paper",
                )
        axes.set(title=title, xlabel="share of the safety data (%)", ylabel=label)
        axes.set_ylim(bottom=0)
    figures.finish(figure, grid, path, fontsize=8)


def plot_score_change(
    path: Path, panels: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, before: str, after: str
) -> None:
    """Write a PNG of the score of each prompt's answer by two versions, and both distributions (SAFE-6).

    Args:
      panels: title -> raw scores of ``before`` and of ``after``, of the same prompts.
    """
    figure = figures.figure(figsize=(5.5 * len(panels), 5.2))
    for part, (title, scores) in zip(
        figure.subfigures(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        x, y = map(displayed, scores)
        grid = part.subplots(
            2, 2, sharex="col", sharey="row", gridspec_kw={"width_ratios": (5, 1), "height_ratios": (1, 5)}
        )
        (above, corner), (middle, right) = grid
        corner.axis("off")
        above.hist(x, BINS, color=COLOURS[0], alpha=0.6)
        right.hist(y, BINS, color=COLOURS[0], alpha=0.6, orientation="horizontal")
        middle.scatter(x, y, s=9, color=COLOURS[0], alpha=0.4)
        middle.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        middle.set(
            xlabel=f"score, {before}", ylabel=f"score, {after}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )
        middle.grid(alpha=0.3)
        part.suptitle(
            f"{title} (n = {len(x):,}): {(y > x).sum():,} higher, {(y < x).sum():,} lower", fontsize=10
        )
    figures.save(figure, path)
