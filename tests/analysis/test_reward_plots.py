import itertools

import numpy as np
import pytest
from matplotlib.image import imread

from llama2_jax.analysis import reward_plots
from llama2_jax.evals.intervals import Share
from llama2_jax.evals.reward_accuracy import CalibrationBin


@pytest.fixture
def figures(monkeypatch):
    """Figures in the order they were saved; they are still written."""
    saved, save = [], reward_plots.figures.save

    def keep(figure, path):
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(reward_plots.figures, "save", keep)
    return saved


def test_histogram_holds_every_answer(tmp_path, figures):
    path = tmp_path / "scores.png"
    reward_plots.plot_scores(path, chosen_B=[0.9, 0.91, 1.0], rejected_B=[0.0, 0.1], title="T")
    (axes,) = figures[0].axes
    assert sum(patch.get_height() for patch in axes.patches[:40]) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "chosen, mean 0.94", "rejected, mean 0.05",
    ]  # fmt: skip
    assert imread(path).shape[2] == 4


def test_calibration_has_a_panel_per_model(tmp_path, figures):
    bins = [CalibrationBin(1, 0.2, 0.1, 5), CalibrationBin(4, 0.6, 0.2, 7)]
    levels = {"helpfulness": bins, "safety": bins[:1]}
    reward_plots.plot_calibration(tmp_path / "a.png", levels, title="T", human="median of 3")
    first, second = figures[0].axes
    assert first.lines[0].get_xydata().tolist() == [[1, 0.2], [4, 0.6]]
    band = first.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.1, 0.8))
    assert [text.get_text() for text in first.texts] == ["n=5", "n=7"]
    assert second.get_title() == "safety"


def test_accuracy_bars_stand_over_their_labels(tmp_path, figures):
    shares = {
        "none": {"better": Share(0.8, 10, 0.5, 0.9), "unsure": Share(0.5, 20, 0.3, 0.7)},
        "large": {"unsure": Share(0.6, 20, 0.4, 0.8)},
    }
    reward_plots.plot_accuracy(tmp_path / "a.png", shares, title="T")
    (axes,) = figures[0].axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    assert bars == [pytest.approx(bar) for bar in [(0, 80), (0.8, 50), (1.2, 60)]]
    assert [text.get_text() for text in axes.texts] == ["n = 10", "n = 20", "n = 20"]
    down, up = axes.collections[0].get_segments()[0][:, 1]
    assert (down, up) == pytest.approx((50, 90))


def test_labels_that_the_first_series_lacks_are_drawn(tmp_path, figures):
    share = Share(0.8, 10, 0.5, 0.9)
    reward_plots.plot_accuracy(
        tmp_path / "a.png", {"X": {"s1": share}, "Y": {"s1": share, "s2": share}}, title=""
    )
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["s1", "s2"]
    assert len(axes.patches) == 3


def test_many_models_have_room_for_their_names_and_numbers(tmp_path, figures):
    own = {label: Share(0.8, 1000, 0.7, 1.0) for label in ("s1", "s2")}
    names = ["SteamSHP-XL", "Open Assistant", "GPT4", "safety reward model", "helpfulness reward model"]
    reward_plots.plot_accuracy(tmp_path / "a.png", dict.fromkeys(names, own), title="T")
    figure, width = figures[0], figures[0].get_window_extent().width
    (axes,), (legend,) = figure.axes, figure.legends
    assert 0 < legend.get_window_extent().x0 < legend.get_window_extent().x1 < width
    numbers = [text.get_window_extent() for text in axes.texts]
    assert len(numbers) == 10
    assert not any(a.overlaps(b) for a, b in itertools.combinations(numbers, 2))
    assert max(box.y1 for box in numbers) < axes.get_window_extent().y1


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (6, {"168,309", "257,766", "394,771", "604,596", "925,944", "1,418,091"}),  # of the variant tiny
        (14, {"10,000", "100,000", "1,000,000"}),  # of Table 26
    ],
)
def test_amounts_under_their_axis_do_not_overlap(tmp_path, figures, count, named):
    amounts = np.geomspace(5561, 1_418_091, 14).astype(int)[-count:]
    points = [(amount, Share(0.6, 10, 0.5, 0.7)) for amount in amounts]
    reward_plots.plot_accuracy_by_data(tmp_path / "a.png", {"helpfulness": {"7b": points}}, title="T")
    (axes,) = figures[0].axes
    labels = [text for text in axes.get_xticklabels() if text.get_text()]
    boxes = sorted((text.get_window_extent() for text in labels), key=lambda box: box.x0)
    assert named <= {text.get_text() for text in labels}
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_accuracy_by_round(tmp_path, figures):
    share = Share(0.7, 10, 0.6, 0.75)
    shares = {"helpfulness": {"V1": share, "V2": share}, "safety": {"V2": share}}
    reward_plots.plot_accuracy_by_round(tmp_path / "a.png", shares, title="T")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["V1", "V2"]
    assert axes.containers[1].lines[0].get_xydata().tolist() == [[pytest.approx(1.03), 70]]
    down, up = axes.collections[0].get_segments()[0][:, 1]
    assert (down, up) == pytest.approx((60, 75))


def test_tension_separates_safe_from_unsafe(tmp_path, figures):
    scores = {"safety_B": [0.9, 0.1, 0.2], "helpfulness_B": [0.5, 0.8, 0.7]}
    reward_plots.plot_tension(tmp_path / "a.png", **scores, is_unsafe_B=[False, True, True], title="T")
    safe, unsafe = figures[0].axes
    assert safe.lines[0].get_xydata().tolist() == [[0.9, 0.5]]
    assert unsafe.lines[0].get_xydata().tolist() == [[0.1, 0.8], [0.2, 0.7]]
    reward_plots.plot_tension(tmp_path / "b.png", **scores, is_unsafe_B=[True] * 3, title="T")
    assert figures[1].axes[0].get_title() == "safe responses (n = 0)"


def test_density_is_highest_where_the_points_are():
    x, y, density = reward_plots._density(np.array([0.2, 0.2]), np.array([0.9, 0.9]))
    row, column = np.unravel_index(density.argmax(), density.shape)
    assert (x[column], y[row]) == pytest.approx((0.2, 0.9))
    # at one bandwidth's distance e^-0.5 of the peak
    away = np.interp(0.2 + reward_plots.BANDWIDTH, x, density[row])
    assert away / density.max() == pytest.approx(np.exp(-0.5), rel=0.01)
