"""Self-BLEU against temperature as a picture (Figure 21)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llama2_jax.analysis import figures


def plot_self_bleu(
    path: Path, panels: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]]
) -> None:
    """Write a PNG with a panel per group of prompts and a line per version, its deviation as a band.

    Args:
      panels: group -> version -> temperature -> mean and standard deviation over prompts, from 0 to 100.
    """
    figure, grid = figures.subplots(
        1, len(panels), figsize=(4.8 * len(panels), 4), sharey=True, squeeze=False
    )
    for axes, (group, versions) in zip(grid[0], panels.items(), strict=True):
        colours = figures.viridis(np.linspace(0, 0.85, len(versions)))
        for colour, (name, by_temperature) in zip(colours, versions.items(), strict=True):
            temperatures = list(by_temperature)
            mean_T, deviation_T = np.array(list(by_temperature.values())).T
            axes.plot(temperatures, mean_T, "o-", color=colour, markersize=3, label=name.replace("_", " "))
            low_T, high_T = np.clip([mean_T - deviation_T, mean_T + deviation_T], 0, 100)
            axes.fill_between(temperatures, low_T, high_T, color=colour, alpha=0.12, linewidth=0)
        axes.set(title=group.replace("_", " "), xlabel="temperature")
        axes.grid(alpha=0.3)
    grid[0, 0].set(ylabel="Self-BLEU (lower: more diverse)")
    grid[0, 0].legend(fontsize=8)
    figures.save(figure, path)
