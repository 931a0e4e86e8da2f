"""Win rates: which of two answers a judge prefers (Llama 2, section 3.4; MBE-3, MBE-4, D53).

A judge is a function from pairs of answers to verdicts; reward models, the truth of the simulated
world and language models all fit. ``compare`` hides from it which answer is whose.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama2_jax.config import require
from llama2_jax.evals.intervals import Interval, wilson

FIRST, TIE, SECOND = 1, 0, -1
"""Verdicts: which of the two answers is better."""


class Pair(NamedTuple):
    """Two answers to one prompt, of whatever type the judge reads."""

    first: Any
    second: Any


Judge = Callable[[Sequence[Pair]], Sequence[int]]
"""A verdict, ``FIRST``, ``TIE`` or ``SECOND``, for each pair."""


class WinRate(NamedTuple):
    """Three ways to count; the paper removes ties in Figure 2 and counts wins of all in Figure 11."""

    wins: int
    ties: int
    losses: int
    of_all: Interval  # wins / prompts
    ties_half: Interval  # (wins + ties / 2) / prompts: one half for equal models
    of_decided: Interval | None  # wins / (wins + losses); None if all are ties


def judge_by_score(score: Callable[[Any], float]) -> Judge:
    """A judge that prefers the higher score; equal ones are a tie."""

    def judge(pairs: Sequence[Pair]) -> list[int]:
        gaps = [score(pair.first) - score(pair.second) for pair in pairs]
        return [TIE if gap == 0 else FIRST if gap > 0 else SECOND for gap in gaps]

    return judge


def compare(
    judge: Judge, ours: Sequence[Any], theirs: Sequence[Any], *, seed: int = 0, reverse: bool = False
) -> np.ndarray:
    """Judge our answer against theirs, each pair shown in an order drawn from ``seed`` (MBE-4).

    Args:
      reverse: show every pair the other way round. A verdict that differs then is of the order, not of the
        answers.

    Returns:
      verdicts_P, int32, seen from our side: 1 win, 0 tie, -1 loss.

    Raises:
      ConfigError: not one answer of each side per prompt, or a verdict that is none.
    """
    require(len(ours) == len(theirs), f"{len(ours)} answers against {len(theirs)}; give one each per prompt")
    swap_P = (np.random.default_rng(seed).random(len(ours)) < 0.5) ^ reverse
    shown = [Pair(b, a) if swap else Pair(a, b) for a, b, swap in zip(ours, theirs, swap_P, strict=True)]
    verdicts_P = _ask(judge, shown)
    return np.where(swap_P, -verdicts_P, verdicts_P)


def _ask(judge: Judge, pairs: Sequence[Pair]) -> np.ndarray:
    verdicts = np.asarray(judge(pairs), np.int32).reshape(-1)
    require(
        len(verdicts) == len(pairs) and bool(np.isin(verdicts, (FIRST, TIE, SECOND)).all()),
        f"the judge gave {len(verdicts)} verdicts, {sorted(set(verdicts.tolist()))}, for {len(pairs)} pairs; "
        f"each must be {FIRST}, {TIE} or {SECOND}",
    )
    return verdicts


def win_rate(verdicts_P: np.ndarray) -> WinRate:
    """Count verdicts; intervals are Wilson's, too wide rather than too narrow where ties are halves.

    Raises:
      ConfigError: no verdict.
    """
    verdicts_P = np.asarray(verdicts_P)
    wins, ties, losses = (int((verdicts_P == verdict).sum()) for verdict in (FIRST, TIE, SECOND))
    return WinRate(
        wins,
        ties,
        losses,
        of_all=wilson(wins, len(verdicts_P)),
        ties_half=wilson(wins + ties / 2, len(verdicts_P)),
        of_decided=wilson(wins, wins + losses) if wins + losses else None,
    )
