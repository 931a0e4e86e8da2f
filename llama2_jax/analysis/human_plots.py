"""Pictures of people's evaluation: wins and losses (Figures 1, 12, 30, 31), violations (3, 17 to 19)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama2_jax.analysis import figures
from llama2_jax.analysis.figures import Range
from llama2_jax.analysis.share_bars import Share, broken, grouped_bars, is_crowded, with_errors

WIN, TIE, LOSS = "tab:blue", "lightgray", "tab:orange"

Outcomes = Any
"""Shares ``win``, ``tie`` and ``loss``: evals/human.py."""

Panel = Mapping[str, Mapping[str, Share]]
"""Group to model to share; a group may lack models."""


def plot_outcomes(path: Path, panels: Mapping[str, Mapping[str, Outcomes]], *, title: str) -> None:
    """A bar of wins, ties and losses per line, with the interval of the wins (Figures 1, 12, 30 and 31).

    Args:
      panels: title of each panel, which may be empty, to the name of each line to its outcomes.
    """
    heights = [1.2 + 0.42 * len(bars) for bars in panels.values()]
    figure, rows = figures.subplots(
        len(panels), figsize=(8, 0.6 + sum(heights)), squeeze=False, sharex=True, height_ratios=heights
    )
    for axes, (name, bars) in zip(rows[:, 0], panels.items(), strict=True):
        _draw_outcomes(axes, bars)
        axes.set(title=name, xlim=(0, 100))
    rows[-1, 0].set_xlabel("% of the outcomes; line: 95 % interval of the wins")
    figure.suptitle(title)
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figures.save(figure, path)


def _draw_outcomes(axes: Any, bars: Mapping[str, Outcomes]) -> None:
    places = list(range(len(bars)))[::-1]
    ends = [0.0] * len(bars)
    for name, colour in (("win", WIN), ("tie", TIE), ("loss", LOSS)):
        shares = [getattr(one, name) for one in bars.values()]
        widths = [100 * share.value for share in shares]
        axes.barh(places, widths, 0.75, left=ends, color=colour, label=name)
        for place, end, width in zip(places, ends, widths, strict=True):
            if width >= 4:  # narrower than its number
                axes.text(end + width / 2, place, f"{width:.1f}", ha="center", va="center", fontsize=8)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    wins, errors = with_errors([one.win for one in bars.values()])
    lower = [place - 0.24 for place in places]  # below the number
    axes.errorbar(wins, lower, xerr=errors, fmt="none", color="black", linewidth=1, capsize=2)
    axes.set_yticks(places, [f"{name} (n = {one.win.size:,})" for name, one in bars.items()])
    axes.spines[["right", "top"]].set_visible(False)


def plot_panels(
    path: Path, panels: Mapping[str, Panel], models: Sequence[str], *, ylabel: str, title: str
) -> None:
    """Shares of all models by group, a panel per way of grouping (Figures 3, 17 to 19)."""
    figure, rows = figures.subplots(len(panels), figsize=(8, 0.6 + 2.8 * len(panels)), squeeze=False)
    for axes, (name, panel) in zip(rows[:, 0], panels.items(), strict=True):
        series = {model: _series(panel, model) for model in models}
        grouped_bars(axes, list(panel), series)
        room = 1.4 if is_crowded(list(panel), series) else 1.25  # for the numbers of cases
        highest = 100 * max(share.high for own in panel.values() for share in own.values())
        axes.set(title=name, ylabel=ylabel, ylim=(0, room * highest))
        axes.grid(axis="y", alpha=0.3)
    handles = rows[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(4, len(handles[0])))
    figure.suptitle(title)
    figures.save(figure, path)


def plot_mean_ratings(path: Path, means: Mapping[str, Range], *, scale: Sequence[int], title: str) -> None:
    """The mean rating of each model, with its interval (Figure 17b)."""
    figure, axes = figures.subplots(figsize=(max(4, 1.2 * len(means)), 4))
    values, errors = figures.error_bars(list(means.values()))
    axes.errorbar(range(len(means)), values, yerr=errors, fmt="o", color=WIN, capsize=3)
    axes.set_xticks(range(len(means)), [broken(name) for name in means])
    axes.set(title=title, ylabel="mean rating", ylim=(scale[0], scale[-1]))
    axes.margins(x=0.2)
    axes.grid(axis="y", alpha=0.3)
    figures.save(figure, path)


def _series(panel: Panel, model: str) -> dict[str, Share]:
    return {group: own[model] for group, own in panel.items() if model in own}
