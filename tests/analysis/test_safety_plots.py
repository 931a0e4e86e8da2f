from pathlib import Path

import pytest

from llama2_jax.analysis import figures
from llama2_jax.analysis.safety_plots import Curve, plot_by_share, plot_score_change


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """Figures as they were when they were saved."""
    kept: list = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    return kept


def test_change_counts_what_is_higher_and_lower(drawn: list, tmp_path: Path) -> None:
    panels = {"safety": ([-1.0, 0.0, 2.0, 1.0], [1.0, 0.5, 1.0, 1.0]), "helpfulness": ([0.0], [-1.0])}
    plot_score_change(tmp_path / "14.png", panels, before="0%", after="100%")
    titles = [part._suptitle.get_text() for part in drawn[0].subfigs]
    assert titles == ["safety (n = 4): 2 higher, 1 lower", "helpfulness (n = 1): 0 higher, 1 lower"]


def test_curves_have_their_intervals_and_the_papers_values_where_there_are_any(
    drawn: list, tmp_path: Path
) -> None:
    values = [(0.5, 0.4, 0.7), (0.6, 0.6, 0.6), (0.8, 0.7, 0.9)]
    panels = {
        "reward": {"safety": Curve(values, [None, 0.75, 0.85]), "helpfulness": Curve(values, [None] * 3)}
    }
    plot_by_share(tmp_path / "15.png", [0, 25, 100], panels, label="%", scale=100)
    (axes,) = drawn[0].axes
    assert axes.get_legend_handles_labels()[1] == ["safety, the paper", "safety", "helpfulness"]
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points["safety, the paper"] == [[25, 75], [100, 85]]
    bars = [segment.tolist() for segment in axes.containers[0].lines[2][0].get_segments()]
    assert bars[0] == [pytest.approx([0, 40]), pytest.approx([0, 70])]
    # as in the paper the axis is linear: 10 points over 25 %, then 20 over 75 %, a curve that flattens
    (left, middle, right) = axes.containers[0].lines[0].get_xydata().tolist()
    assert [left, middle, right] == [pytest.approx(one) for one in ([0, 50], [25, 60], [100, 80])]
    assert axes.get_xscale() == "linear"


def test_beside_a_single_curve_the_papers_values_are_just_the_papers(drawn: list, tmp_path: Path) -> None:
    panels = {"refusals": {"here": Curve([(0.1, 0.0, 0.3)], [0.15])}}
    plot_by_share(tmp_path / "33.png", [0], panels, label="%", scale=100)
    (axes,) = drawn[0].axes
    assert axes.get_legend_handles_labels()[1] == ["the paper", "here"]


def test_pictures_are_files(tmp_path: Path) -> None:
    plot_by_share(tmp_path / "a.png", [0], {"t": {"c": Curve([(0.1, 0.0, 0.3)], [None])}}, label="y")
    plot_score_change(tmp_path / "b.png", {"t": ([0.0], [1.0])}, before="x", after="y")
    for name in "ab":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
