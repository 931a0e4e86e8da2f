import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.intervals import (
    Interval,
    Share,
    bracketed,
    clustered_mean,
    clustered_share,
    mean_of_groups,
    mean_rate,
    pooled_rate,
    share_of,
    trend_z,
    unit_mean,
    wilson,
)


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


def test_repeated_prompts_are_fewer_observations() -> None:
    values_B = np.repeat([1.0, 0.0], 50)
    alone = share_of(values_B, [str(i) for i in range(100)])
    assert alone == share_of(values_B)
    assert (alone.value, alone.low, alone.high) == wilson(50, 100)
    # two prompts of 50 equal answers each are two observations, not a hundred
    clustered = share_of(values_B, ["a"] * 50 + ["b"] * 50)
    assert clustered[:2] == (0.5, 100)
    assert (clustered.low, clustered.high) == wilson(0.5, 1)[1:]  # for n - 1 of a variance


def test_share_reads_well() -> None:
    assert str(share_of(np.array([1.0] * 8 + [0.0] * 2))) == "80.0 % (49.0 to 94.3, n = 10)"


def test_an_interval_is_written_in_any_unit() -> None:
    share = Share(0.125, 8, 0.0221, 0.4709)
    assert bracketed(share, ".1f", scale=100, unit=" %") == "12.5 % [2.2, 47.1]"
    assert bracketed(Interval(-0.5, -1, 0.25), "+.2f") == "-0.50 [-1.00, +0.25]"
    assert str(Interval(0.125, 0.0221, 0.4709)) == "0.125 [0.022, 0.471]"


def test_an_interval_is_what_was_stored() -> None:
    interval = wilson(3, 41)
    assert Interval.of({"n": 41, **interval._asdict()}) == interval


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


def test_a_mean_is_as_sure_as_the_error_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, size=400)
    interval = unit_mean(values)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert unit_mean(values) == interval  # the same seed


def test_a_mean_of_equal_values_is_not_certain() -> None:
    assert unit_mean([1.0] * 10) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    assert unit_mean([0.5] * 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)


def test_a_mean_of_few_values_is_less_sure_than_its_interval_says() -> None:
    chances, ratings = np.array([0.12, 0.1, 0.2, 0.31, 0.27]), np.arange(5) / 4
    rng = np.random.default_rng(0)
    found = [unit_mean(rng.choice(ratings, 5, p=chances)) for _ in range(150)]
    covered = np.mean([one.low <= chances @ ratings <= one.high for one in found])
    assert covered == pytest.approx(0.82, abs=3 * (0.82 * 0.18 / 150) ** 0.5)  # by numpy alone, 4,000 draws


def test_groups_of_one_are_independent_cases() -> None:
    values, groups = np.repeat([1.0, 0.0], [300, 100]), [str(i) for i in range(400)]
    assert clustered_share(values, groups) == pytest.approx(wilson(300, 400), abs=1e-4)


def test_cases_that_repeat_each_other_count_once() -> None:
    values, groups = np.repeat([1.0, 0.0], [60, 40]), [str(i // 4) for i in range(100)]
    # 15 and 10 groups of four alike: as sure as 24 cases, for n - 1 of a variance
    assert clustered_share(values, groups) == pytest.approx(wilson(0.6 * 24, 24), abs=1e-12)


def test_a_mean_over_groups_by_hand() -> None:
    # mean 12 / 6; residuals 4 - 2 * 1, 3 - 2 * 2, 5 - 2 * 3: variance 3/2 (4 + 1 + 1) / 36 = 1/4
    found = mean_of_groups([4.0, 3.0, 5.0], [1, 2, 3])
    assert found == pytest.approx((2.0, 2.0 - 1.959964 / 2, 2.0 + 1.959964 / 2), abs=1e-6)
    # groups of one: the usual standard error of a mean
    values = np.random.default_rng(0).normal(size=50)
    error = 1.959964 * values.std(ddof=1) / 50**0.5
    assert mean_of_groups(values, np.ones(50)).high == pytest.approx(values.mean() + error, abs=1e-6)
    with pytest.raises(ConfigError, match="1 group"):
        mean_of_groups([3.0], [2])


def test_groups_that_all_agree_count_as_many_as_they_are() -> None:
    assert clustered_share(np.ones(6), list("aabbcc")) == wilson(3, 3)
    assert clustered_share([0.0, 0.0], ["a", "a"]) == wilson(0, 1)


def test_groups_that_differ_less_than_chance_make_no_more_cases_than_there_are() -> None:
    # sums 1, 1, 1 of 2, 2, 3 cases: deviations 1/7, 1/7, -2/7; 12/49 / (3/2 * 6/49 / 49) = 65 cases
    assert clustered_share([1, 0, 1, 0, 1, 0, 0], list("aabbccc")) == wilson(3, 7)


def test_shares_of_groups_cover_the_truth_19_times_of_20() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 3)
    chances = rng.beta(4, 1, size=(1500, 60))  # mean 0.8; the three cases of a group are alike
    drawn = rng.random((1500, 180)) < chances[:, groups]
    intervals = [clustered_share(row, groups) for row in drawn]
    covered = [interval.low <= 0.8 <= interval.high for interval in intervals]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_above_means_without_overlap() -> None:
    assert Interval(0.5, 0.4, 0.6).is_above(Interval(0.3, 0.2, 0.39))
    assert not Interval(0.5, 0.4, 0.6).is_above(Interval(0.3, 0.2, 0.4))


def test_nothing_has_no_share_and_no_mean() -> None:
    with pytest.raises(ConfigError, match="a share of nothing"):
        wilson(0, 0)
    with pytest.raises(ConfigError, match="3 successes of 2 cases"):
        wilson(3, 2)
    with pytest.raises(ConfigError, match="the mean of nothing"):
        unit_mean([])
    with pytest.raises(ConfigError, match="a share of nothing"):
        clustered_share([], [])
    with pytest.raises(ConfigError, match=r"\[1.5\] of 2 values are not in \[0, 1\]"):
        unit_mean([0.5, 1.5])


def test_clustered_mean_by_hand() -> None:
    """Groups a (1, 0), b (-1), c (0, 1): mean 1/5, deviations s - n/5 = 3/5, -6/5, 3/5."""
    interval = clustered_mean([1, 0, -1, 0, 1], ["a", "a", "b", "c", "c"])
    variance = 3 / 2 * (9 / 25 + 36 / 25 + 9 / 25) / 25
    assert interval == pytest.approx((0.2, 0.2 - 1.959964 * variance**0.5, 0.2 + 1.959964 * variance**0.5))
    assert clustered_mean([1, 1], ["a", "b"]) == (1, 1, 1)
    with pytest.raises(ConfigError, match="1 group"):
        clustered_mean([1, 0], ["a", "a"])


def test_clustered_mean_covers_the_truth_19_times_of_20() -> None:
    """Differences of two models that agree on most cases; three cases of a group are alike."""
    rng = np.random.default_rng(0)
    groups = [str(number // 3) for number in range(240)]
    covered = []
    for _ in range(1000):
        drawn = np.repeat(rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=80), 3)
        interval = clustered_mean(drawn, groups)
        covered.append(interval.low <= 0.1 <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_rates_of_people_by_hand() -> None:
    assert pooled_rate([3, 1], [1, 3]).value == 1
    assert mean_rate([3, 1], [1, 3]).value == pytest.approx((3 + 1 / 3) / 2)
    # of two people a quarter of the draws has the first twice, a quarter the second twice
    assert pooled_rate([3, 1], [1, 3])[1:] == pytest.approx((1 / 3, 3))
    assert mean_rate([3, 1], [1, 3])[1:] == pytest.approx((1 / 3, 3))


def test_the_interval_of_a_rate_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = {pooled_rate: 0, mean_rate: 0}
    for _ in range(200):
        hours = rng.uniform(1, 4, size=40)
        counts = rng.poisson(rng.gamma(2.0, 0.5, size=40) * hours)  # people differ, around 1 per hour
        for rate in hits:
            found = rate(counts, hours)
            hits[rate] += found.low <= 1.0 <= found.high
    assert all(0.88 <= count / 200 <= 0.99 for count in hits.values())


def test_rates_that_are_all_alike_have_the_interval_of_a_count() -> None:
    for rate in (pooled_rate, mean_rate):
        assert rate([0, 0], [2, 3]) == pytest.approx((0, 0, 1.96**2 / 5), abs=1e-3)
        found = rate([4], [2])
        # the ends r at which (4 - 2 r)^2 = 1.96^2 * 2 r
        for end in found[1:]:
            assert (4 - 2 * end) ** 2 == pytest.approx(1.95996**2 * 2 * end, rel=1e-4)
        assert found.low < found.value == 2 < found.high


def test_rates_that_differ_by_rounding_alone_are_alike() -> None:
    hours = [1 / 10, 3 * 0.1]  # 3 / (3 * 0.1) is 9.999999999999998
    for rate in (pooled_rate, mean_rate):
        assert rate([1, 3], hours) == pytest.approx(rate([4], [0.4]))


@pytest.mark.parametrize(
    ("counts", "hours", "message"),
    [
        ([], [], "the rate of nothing"),
        ([1], [0], "an exposure is 0; it must be positive"),
        ([-1], [1], "a count is -1"),
        ([1, 2], [1], "2 counts, 1 exposures; give one of each"),
    ],
)
def test_rates_that_are_none_are_refused(counts, hours, message) -> None:
    with pytest.raises(ConfigError, match=message):
        pooled_rate(counts, hours)
