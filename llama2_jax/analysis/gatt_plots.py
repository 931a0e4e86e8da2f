"""Pictures of Ghost Attention: accuracy by turn (Table 30), attention to the instruction (Figure 10)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llama2_jax.analysis import figures

COLOURS = ("tab:gray", "tab:blue", "tab:orange", "tab:green")


def plot_accuracy(
    path: Path,
    rows: Mapping[str, Sequence[tuple[int, float, float, float]]],
    *,
    beyond_context: Sequence[int],
    title: str,
) -> None:
    """Write a PNG of accuracy with its interval against the turn, one line per model.

    Args:
      rows: model -> (turn, accuracy, low, high), fractions.
      beyond_context: turns at which nothing could be asked, marked on the axis.
    """
    figure, axes = figures.subplots(figsize=(7, 4))
    turns = sorted({row[0] for several in rows.values() for row in several} | set(beyond_context))
    places = {turn: place for place, turn in enumerate(turns)}
    for number, (name, several) in enumerate(rows.items()):
        if not several:
            continue
        accuracy_T, errors = figures.error_bars([row[1:] for row in several], scale=100)
        # beside each other, so that neither interval hides the other
        place_T = np.array([places[row[0]] for row in several]) + 0.06 * (number - (len(rows) - 1) / 2)
        axes.errorbar(place_T, accuracy_T, yerr=errors, fmt="o-", capsize=4,
                      label=name.replace("_", " "), color=COLOURS[number % len(COLOURS)])  # fmt: skip
    for turn in beyond_context:
        axes.axvspan(places[turn] - 0.3, places[turn] + 0.3, color="lightgray", alpha=0.5, linewidth=0)
        axes.text(
            places[turn], 50, "beyond the context", rotation=90, ha="center", va="center", color="dimgray"
        )
    axes.set_xticks(range(len(turns)), [str(turn) for turn in turns])
    axes.set(title=title, xlabel="turn of the question", ylabel="right answers (%)", ylim=(-4, 104))
    axes.set_xlim(-0.5, len(turns) - 0.5)
    figures.finish(figure, axes, path)


def plot_attention(
    path: Path,
    maps: Mapping[str, np.ndarray],
    *,
    bin_size: int,
    instruction_bins: tuple[float, float],
    turn_bins: Sequence[float],
    title: str,
) -> None:
    """Write a PNG of triangular heat maps side by side, one per model.

    Args:
      maps: model -> largest attention of every bin of tokens on every earlier one.
      instruction_bins: where the instruction begins and ends, in bins.
      turn_bins: where each answer begins, in bins.
    """
    figure, axes = figures.subplots(
        1, len(maps), figsize=(1 + 4.4 * len(maps), 4.6), sharey=True, squeeze=False
    )
    for axis, (name, weights_TS) in zip(axes[0], maps.items(), strict=True):
        seen_TS = np.ma.masked_where(np.triu(np.ones_like(weights_TS, bool), 1), weights_TS)
        edges = np.arange(len(weights_TS) + 1)
        image = axis.pcolormesh(edges, edges, seen_TS, cmap="viridis", vmin=0, vmax=1)
        for edge in instruction_bins:
            axis.axvline(edge, color="tab:red", linewidth=1.2)
        for start in turn_bins:
            axis.axhline(start, color="tab:gray", linewidth=0.6, linestyle=":")
        axis.set(
            title=name.replace("_", " "), xlabel=f"attended to (bins of {bin_size} tokens)", aspect="equal"
        )
        axis.set_ylim(len(weights_TS), 0)  # the first token on top
    axes[0, 0].set_ylabel("from")
    axes[0, 0].annotate(
        "instruction",
        (instruction_bins[1], 0),
        xytext=(4, -4),
        textcoords="offset points",
        color="tab:red",
        va="top",
    )
    figure.colorbar(image, ax=axes[0].tolist(), label="largest attention over layers and heads", shrink=0.8)
    figure.suptitle(title)
    figures.save(figure, path)
