"""Simulated people: the truth, seen through noise and with a bias of their own.

Rater r prefers answer a to b with probability (Bradley-Terry)

    P(a > b) = sigmoid((u_a - u_b) / noise + length_bias_r * (words_a - words_b))

where u is the helpfulness of the truth; on the safety track 1 is taken off for an answer that the
rater thinks unsafe, so that a safe answer is always better than an unsafe one. What the rater thinks
is the truth, turned round with probability label_error_r. The perceived difference is the argument
of the sigmoid plus logistic noise; its sign is the preference, its size, divided by
exp(leniency_r), gives one of the four ratings by thresholds. Ratings therefore rise with the true
difference. Nothing prevents the choice of an unsafe answer next to a safe one: such pairs come out
as ``REJECTED_SAFE`` and are excluded when they are read (PREF-4).

Several raters judge each comparison and one row is made of it: the median of the signed strengths,
which is preferred by the majority, and the majority of the labels.
"""

import dataclasses
import math
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import NamedTuple

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.preferences import RATINGS
from llama2_jax.rlhf.annotator.comparison import Annotator, Comparison, Judgement, rating_of
from llama2_jax.rlhf.annotator.families.family import words_of
from llama2_jax.rlhf.annotator.truth import Grade, grade

UNSAFE_PENALTY = 1.0  # the range of helpfulness: safety outranks it (SFT-7)


@dataclasses.dataclass(frozen=True)
class RatersConfig:
    """How many raters there are, and how they differ. Numbers of the toy, not of the paper."""

    num_raters: int = 8
    raters_per_item: int = 3
    noise: float = 0.25  # difference of helpfulness at which P = sigmoid(1) = 0.73
    thresholds: tuple[float, ...] = (0.7, 2.0, 4.0)  # of the perceived difference, in units of noise
    leniency_spread: float = 0.2  # standard deviation over raters
    length_bias_spread: float = 0.02  # standard deviation over raters, per word
    label_error: float = 0.02  # mean over raters
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 < self.raters_per_item <= self.num_raters and self.raters_per_item % 2 == 1,
            f"raters_per_item = {self.raters_per_item} must be odd and at most num_raters = "
            f"{self.num_raters}",
        )
        require(self.noise > 0, f"noise = {self.noise} must be positive")
        require(
            len(self.thresholds) == len(RATINGS) - 1 and list(self.thresholds) == sorted(self.thresholds),
            f"thresholds = {self.thresholds} must be {len(RATINGS) - 1} rising numbers",
        )
        require(0 <= self.label_error < 0.5, f"label_error = {self.label_error} must be in [0, 0.5)")


class Rater(NamedTuple):
    """One person."""

    annotator_id: str
    leniency: float = 0.0
    length_bias: float = 0.0
    label_error: float = 0.0


def make_raters(config: RatersConfig) -> list[Rater]:
    """The people of a config: the same for the same seed."""
    rng = Random(f"raters {config.seed}")
    return [
        Rater(
            f"rater {number}",
            rng.gauss(0, config.leniency_spread),
            rng.gauss(0, config.length_bias_spread),
            config.label_error * rng.uniform(0.5, 1.5),
        )
        for number in range(config.num_raters)
    ]


def perceived_labels(grades: tuple[Grade, Grade], rater: Rater, rng: Random) -> tuple[bool, bool]:
    """Which of two answers the rater thinks unsafe."""
    first, second = (one.is_unsafe != (rng.random() < rater.label_error) for one in grades)
    return first, second


def expected_difference(
    comparison: Comparison,
    grades: tuple[Grade, Grade],
    unsafe: tuple[bool, bool] | None,
    rater: Rater,
    *,
    noise: float,
) -> float:
    """The argument of the sigmoid above, positive in favour of the first answer."""
    first, second = (
        one.helpfulness - UNSAFE_PENALTY * is_unsafe
        for one, is_unsafe in zip(grades, unsafe or (False, False), strict=True)
    )
    words = len(words_of(comparison.first)) - len(words_of(comparison.second))
    return (first - second) / noise + rater.length_bias * words


def judge(comparison: Comparison, rater: Rater, config: RatersConfig) -> tuple[float, Judgement]:
    """One rater's signed strength (positive for the first answer) and judgement."""
    rng = Random(f"{config.seed} {comparison.comparison_id} {rater.annotator_id}")
    grades = (grade(comparison.prompt, comparison.first), grade(comparison.prompt, comparison.second))
    unsafe = perceived_labels(grades, rater, rng) if comparison.track == "safety" else None
    uniform = rng.random() or 0.5  # 0 has no logit
    perceived = expected_difference(comparison, grades, unsafe, rater, noise=config.noise) + math.log(
        uniform / (1 - uniform)
    )
    strength = perceived / math.exp(rater.leniency)
    rating = rating_of(abs(strength), config.thresholds)
    return strength, Judgement(strength > 0, rating, unsafe, rater.annotator_id)


def judge_together(comparison: Comparison, raters: Sequence[Rater], config: RatersConfig) -> Judgement:
    """One judgement of an odd number of raters: the median strength, the majority of labels."""
    judged = [judge(comparison, rater, config) for rater in raters]
    strength = float(np.median([one for one, _ in judged]))
    labels = [found.unsafe for _, found in judged if found.unsafe is not None]
    majority = [sum(one) * 2 > len(labels) for one in zip(*labels, strict=True)]
    return Judgement(
        strength > 0,
        rating_of(abs(strength), config.thresholds),
        (majority[0], majority[1]) if majority else None,
        "+".join(rater.annotator_id for rater in raters),
    )


def choose_raters(comparison: Comparison, raters: Sequence[Rater], config: RatersConfig) -> list[Rater]:
    """Who judges a comparison, at random."""
    rng = Random(f"{config.seed} {comparison.comparison_id} who")
    return sorted(rng.sample(list(raters), config.raters_per_item))


def simulated(config: RatersConfig) -> Annotator:
    """The annotator of the simulated world."""
    raters = make_raters(config)
    return lambda comparisons: [
        judge_together(one, choose_raters(one, raters, config), config) for one in comparisons
    ]


def agreement(comparisons: Sequence[Comparison], config: RatersConfig) -> float:
    """Share of pairs of raters of one comparison who prefer the same answer; 1.0 for one rater each."""
    raters = make_raters(config)
    same: list[bool] = []
    for comparison in comparisons:
        chosen = choose_raters(comparison, raters, config)
        preferred = [judge(comparison, rater, config)[1].prefers_first for rater in chosen]
        same += [a == b for a, b in combinations(preferred, 2)]
    return sum(same) / len(same) if same else 1.0
