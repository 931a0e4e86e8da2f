"""Golden numbers: what the R package irrCAC prints, and by hand."""

import itertools
import random

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.agreement import WEIGHTS, gwet

N = None
TWELVE_BY_FOUR = [
    (1, 1, N, 1), (2, 2, 3, 2), (3, 3, 3, 3), (3, 3, 3, 3), (2, 2, 2, 2), (1, 2, 3, 4),
    (4, 4, 4, 4), (1, 1, 2, 1), (2, 2, 2, 2), (N, 5, 5, 5), (N, N, 1, 1), (N, N, 3, N),
]  # fmt: skip
FIFTEEN_BY_SIX = "00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031"
TWO_RATERS = [[13, 0, 0], [0, 20, 7], [0, 4, 56]]


def of_counts(text: str) -> list[list[int]]:
    """One subject per word: how many raters chose each category."""
    return [
        [level for level, count in enumerate(map(int, word)) for _ in range(count)] for word in text.split()
    ]


@pytest.mark.parametrize(
    ("weights", "value", "error", "observed", "expected"),
    [
        ("identity", 0.77544, 0.14295, 0.8181818, 0.1903212),
        ("quadratic", 0.9140007, 0.1039622, 0.9753788, 0.7137044),
        ("linear", 0.8587391, 0.117329, 0.9393939, 0.5709635),
        ("ordinal", 0.8989398, 0.1069035, 0.9681818, 0.6851562),
    ],
)
def test_twelve_subjects_with_missing_ratings(weights, value, error, observed, expected):
    found = gwet(TWELVE_BY_FOUR, range(1, 6), weights=weights)
    assert found.coefficient.value == pytest.approx(value, abs=5e-6)
    assert found.standard_error == pytest.approx(error, abs=5e-6)
    assert (found.observed, found.expected) == pytest.approx((observed, expected), abs=5e-7)
    assert found.coefficient.low == pytest.approx(value - 1.959964 * error, abs=1e-5)
    assert found.coefficient.high == min(1.0, found.coefficient.high)
    assert (found.subjects, found.weights) == (12, weights)


def test_fifteen_subjects_of_six_raters():
    found = gwet(of_counts(FIFTEEN_BY_SIX), range(5), weights="identity")
    assert found.coefficient.value == pytest.approx(0.4448007, abs=5e-8)
    assert found.standard_error == pytest.approx(0.0841876, abs=5e-8)
    assert found.coefficient.high == pytest.approx(0.4448007 + 1.959964 * 0.0841876, abs=1e-6)


def test_a_table_of_two_raters():
    ratings = [
        (i, j) for i, row in enumerate(TWO_RATERS) for j, count in enumerate(row) for _ in range(count)
    ]
    found = gwet(ratings, range(3), weights="identity")
    assert found.coefficient.value == pytest.approx(0.8493305, abs=5e-8)
    assert found.standard_error == pytest.approx(0.0434352, abs=5e-8)  # divisor n - 1, of single ratings


def test_rare_violations_do_not_lower_it():
    ratings = [(0, 0, 0)] * 17 + [(0, 0, 1)] * 2 + [(1, 1, 1)]
    found = gwet(ratings, (0, 1), weights="identity")
    assert found.coefficient.value == pytest.approx(0.921311, abs=5e-7)
    assert found.standard_error == pytest.approx(0.057636, abs=5e-7)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_against_loops_over_pairs_of_raters(weights):
    draw = random.Random(3)
    scale = (-3, -2, -1, 0, 1, 2, 3)
    ratings = [[draw.choice((*scale, None)) for _ in range(4)] for _ in range(30)]
    rated = [[one for one in own if one is not None] for own in ratings]

    def weight(a: int, b: int) -> float:
        distance = abs(a - b)
        return {
            "identity": float(a == b),
            "linear": 1 - distance / 6,
            "quadratic": 1 - distance**2 / 36,
            "ordinal": 1 - distance * (distance + 1) / 2 / 21,
        }[weights]

    several = [own for own in rated if len(own) > 1]
    observed = np.mean(
        [np.mean([weight(*pair) for pair in itertools.permutations(own, 2)]) for own in several]
    )
    shares = [np.mean([own.count(level) / len(own) for own in rated if own]) for level in scale]
    total = sum(weight(a, b) for a in scale for b in scale)
    expected = total / 42 * sum(share * (1 - share) for share in shares)
    found = gwet(ratings, scale, weights=weights)
    assert found.coefficient.value == pytest.approx((observed - expected) / (1 - expected))


def test_perfect_agreement_is_one():
    found = gwet([(1, 1, 1), (5, 5, 5), (3, 3)], range(1, 6))
    assert found.coefficient.value == found.coefficient.high == pytest.approx(1)


def test_the_scale_counts_not_the_ratings_that_occur():
    ratings = [(3, 4, 4), (4, 4, 3), (4, 4, 5)]
    assert gwet(ratings, range(1, 8)).coefficient.value > gwet(ratings, range(3, 6)).coefficient.value + 0.05


def test_a_subject_without_rating_changes_nothing():
    assert gwet([*TWELVE_BY_FOUR, (N, N, N, N)], range(1, 6)) == gwet(TWELVE_BY_FOUR, range(1, 6))


@pytest.mark.parametrize("ratings", [[], [(1, 2, 3)], [(1, N), (N, 2)], [(N, N), (1, 1)]])
def test_too_few_ratings_say_nothing(ratings):
    assert gwet(ratings, range(1, 6)) is None


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r"ratings \[0, 6\] are not on the scale \[1, 2, 3, 4, 5\]"):
        gwet([(0, 1), (6, 2)], range(1, 6))
    with pytest.raises(ConfigError, match="weights is 'cubic'; choose one of 'quadratic'"):
        gwet([(1, 1)], range(1, 6), weights="cubic")
