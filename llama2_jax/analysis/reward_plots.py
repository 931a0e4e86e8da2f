"""Pictures of a reward model: scores, calibration, accuracy (Figures 6, 27, 29 and 32).

Displayed scores are sigmoids of raw ones. A share is drawn with its 95 % interval.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.analysis import figures
from llama2_jax.analysis.share_bars import Share, grouped_bars, is_crowded, with_errors

NAMED_AMOUNTS = 6  # so many ticks have room for their numbers
BANDWIDTH = 0.06  # of the density behind the points of Figure 32

CHOSEN, REJECTED = "tab:blue", "tab:orange"
SAFE, UNSAFE = "tab:blue", "tab:red"


Level = Any
"""Displayed scores of one human score, ``human, mean, std, size``: ``CalibrationBin`` of the same."""


def plot_scores(path: Path, *, chosen_B: Any, rejected_B: Any, title: str) -> None:
    """Histogram of the displayed scores of chosen and rejected answers (Figure 27)."""
    figure, axes = figures.subplots(figsize=(7, 4))
    edges = np.linspace(0, 1, 41)
    for name, scores_B, colour in (("chosen", chosen_B, CHOSEN), ("rejected", rejected_B, REJECTED)):
        label = f"{name}, mean {np.mean(scores_B):.2f}"
        axes.hist(scores_B, edges, color=colour, alpha=0.25)
        axes.hist(scores_B, edges, color=colour, histtype="step", linewidth=1.5, label=label)
    axes.set(title=title, xlabel="displayed score", ylabel="answers", xlim=(0, 1))
    figures.finish(figure, axes, path)


def plot_calibration(path: Path, levels: Mapping[str, Sequence[Level]], *, title: str, human: str) -> None:
    """Mean displayed score per human score, with a band of one standard deviation (Figure 29).

    Args:
      levels: name of each reward model to its levels, ascending.
      human: what the human score is, for the axis.
    """
    figure, panels = figures.subplots(
        1, len(levels), figsize=(1 + 4.5 * len(levels), 4), sharey=True, squeeze=False
    )
    for axes, (name, own) in zip(panels[0], levels.items(), strict=True):
        at, mean, std = (np.array([getattr(level, key) for level in own]) for key in ("human", "mean", "std"))
        axes.fill_between(at, mean - std, mean + std, color=CHOSEN, alpha=0.2, linewidth=0, label="±1 SD")
        axes.plot(at, mean, "o-", color=CHOSEN, label="mean")
        for level in own:
            axes.annotate(
                f"n={level.size}", (level.human, level.mean), (0, 7), textcoords="offset points",
                ha="center", fontsize=7, color="dimgray",
            )  # fmt: skip
        axes.set(title=name, xlabel=human, ylim=(0, 1))
        axes.margins(x=0.08)
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("displayed score")
    panels[0, 0].legend()
    figure.suptitle(title)
    figures.save(figure, path)


def plot_accuracy(path: Path, shares: Mapping[str, Mapping[str, Share]], *, title: str) -> None:
    """Accuracy per label (rating, safety bin), side by side for each reward model (Table 8).

    Args:
      shares: name of each reward model to label to share; labels in the order in which they appear.
    """
    labels = list(dict.fromkeys(label for own in shares.values() for label in own))
    width = max(7, 1.1 * len(labels), 0.55 * min(16, len(labels) * len(shares)))
    figure, axes = figures.subplots(figsize=(width, 4.5))
    grouped_bars(axes, labels, shares)
    axes.axhline(50, color="gray", linestyle="--", linewidth=1, label="chance")
    highest = 130 if is_crowded(labels, shares) else 107  # with room for numbers of cases
    axes.set(title=title, ylabel="accuracy (%)", ylim=(0, highest), yticks=range(0, 101, 20))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, len(shares) + 1))
    figures.save(figure, path)


def plot_accuracy_by_round(path: Path, shares: Mapping[str, Mapping[str, Share]], *, title: str) -> None:
    """Accuracy of each reward model after each round of a recipe.

    Args:
      shares: name of each curve to round to share, rounds in order.
    """
    rounds = list(dict.fromkeys(name for own in shares.values() for name in own))
    figure, axes = figures.subplots(figsize=(7, 4))
    for number, (name, own) in enumerate(shares.items()):
        offset = 0.06 * (number - (len(shares) - 1) / 2)  # so that the intervals can be told apart
        places = [rounds.index(round_) + offset for round_ in own]
        axes.errorbar(places, *with_errors(list(own.values())), fmt="o-", capsize=3, markersize=4, label=name)
    axes.axhline(50, color="gray", linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(rounds)), rounds)
    axes.set(title=title, xlabel="round", ylabel="accuracy (%)")
    figures.finish(figure, axes, path)


def plot_accuracy_by_data(
    path: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[int, Share]]]], *, title: str
) -> None:
    """Accuracy against the number of pairs trained on, a line per model (Figure 6).

    Args:
      panels: title -> name of each model to its (pairs, share), pairs rising.
    """
    figure, grid = figures.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False)
    for axes, (name, models) in zip(grid[0], panels.items(), strict=True):
        for number, (model, points) in enumerate(models.items()):
            offset = 1.015 ** (number - (len(models) - 1) / 2)  # so that the intervals can be told apart
            places = [pairs * offset for pairs, _ in points]
            errors = with_errors([share for _, share in points])
            axes.errorbar(places, *errors, fmt="o-", capsize=3, markersize=4, label=model)
        axes.axhline(50, color="gray", linestyle="--", linewidth=1, label="chance")
        axes.set_xscale("log")
        amounts = [pairs for pairs, _ in next(iter(models.values()))]
        if len(amounts) <= NAMED_AMOUNTS:
            axes.set_xticks(amounts, [f"{pairs:,}" for pairs in amounts])
            axes.minorticks_off()
        else:
            figures.label_powers(axes.xaxis)
        axes.set(title=name, xlabel="comparisons of the own track", ylabel="accuracy (%)")
        axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(title)
    figures.save(figure, path)


def plot_tension(path: Path, *, safety_B: Any, helpfulness_B: Any, is_unsafe_B: Any, title: str) -> None:
    """Displayed safety against displayed helpfulness score of safe and of unsafe responses (Figure 32).

    Behind the points is their density, smoothed by a Gaussian of ``BANDWIDTH``.
    """
    safety_B, helpfulness_B = np.asarray(safety_B), np.asarray(helpfulness_B)
    is_unsafe_B = np.asarray(is_unsafe_B, bool)
    figure, panels = figures.subplots(1, 2, figsize=(9, 4.6), sharex=True, sharey=True)
    sides = (("safe", ~is_unsafe_B, SAFE, "Blues"), ("unsafe", is_unsafe_B, UNSAFE, "Reds"))
    for axes, (name, kept_B, colour, map_name) in zip(panels, sides, strict=True):
        x, y = safety_B[kept_B], helpfulness_B[kept_B]
        if len(x):
            axes.contourf(*_density(x, y), levels=8, cmap=map_name, alpha=0.7)
        axes.plot(x, y, ".", color=colour, markersize=3, alpha=0.6)
        axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        axes.set(title=f"{name} responses (n = {len(x):,})", xlabel="safety score", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("helpfulness score")
    figure.suptitle(title)
    figures.save(figure, path)


def _density(x_B: Any, y_B: Any) -> tuple[Any, Any, Any]:
    """A grid over the unit square and the relative density of the points there."""
    grid = np.linspace(0, 1, 61)
    near_xB = np.exp(-0.5 * ((grid[:, None] - x_B) / BANDWIDTH) ** 2)
    near_yB = np.exp(-0.5 * ((grid[:, None] - y_B) / BANDWIDTH) ** 2)
    return grid, grid, near_yB @ near_xB.T
