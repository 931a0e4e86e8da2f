"""Shares as bars, side by side, with their intervals and numbers of cases."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np

from llama2_jax.analysis import figures

Share = Any
"""A share in [0, 1] with ``value``, ``size`` and its interval ``low``, ``high``: evals/intervals.py."""


def grouped_bars(axes: Any, labels: Sequence[str], shares: Mapping[str, Mapping[str, Share]]) -> None:
    """Draw a bar per label, in percent, side by side for each series; above it the number of cases.

    Args:
      shares: name of each series to label to share; a series may lack labels.
    """
    width = 0.8 / len(shares)
    rotation = 90 if is_crowded(labels, shares) else 0
    series = {label: [name for name, own in shares.items() if label in own] for label in labels}
    for name, own in shares.items():
        places = [
            i + (series[label].index(name) - (len(series[label]) - 1) / 2) * width
            for i, label in enumerate(labels)
            if label in own
        ]
        values = [own[label] for label in labels if label in own]
        axes.bar(places, [100 * share.value for share in values], 0.9 * width, label=name, alpha=0.8)
        axes.errorbar(places, *with_errors(values), fmt="none", color="black", linewidth=1, capsize=3)
        for place, share in zip(places, values, strict=True):
            axes.annotate(
                f"n = {share.size:,}", (place, 100 * share.high), (0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=7, rotation=rotation,
            )  # fmt: skip
    axes.set_xticks(range(len(labels)), [broken(label) for label in labels])


def is_crowded(labels: Sequence[str], shares: Mapping[str, Mapping[str, Share]]) -> bool:
    """Whether numbers of cases stand upright, which takes room above the bars."""
    return len(labels) * len(shares) > 8


def broken(label: str) -> str:
    """A name in lines that fit under its tick."""
    return fill(label.replace("_", " "), 16)


def with_errors(shares: Sequence[Share]) -> tuple[np.ndarray, np.ndarray]:
    """Percentages, and the lengths of their intervals downwards and upwards."""
    return figures.error_bars([(share.value, share.low, share.high) for share in shares], scale=100)
