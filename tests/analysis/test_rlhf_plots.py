from pathlib import Path

import numpy as np
import pytest

from llama2_jax.analysis import figures
from llama2_jax.analysis.rlhf_plots import (
    PPO_PANELS,
    VersionPoint,
    _density,
    plot_best_of_n,
    plot_distributions,
    plot_ppo,
    plot_rounds,
    plot_temperatures,
    plot_win_rates,
)


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [1.0, 1.0, 1.0], np.linspace(0, 1, 50)])
def test_density_has_mass_one_even_at_the_ends(values: list[float]) -> None:
    at = np.linspace(0, 1, 2001)
    assert np.trapezoid(_density(np.array(values), at), at) == pytest.approx(1.0, abs=1e-3)


def test_numbers_of_samples_are_on_a_logarithmic_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in Figures 7 and 8: what the maximum gains by each doubling is seen from its slope."""
    drawn: list = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    plot_best_of_n(tmp_path / "7.png", {"max": [0.5] * 24, "median": [0.5] * 24})
    plot_temperatures(tmp_path / "8.png", {1.0: [0.5] * 24}, chosen=1.0)
    for figure in drawn:
        (axes,) = figure.axes
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8", "16"]


def test_a_tail_of_low_rewards_is_seen_beside_rewards_that_are_nearly_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Figure 20: that the worst answers are removed is seen only if they could be seen before."""
    drawn: list = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    half_low = [-3.0] * 50 + [5.0] * 50  # displayed 0.05 and 0.99
    plot_distributions(tmp_path / "20.png", {"safety": {"sft": half_low, "v1": [5.0] * 100}})
    (axes,) = drawn[0].axes
    (at, sft), (_, v1) = (line.get_data() for line in axes.lines[::2])  # between them the bars of the means
    assert (sft.max(), v1.max()) == pytest.approx((1.95, 0.95))  # the upper and the lower row
    assert sft[at < 0.1].min() > 1.5  # as many answers as at the other end


def test_every_picture_is_drawn_also_of_one_thing(tmp_path: Path) -> None:
    interval = (0.5, 0.5, 0.5)
    plot_best_of_n(tmp_path / "7.png", {"max": [0.5], "median": [0.5]})
    plot_temperatures(tmp_path / "8.png", {1.0: [0.5]}, chosen=1.0)
    plot_rounds(tmp_path / "26.png", {1: {"max": 0.6, "median": 0.5, "num_samples": 4}})
    plot_win_rates(tmp_path / "11.png", {"truth": [VersionPoint("sft", interval, interval)]}, reference="sft")
    plot_distributions(tmp_path / "20.png", {"safety": {"sft": [0.3]}})
    plot_ppo(tmp_path / "ppo.png", [{"step": 1, **{name: 0.5 for _, names in PPO_PANELS for name in names}}])
    for name in ("7", "8", "26", "11", "20", "ppo"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
