"""The door to matplotlib: figures are drawn without a screen and written as PNG.

Without pyplot, whose windows, backend and list of open figures belong to whoever imports this: in a notebook
pictures of its own still appear. One setting is changed for the whole process: labels hold no formulas.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from llama2_jax.files import written_whole

Range = tuple[float, float, float]
"""Value, lower and upper end of its interval."""

matplotlib.rcParams["text.parse_math"] = False  # labels are names from data, in which "$" begins no formula


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float] | None = None, **options: Any
) -> Any:
    """A figure and its axes, as ``plt.subplots`` gives them, that make room for each other's labels."""
    own = figure(figsize=figsize)
    return own, own.subplots(rows, columns, **options)


def figure(**options: Any) -> Any:
    """A figure without axes, laid out as those of ``subplots``."""
    return Figure(layout="constrained", **options)


def viridis(at: Any) -> Any:
    """Colours of the map viridis, RGBA, at places in [0, 1]."""
    return matplotlib.colormaps["viridis"](at)


def label_powers(axis: Any) -> None:
    """Label a logarithmic axis in plain numbers, where matplotlib would write formulas."""
    axis.set_major_formatter(_PlainNumbers())
    axis.set_minor_formatter(_PlainNumbers(labelOnlyBase=False))


class _PlainNumbers(LogFormatter):
    """Labels those ticks that matplotlib would."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        if not super().__call__(x, pos):
            return ""
        return f"{x:,.0f}" if 1e3 <= x < 1e7 else f"{x:.3g}"


def error_bars(ranges: Sequence[Range], *, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,), and the lengths of their intervals downwards and upwards (2, N), times ``scale``."""
    value, low, high = scale * np.array(ranges, np.float64).reshape(-1, 3).T
    return value, np.maximum([value - low, high - value], 0)


def finish(figure: Any, axes: Any, path: Path, *, grid: str = "both", **legend: Any) -> None:
    """Give each of the axes, one or several, lines of a grid and a legend, then ``save``."""
    for own in np.ravel(axes):
        own.grid(axis=grid, alpha=0.3)
        if own.get_legend_handles_labels()[0]:  # a panel may have nothing to show
            own.legend(**legend)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write the figure to ``path``."""
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
