"""The published Table 51, and a case computed by hand."""

import itertools
import math

import pytest

from llama2_jax.analysis.contamination_statistics import (
    Subset,
    deviates,
    largest_effect,
    shows_effect,
    subsets,
    z_score,
)

NAMES = ("clean", "not clean", "not dirty", "dirty")

# sizes of the subsets, their means in percent and their Z, as printed; 70B and 7B, MMLU-Overall 70B only
TABLE_51 = {
    "HellaSwag 70B": ((7391, 2651, 9194, 848), (80.0, 89.5, 81.6, 92.2), (-5.73, 9.56, -2.27, 7.42)),
    "HellaSwag 7B": ((7391, 2651, 9194, 848), (70.5, 81.3, 72.4, 83.7), (-5.46, 9.17, -2.06, 6.84)),
    "Humanities 70B": ((3996, 709, 4185, 520), (62.2, 82.7, 62.7, 85.8), (-4.08, 9.71, -3.50, 9.80)),
    "Humanities 7B": ((3996, 709, 4185, 520), (40.8, 54.9, 41.1, 56.9), (-2.75, 6.50, -2.25, 6.49)),
    "MMLU 70B": ((11862, 2180, 12506, 1536), (68.0, 73.5, 67.7, 78.2), (-2.00, 4.64, -2.75, 7.87)),
}


def case_by_hand() -> tuple[list[float], list[int]]:
    """Contamination i / 100; right where i is at least 60 or a multiple of 3: 20 + 40 of 100."""
    return [i / 100 for i in range(100)], [int(i >= 60 or i % 3 == 0) for i in range(100)]


def test_rows_by_hand():
    found = subsets(*case_by_hand())
    expected = {
        "clean": (20, 0.095, 0.35, 0.6, -2.28218),
        "not clean": (80, 0.595, 0.6625, 0.6, 1.14109),
        "not dirty": (80, 0.395, 0.5, 0.6, -1.82574),
        "dirty": (20, 0.895, 1.0, 0.6, 3.65148),
    }
    for name, row in expected.items():
        assert found[name] == pytest.approx(row, abs=5e-6)
    assert not shows_effect(found)


@pytest.mark.parametrize("row", TABLE_51)
def test_published_z_lies_where_rounding_allows(row):
    for pair in (slice(0, 2), slice(2, 4)):  # two subsets that are the whole set, and so give its mean
        sizes, means, published = (values[pair] for values in TABLE_51[row])
        whole = sum(size * mean for size, mean in zip(sizes, means, strict=True)) / sum(sizes)
        for size, mean, printed in zip(sizes, means, published, strict=True):
            # both means are printed to 0.1; that of the whole set was drawn anew for each subset
            corners = [
                z_score((mean + error) / 100, mu, math.sqrt(mu * (1 - mu)), size)
                for error, mu in itertools.product(
                    (-0.05, 0.05), ((whole - 0.05) / 100, (whole + 0.05) / 100)
                )
            ]
            assert min(corners) - 0.005 <= printed <= max(corners) + 0.005
            assert max(corners) - min(corners) < 0.6


@pytest.mark.parametrize("row", TABLE_51)
def test_samples_like_those_of_the_paper_give_its_verdict(row):
    sizes, means, published = TABLE_51[row]
    clean, not_clean, _, dirty = sizes
    right = [round(size * mean / 100) for size, mean in zip(sizes, means, strict=True)]
    groups = ((0.0, clean, right[0]), (0.5, not_clean - dirty, right[1] - right[3]), (0.9, dirty, right[3]))
    shares = [share for share, size, _ in groups for _ in range(size)]
    metrics = [int(i < correct) for _, size, correct in groups for i in range(size)]
    found = subsets(shares, metrics)
    assert [found[name].size for name in NAMES] == list(sizes)
    assert [found[name].z for name in NAMES] == pytest.approx(published, abs=0.15)
    assert shows_effect(found) == all(abs(found[name].z) > 2 for name in NAMES)
    if row != "MMLU 70B":  # printed as -2.00, which rounding leaves open
        assert shows_effect(found)


def test_bounds_belong_to_the_upper_subsets():
    found = subsets([3 / 15, 12 / 15, 0.0, 1.0], [1, 1, 0, 0])
    assert [found[name].size for name in NAMES] == [1, 3, 2, 2]


def test_a_metric_that_is_not_0_or_1():
    found = subsets([0, 0, 0, 1], [2.0, 4.0, 6.0, 8.0])  # mean 5, variance 5
    assert found["clean"].z == pytest.approx(-1 / math.sqrt(5 / 3))
    assert found["dirty"].z == pytest.approx(3 / math.sqrt(5))


def strong(sign: int) -> dict:
    """400 clean and 400 dirty samples; the dirty ones are better by ``sign``."""
    return subsets([0.0] * 400 + [1.0] * 400, [sign * int(i % 4 < 1 + 2 * (i >= 400)) for i in range(800)])


def test_an_effect_needs_all_four_with_the_right_signs():
    assert shows_effect(strong(1))
    assert not shows_effect(strong(-1))  # contamination hurt
    for name in NAMES:
        found = strong(1)
        found[name] = found[name]._replace(z=0.99 * found[name].z * 2 / abs(found[name].z))
        assert not shows_effect(found)
        assert not shows_effect({**found, name: found[name]._replace(z=None)})


def test_a_z_of_2_is_no_effect():
    assert not deviates("dirty", Subset(4, 0.9, 1.0, 0.5, 2.0))
    assert deviates("dirty", Subset(4, 0.9, 1.0, 0.5, 2.01))
    assert not deviates("clean", Subset(4, 0.1, 0.0, 0.5, -2.0))


def test_the_largest_length_that_shows_an_effect():
    assert largest_effect({10: strong(1), 20: strong(1), 30: strong(-1)}) == 20
    assert largest_effect({10: strong(-1)}) is None


def test_empty_subsets_and_equal_metrics_have_no_z():
    found = subsets([0.0, 0.1], [1.0, 0.0])
    assert found["dirty"] == (0, None, None, 0.5, None)
    assert not shows_effect(found)
    assert [row.z for row in subsets([0.0, 1.0], [0.1, 0.1]).values()] == [None] * 4
    assert [row.z for row in subsets([0.0] * 3 + [1.0] * 7, [0.1] * 10).values()] == [None] * 4
