from collections.abc import Sequence

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.judge import FIRST, SECOND, TIE, Judge, Pair, compare, judge_by_score, win_rate

LONGER = judge_by_score(len)
OURS = ["aaa", "a", "aa", "aaaa", ""]
THEIRS = ["a", "aaa", "aa", "a", "a"]


@pytest.mark.parametrize("seed", range(4))
def test_verdicts_of_a_fair_judge_do_not_depend_on_the_order(seed: int) -> None:
    assert compare(LONGER, OURS, THEIRS, seed=seed).tolist() == [1, -1, 0, 1, -1]
    assert compare(LONGER, THEIRS, OURS, seed=seed).tolist() == [-1, 1, 0, -1, 1]


def always_the_first(pairs: Sequence[Pair]) -> list[int]:
    return [FIRST] * len(pairs)


def test_judge_with_a_favourite_place_decides_nothing() -> None:
    answers = ["x"] * 2000
    verdicts_P = compare(always_the_first, answers, answers, seed=3)
    assert win_rate(verdicts_P).of_all.value == pytest.approx(0.5, abs=0.05)


def test_order_is_drawn_from_the_seed() -> None:
    shown: list[list[Pair]] = []

    def judge(pairs: Sequence[Pair]) -> list[int]:
        shown.append(list(pairs))
        return [TIE] * len(pairs)

    ours, theirs = [f"o{i}" for i in range(20)], [f"t{i}" for i in range(20)]
    for seed in (0, 0, 1):
        compare(judge, ours, theirs, seed=seed)
    assert shown[0] == shown[1] != shown[2]
    compare(judge, ours, theirs, reverse=True)
    assert shown[3] == [Pair(second, first) for first, second in shown[0]]
    assert 0 < sum(pair.first in ours for pair in shown[0]) < 20


def test_equal_scores_are_a_tie() -> None:
    pairs = [Pair(0.5, 0.41), Pair(0.39, 0.5), Pair(0.5, 0.5)]
    assert judge_by_score(float)(pairs) == [FIRST, SECOND, TIE]


def test_three_rates() -> None:
    rate = win_rate(np.array([1] * 6 + [0] * 2 + [-1] * 2))
    assert (rate.wins, rate.ties, rate.losses) == (6, 2, 2)
    assert rate.of_all.value == 0.6
    assert rate.ties_half.value == pytest.approx(0.7)
    assert rate.of_decided is not None
    assert rate.of_decided.value == 0.75
    assert rate.of_decided.low == pytest.approx(0.4093, abs=1e-4)  # Wilson, 6 of 8


def test_equal_models_win_one_half() -> None:
    rate = win_rate(compare(LONGER, OURS, OURS))
    assert rate.of_all.value == 0.0
    assert rate.ties_half.value == 0.5
    assert rate.ties_half.low < 0.5 < rate.ties_half.high
    assert rate.of_decided is None


@pytest.mark.parametrize("wrong", [lambda pairs: [FIRST], lambda pairs: [2] * len(pairs)])
def test_what_is_no_verdict_is_refused(wrong: Judge) -> None:
    with pytest.raises(ConfigError, match=r"verdicts, .* for 5 pairs; each must be 1, 0 or -1"):
        compare(wrong, OURS, THEIRS)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 answers against 4"):
        compare(LONGER, OURS, THEIRS[:4])
    with pytest.raises(ConfigError, match="a share of nothing"):
        win_rate(np.array([]))
