import math

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.intervals import Interval, bootstrap_mean, trend_z, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_as_published(successes: int, total: int, low: float, high: float) -> None:
    """81 of 263: Newcombe 1998, table I; the others by hand with z = 1.959964."""
    interval = wilson(successes, total)
    assert interval.value == successes / total
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


def test_wilson_of_the_paper_is_between_1_and_2_percent() -> None:
    """Section 3.4.2: a share of .36 of 4,173 prompts has +-1.46 %."""
    interval = wilson(0.36 * 4173, 4173)
    assert (interval.high - interval.low) / 2 == pytest.approx(0.0146, abs=1e-4)


def test_wilson_covers_the_truth_19_times_of_20() -> None:
    drawn = np.random.default_rng(0).binomial(60, 0.2, size=2000)
    covered = [wilson(int(k), 60).low <= 0.2 <= wilson(int(k), 60).high for k in drawn]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_trend_as_published() -> None:
    """Agresti, Categorical Data Analysis: malformations by alcohol, z^2 = 1.83 if equally spaced."""
    malformed, births = [48, 38, 5, 1, 1], [17114, 14502, 793, 127, 38]
    assert trend_z(malformed, births) ** 2 == pytest.approx(1.83, abs=0.005)
    assert trend_z(malformed[::-1], births[::-1]) == pytest.approx(-trend_z(malformed, births))


def test_trend_is_a_normal_deviate_where_there_is_none() -> None:
    totals = [100, 150, 100, 60]
    drawn = np.random.default_rng(0).binomial(totals, 0.7, size=(4000, 4))
    found = np.array([trend_z(row, totals) for row in drawn])
    assert found.mean() == pytest.approx(0, abs=0.05)
    assert np.mean(np.abs(found) > 1.96) == pytest.approx(0.05, abs=0.012)


def test_nothing_is_said_of_cases_that_are_all_alike() -> None:
    assert trend_z([10, 20], [10, 20]) == trend_z([5], [9]) == trend_z([0, 5, 0], [0, 9, 0]) == 0


def test_bootstrap_is_as_wide_as_the_error_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_mean(values) == interval  # the same seed


def test_bootstrap_of_groups_of_one_is_the_normal_interval() -> None:
    values, groups = np.repeat([1.0, 0.0], [300, 100]), [str(i) for i in range(400)]
    _, low, high = bootstrap_mean(values, groups=groups)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)  # 0.0424
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)
    assert (low, high) == bootstrap_mean(values, groups=groups)[1:]


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert bootstrap_mean([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


def test_above_means_without_overlap() -> None:
    assert Interval(0.5, 0.4, 0.6).is_above(Interval(0.3, 0.2, 0.39))
    assert not Interval(0.5, 0.4, 0.6).is_above(Interval(0.3, 0.2, 0.4))


def test_nothing_has_no_share_and_no_mean() -> None:
    with pytest.raises(ConfigError, match="a share of nothing"):
        wilson(0, 0)
    with pytest.raises(ConfigError, match="3 successes of 2 cases"):
        wilson(3, 2)
    with pytest.raises(ConfigError, match="the mean of nothing"):
        bootstrap_mean([])
