"""Rewards and win rates as pictures: Figures 7, 8, 11, 20 and 26, and the curves of a PPO run.

Rewards are drawn as the paper displays them: the sigmoid of the raw score, between 0 and 1 (RM-11).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from llama2_jax.analysis import figures
from llama2_jax.analysis.figures import Range
from llama2_jax.losses.preference import displayed

PPO_PANELS = (
    ("combined score", ("ppo/score", "eval/reward")),
    ("scores of the reward models", ("ppo/score_helpfulness", "ppo/score_safety", "ppo/score_guard")),
    ("KL to the reference (nats per answer)", ("ppo/kl_per_answer",)),
    ("entropy (nats per token)", ("ppo/entropy",)),
    ("answers that ended; ratios clipped", ("ppo/stopped_fraction", "ppo/clip_fraction")),
    ("explained variance of the value model", ("ppo/explained_variance",)),
)
"""Panel by panel: title, and the metrics that are its curves."""


class VersionPoint(NamedTuple):
    """One version of the model in Figure 11: win rates in [0, 1]."""

    name: str
    helpfulness: Range
    harmlessness: Range


def plot_best_of_n(path: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Figure 7: expected maximum and median reward of N samples, the gain between; a logarithmic axis."""
    figure, axes = figures.subplots(figsize=(6, 4))
    n = np.arange(1, len(curves["max"]) + 1)
    marker = "o" if len(n) < 40 else None
    axes.plot(n, curves["max"], color="tab:blue", marker=marker, markersize=4, label="maximum of N")
    axes.plot(n, curves["median"], color="tab:orange", marker=marker, markersize=4, label="median of N")
    axes.fill_between(n, curves["median"], curves["max"], color="tab:blue", alpha=0.08, linewidth=0)
    gain = curves["max"][-1] - curves["median"][-1]
    axes.annotate(
        f"gain {gain:+.3f}", (n[-1], (curves["max"][-1] + curves["median"][-1]) / 2), ha="right", va="center"
    )
    axes.set(title="Reward of N samples per prompt", xlabel="N", ylabel="mean reward over prompts")
    _logarithmic(axes, len(n))
    figures.finish(figure, axes, path, loc="upper left")


def plot_temperatures(path: Path, curves: Mapping[float, Sequence[float]], *, chosen: float) -> None:
    """Figure 8: expected maximum reward of N samples for each temperature, N on a logarithmic axis."""
    figure, axes = figures.subplots(figsize=(6, 4))
    colours = figures.viridis(np.linspace(0, 0.92, len(curves)))
    for colour, (temperature, curve) in zip(colours, sorted(curves.items()), strict=True):
        width, label = (
            (2.8, f"{temperature:g} (chosen)") if temperature == chosen else (1.3, f"{temperature:g}")
        )
        axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=width, label=label)
    axes.set(
        title="Maximum reward of N samples by temperature", xlabel="N", ylabel="mean reward over prompts"
    )
    _logarithmic(axes, max(len(curve) for curve in curves.values()))
    figures.finish(figure, axes, path, loc="lower right", title="temperature")


def _logarithmic(axes: Any, longest: int) -> None:
    """An axis of numbers of samples, from 1 to ``longest``, with a tick for every doubling."""
    ticks = [2**power for power in range(longest.bit_length())]
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()


def plot_rounds(path: Path, rounds: Mapping[int, Mapping[str, float]]) -> None:
    """Figure 26: maximum and median score of ``num_samples`` samples of each round, by one reward model."""
    figure, axes = figures.subplots(figsize=(6, 4))
    numbers = sorted(rounds)
    for name, colour in (("max", "tab:blue"), ("median", "tab:orange")):
        label = f"{name} of {rounds[numbers[0]]['num_samples']:.0f}"
        axes.plot(numbers, [rounds[number][name] for number in numbers], "o-", color=colour, label=label)
    axes.set(title="Samples of each round, prompts for helpfulness", xlabel="round")
    axes.set(ylabel="helpfulness score, mean over prompts")
    axes.set_xticks(numbers)
    figures.finish(figure, axes, path, loc="best")


def plot_win_rates(path: Path, panels: Mapping[str, Sequence[VersionPoint]], *, reference: str) -> None:
    """Figure 11: helpfulness and harmlessness win rate of each version, one panel per judge."""
    figure, grid = figures.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 5), squeeze=False, sharey=True
    )
    for axes, (judge, points) in zip(grid[0], panels.items(), strict=True):
        axes.axhline(50, color="gray", linestyle=":", linewidth=1)
        axes.axvline(50, color="gray", linestyle=":", linewidth=1)
        middles = np.array([(point.helpfulness[0], point.harmlessness[0]) for point in points]) * 100
        axes.plot(middles[:, 0], middles[:, 1], "-", color="lightgray", zorder=1)
        for colour, point in zip(_colours(len(points)), points, strict=True):
            (x, xerr), (y, yerr) = (figures.error_bars([side], scale=100) for side in point[1:])
            axes.errorbar(
                x, y, xerr=xerr, yerr=yerr, fmt="o", color=colour, elinewidth=1, capsize=2, label=point.name
            )
        axes.set(title=f"judged by {judge}", xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
        axes.set_xlabel(fill(f"helpfulness: % won against {reference}, ties as halves", 54))
        axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel(fill(f"harmlessness: % won against {reference}, ties as halves", 54))
    grid[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figures.save(figure, path)


def plot_distributions(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Figure 20: the distribution of rewards, one ridge per version, one panel per reward model.

    All ridges are equally high: beside a version whose rewards are nearly the same, a tail of low ones, which
    the figure is about, could not be seen.
    """
    versions = list(next(iter(panels.values())))
    figure, grid = figures.subplots(
        1, len(panels), figsize=(5 * len(panels), 1.2 + 0.75 * len(versions)), squeeze=False
    )
    at = np.linspace(0, 1, 256)
    for axes, (title, scores) in zip(grid[0], panels.items(), strict=True):
        for row, (name, colour) in enumerate(zip(versions, _colours(len(versions)), strict=True)):
            base, density = len(versions) - 1 - row, _density(displayed(scores[name]), at)
            density *= 0.95 / density.max()  # of the space between two rows
            axes.fill_between(at, base, base + density, color=colour, alpha=0.75)
            axes.plot(at, base + density, color="white", linewidth=1)
            mean = displayed(scores[name]).mean()
            axes.plot([mean, mean], [base, base + 0.35], color="black", linewidth=1.2)
        axes.set_yticks(range(len(versions))[::-1], labels=versions)
        axes.tick_params(axis="y", length=0)
        axes.set(title=title, xlabel="reward (bar: mean)", xlim=(0, 1), ylim=(-0.1, len(versions)))
        axes.spines[["left", "right", "top"]].set_visible(False)
    figures.save(figure, path)


def plot_ppo(path: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """Write a PNG with a panel for each group of curves over the iterations."""
    figure, grid = figures.subplots(3, 2, figsize=(10, 9), sharex=True)
    for axes, (title, names) in zip(grid.flat, PPO_PANELS, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in metrics if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if "eval" in name else "")
        axes.set_title(title, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    figures.finish(figure, grid, path, fontsize=8)


def _density(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Gaussian kernel density on [0, 1], mirrored at the ends so that none of it is lost beyond them."""
    width = float(np.clip(0.9 * values.std() * len(values) ** -0.2, 0.02, 0.15))
    mirrored = np.concatenate([values, -values, 2 - values])
    kernel = np.exp(-0.5 * ((at[:, None] - mirrored) / width) ** 2)
    return kernel.sum(axis=1) / (len(values) * width * math.sqrt(2 * math.pi))


def _colours(count: int) -> Any:
    return figures.viridis(np.linspace(0.05, 0.9, count))
