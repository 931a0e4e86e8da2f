"""The door to matplotlib: figures are drawn without a screen and written as PNG."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

from llama2_jax.files import written_whole

plt.rcParams["text.parse_math"] = False  # labels are names from data, in which "$" begins no formula


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """A figure and its axes, as ``plt.subplots`` gives them, that make room for each other's labels."""
    return plt.subplots(rows, columns, layout="constrained", **options)


def figure(**options: Any) -> Any:
    """A figure without axes, laid out as those of ``subplots``."""
    return plt.figure(layout="constrained", **options)


def viridis(at: Any) -> Any:
    """Colours of the map viridis, RGBA, at places in [0, 1]."""
    return plt.get_cmap("viridis")(at)


def label_powers(axis: Any) -> None:
    """Label a logarithmic axis in plain numbers, where matplotlib would write formulas."""
    axis.set_major_formatter(_PlainNumbers())
    axis.set_minor_formatter(_PlainNumbers(labelOnlyBase=False))


class _PlainNumbers(LogFormatter):
    """Labels those ticks that matplotlib would."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def save(figure: Any, path: Path) -> None:
    """Write the figure to ``path`` and forget it."""
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
