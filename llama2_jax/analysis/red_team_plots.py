"""Robustness to red teaming by version, as a picture (Llama 2, 4.3)."""

from collections.abc import Mapping
from pathlib import Path

from llama2_jax.analysis import figures
from llama2_jax.analysis.figures import Range
from llama2_jax.analysis.share_bars import broken

SERIES = (("all prompts / all hours", "tab:blue", -0.06), ("mean of the people's rates", "tab:orange", 0.06))


def plot_gamma(path: Path, rates: Mapping[str, tuple[Range, Range]]) -> None:
    """Write a PNG of violating prompts per person-hour, both ways of averaging beside each other."""
    figure, axes = figures.subplots(figsize=(max(4.5, 1.3 * len(rates)), 4))
    for number, (label, colour, shift) in enumerate(SERIES):
        places = [place + shift for place in range(len(rates))]
        values, errors = figures.error_bars([both[number] for both in rates.values()])
        axes.errorbar(places, values, yerr=errors, fmt="o-", color=colour, capsize=3, label=label)
    axes.set_xticks(range(len(rates)), [broken(name) for name in rates])
    axes.set(title="Robustness: the lower, the better", ylabel="violating prompts per person-hour")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.2)
    figures.finish(figure, axes, path, grid="y", fontsize=8)
