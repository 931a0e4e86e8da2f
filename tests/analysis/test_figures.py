import subprocess
import sys

import pytest
from matplotlib.image import imread

from llama2_jax.analysis import figures


def test_pyplot_is_left_to_the_user():
    code = "import sys, llama2_jax.analysis.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_error_bars_are_lengths_from_the_value():
    values, errors = figures.error_bars([(0.5, 0.25, 0.75), (1.0, 0.875, 1.0)], scale=100)
    assert values.tolist() == [50, 100]
    assert errors.tolist() == [[25, 12.5], [25, 0]]
    assert figures.error_bars([(0.3, 0.3 + 1e-16, 0.3 - 1e-16)])[1].min() == 0  # matplotlib refuses others


def test_every_panel_is_finished(tmp_path):
    figure, grid = figures.subplots(2, 2)
    for axes in grid.flat:
        axes.plot([1, 2], label="a")
    figures.finish(figure, grid, tmp_path / "a.png", grid="y", loc="upper left")
    assert all(axes.get_legend() for axes in grid.flat)
    assert imread(tmp_path / "a.png").shape[2] == 4


def test_a_dollar_in_a_label_is_no_formula(tmp_path):
    figure, axes = figures.subplots()
    axes.bar(["$x^{$"], [1], label="$y_{$")
    axes.set_title("$z^$")
    axes.legend()
    figures.save(figure, tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[2] == 4


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((2e-5, 1), [1e-4, 1e-3, 0.01, 0.1, 1]), ((0.44, 0.53), [0.44, 0.46, 0.48, 0.5, 0.52])],
)
def test_labels_of_powers_are_plain_numbers(limits, expected):
    figure, axes = figures.subplots()
    axes.set(yscale="log", ylim=limits)
    figures.label_powers(axes.yaxis)
    figure.canvas.draw()
    labels = [one.get_text() for one in axes.get_yticklabels() + axes.get_yticklabels(minor=True)]
    numbers = [float(label) for label in labels if label]
    assert [one for one in numbers if limits[0] <= one <= limits[1]] == expected
