import pytest
from matplotlib.image import imread

from llama2_jax.analysis import human_plots
from llama2_jax.evals.human import Outcomes
from llama2_jax.evals.intervals import Interval, Share


@pytest.fixture
def figures(monkeypatch):
    """Figures in the order they were saved; they are still written."""
    saved, save = [], human_plots.figures.save

    def keep(figure, path):
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(human_plots.figures, "save", keep)
    return saved


def share(value: float) -> Share:
    return Share(value, 10, value - 0.1, value + 0.1)


def test_outcomes_fill_their_bar(tmp_path, figures):
    bars = {
        "a": Outcomes(*map(share, (0.5, 0.3, 0.2, 0.65))),
        "b": Outcomes(*map(share, (0.99, 0.01, 0.0, 1.0))),
    }
    human_plots.plot_outcomes(tmp_path / "1.png", {"": bars}, title="T")
    (axes,) = figures[0].axes
    spans = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert spans[::2] == [pytest.approx(one) for one in [(0, 50), (50, 30), (80, 20)]]
    assert [text.get_text() for text in axes.texts] == ["50.0", "99.0", "30.0", "20.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (n = 10)", "b (n = 10)"]
    assert imread(tmp_path / "1.png").shape[2] == 4


def test_a_panel_keeps_its_groups_where_the_first_model_lacks_one(tmp_path, figures):
    panel = {"1": {"b": share(0.2)}, "2": {"a": share(0.5), "b": share(0.3)}}
    human_plots.plot_panels(tmp_path / "2.png", {"turns": panel}, ["a", "b"], ylabel="%", title="T")
    (axes,) = figures[0].axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    assert bars == [pytest.approx(one) for one in [(0.8, 50), (0, 20), (1.2, 30)]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    assert axes.get_ylim() == pytest.approx((0, 75))


def test_mean_ratings(tmp_path, figures):
    means = {"a": Interval(4.5, 4.4, 4.6), "b": Interval(3, 2.5, 3.25)}
    human_plots.plot_mean_ratings(tmp_path / "3.png", means, scale=range(1, 6), title="T")
    (axes,) = figures[0].axes
    assert axes.get_ylim() == (1, 5)
    down, up = axes.collections[0].get_segments()[1][:, 1]
    assert (down, up) == pytest.approx((2.5, 3.25))
