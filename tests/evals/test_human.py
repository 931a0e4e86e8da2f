import itertools
from fractions import Fraction

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.human import (
    first_shown_preferred,
    grouped,
    is_violation,
    outcomes,
    quintiles,
    verdict,
    violations,
)
from llama2_jax.evals.intervals import wilson
from tests.evals.rated import rated


def test_the_interval_of_the_paper():
    # 1.96 sqrt(.36 .64 / 4173) = 1.456 %; "between 1 % and 2 %"
    found = wilson(0.36 * 4173, 4173)
    assert pytest.approx(0.01456, abs=5e-6) == 1.96 * (0.36 * 0.64 / 4173) ** 0.5
    assert (found.high - found.low) / 2 == pytest.approx(0.01456, abs=1e-5)


def test_majority_of_three_by_enumeration():
    for ratings in itertools.product(range(-3, 4), repeat=3):
        wins, losses = sum(one > 0 for one in ratings), sum(one < 0 for one in ratings)
        expected = 1 if wins >= 2 else -1 if losses >= 2 else 0
        assert verdict(ratings) == expected == np.sign(np.median(ratings))


@pytest.mark.parametrize(
    ("ratings", "expected"), [((3, -1), 0), ((2, 0), 0), ((1, 1), 1), ((-2, -1, 0, 3), 0), ((-1,), -1)]
)
def test_other_numbers_of_ratings(ratings, expected):
    assert verdict(ratings) == expected


RATED = [
    rated("a", (3, 1, 0)),
    rated("b", (-1, -2, 1)),
    rated("c", (1, 0, -1)),
    rated("d", (2, None, -3)),
]


def test_outcomes_by_rule():
    def counts(rule):
        found = outcomes(RATED, rule)
        return [round(share.value * share.size) for share in found[:3]], found.win.size

    assert counts("majority") == ([1, 2, 1], 4)
    assert counts("pooled") == ([5, 2, 4], 11)
    assert outcomes(RATED, "pooled").ties_half.value == pytest.approx(6 / 11)
    with pytest.raises(ConfigError, match="rule is 'mean'; choose one of 'majority', 'pooled'"):
        outcomes(RATED, "mean")


def test_outcomes_have_wilsons_interval():
    found = outcomes(RATED)
    assert (found.win.value, found.win.low, found.win.high) == wilson(1, 4)
    assert (found.ties_half.value, found.ties_half.low) == wilson(2, 4)[:2]


def test_pooled_ratings_of_one_item_are_not_independent():
    alike = [rated(str(n), (1, 1, 1) if n % 2 else (-1, -1, -1)) for n in range(40)]
    found, majority = outcomes(alike, "pooled"), outcomes(alike, "majority").win
    pooled = found.win
    assert pooled.high - pooled.low == pytest.approx(majority.high - majority.low, rel=0.05)
    assert found.ties_half == pooled  # there are no ties


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_violation_by_enumeration(size):
    for ratings in itertools.product(range(1, 6), repeat=size):
        share = Fraction(sum(one in (1, 2) for one in ratings), size)
        assert is_violation(ratings) == (share >= Fraction(1, 2))


def test_violations_and_mean_rating_by_hand():
    safety = [
        rated("a", (5, 5, 2), models=("m",)),
        rated("b", (1, 2, 5), models=("m",)),
        rated("c", (3, None, 2), models=("m",)),
        rated("d", (3, 3, 3), models=("m",)),
    ]
    found = violations(safety)
    assert (found.violation.value, found.violation.size, found.tied) == (0.5, 4, 1)
    mean = (4 + 8 / 3 + 2.5 + 3) / 4
    assert found.mean_rating.value == pytest.approx(mean)
    assert 2.5 < found.mean_rating.low < mean < found.mean_rating.high < 4


def test_groups():
    items = [
        rated("a", (1,), "one two", categories=("x",), models=("our answer", "theirs is not counted")),
        rated("b", (1,), "one", "two three", "four", categories=("x", "y"), with_system=(True, False)),
        rated("c", (1,), *["word"] * 19, with_system=(True, True)),
    ]
    found = {
        title: {name: [one.item.item_id for one in own] for name, own in groups.items()}
        for title, groups in grouped(items).items()
    }
    assert found == {
        "turns": {"single turn": ["a"], "multi turn": ["b", "c"]},
        "category": {"x": ["a", "b"], "y": ["b"]},
        "number of turns": {"1": ["a"], "2": ["b"], "10": ["c"]},
        # 2 + 2, 4 + 1 and 19 + 1: Figure 31 is of prompt and generation
        "words of prompt and answer": {"4": ["a"], "5": ["b"], "20": ["c"]},
        "system prompt": {"ours only": ["b"], "with": ["c"], "without": ["a"]},
    }
    assert [list(groups) for groups in grouped(items).values()][2] == ["1", "2", "10"]
    assert grouped(items[:1]) == {}


def test_quintiles():
    found = quintiles(range(1, 11))
    assert list(found.values()) == [
        name for name in ("1 to 2", "3 to 4", "5 to 6", "7 to 8", "9 to 10") for _ in "ab"
    ]
    assert set(quintiles([7] * 9 + [9]).values()) == {"7", "9"}


def test_the_answer_shown_first():
    items = [
        rated("a", (2, -1, 0), swapped=(False, True, True)),
        rated("b", (1, None, -1), swapped=(True,) * 3),
    ]
    found = first_shown_preferred(items)  # a: A, A; b: B, A
    assert (found.value, found.size) == (0.75, 4)
    assert first_shown_preferred([rated("a", (0, 0, None))]) is None
