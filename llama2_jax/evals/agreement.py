"""How far raters agree: Gwet's AC1 and AC2 (Llama 2, section A.3.7; HUM-10, D61).

With r_ik of the r_i raters of subject i choosing category k of q, and weights w, 1 for equal
categories and less the further two lie apart::

  p_a = mean over subjects with r_i >= 2 of  sum_k r_ik (sum_l w_kl r_il - 1) / (r_i (r_i - 1))
  pi_k = mean over all subjects of  r_ik / r_i
  p_e = T sum_k pi_k (1 - pi_k),  T = sum_kl w_kl / (q (q - 1))
  AC = (p_a - p_e) / (1 - p_e)

AC1 has identity weights (categories without order), AC2 any others. Unlike kappa, the coefficient
stays high where nearly all ratings fall into one category, as those of safe answers do.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llama2_jax.config import require, require_choice
from llama2_jax.evals.intervals import Interval, Z

Array = np.ndarray


class Agreement(NamedTuple):
    """A coefficient and what it is made of."""

    coefficient: Interval  # normal, from the standard error; at most 1
    standard_error: float
    observed: float  # p_a
    expected: float  # p_e
    subjects: int  # with any rating
    weights: str


def _ordinal(scale: Array) -> Array:
    """1 - C(d + 1, 2) / C(q, 2), d categories apart."""
    ranks = np.arange(len(scale))
    distance = np.abs(ranks[:, None] - ranks)
    return 1 - distance * (distance + 1) / (len(scale) * (len(scale) - 1))


WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "quadratic": lambda scale: 1 - (_distance(scale) / np.ptp(scale)) ** 2,
    "linear": lambda scale: 1 - _distance(scale) / np.ptp(scale),
    "ordinal": _ordinal,
    "identity": lambda scale: np.eye(len(scale)),
}
"""Name to weights_KK of a scale, rising numbers."""


def gwet(
    ratings: Sequence[Sequence[int | None]], scale: Sequence[int], *, weights: str = "quadratic"
) -> Agreement | None:
    """AC1 (weights "identity") or AC2 of ratings.

    Args:
      ratings: those of each subject, None where a rater gave none; subjects may have different numbers.
      scale: all ratings that could have been given, rising, whether they were or not: the coefficient
        depends on it.

    Returns:
      None where fewer than two subjects have a rating, or none has two: then nothing is known.

    Raises:
      ConfigError: a rating that is not on the scale, or unknown weights.
    """
    require_choice("weights", weights, WEIGHTS)
    strangers = {one for own in ratings for one in own if one is not None} - set(scale)
    require(not strangers, f"ratings {sorted(strangers)} are not on the scale {list(scale)}")
    counts_NK = np.array([[list(own).count(level) for level in scale] for own in ratings], float)
    counts_NK = counts_NK.reshape(-1, len(scale))
    counts_NK = counts_NK[counts_NK.sum(axis=1) > 0]
    if len(counts_NK) < 2 or counts_NK.sum(axis=1).max() < 2:
        return None
    return _coefficient(counts_NK, WEIGHTS[weights](np.array(scale, float)), name=weights)


def _coefficient(counts_NK: Array, weights_KK: Array, *, name: str) -> Agreement:
    """The formulas above, and the standard error of raters who are given and subjects drawn at random::

      SE^2 = sum_i (AC_i* - AC)^2 / (n (n - 1)),  AC_i* = AC_i - 2 (1 - AC) (p_e,i - p_e) / (1 - p_e)

    with AC_i = (n / n_2) (p_a,i - p_e) / (1 - p_e) of the n_2 subjects with two ratings or more, else 0,
    and p_e,i = T sum_k (r_ik / r_i) (1 - pi_k).
    """
    n, q = counts_NK.shape
    sizes_N = counts_NK.sum(axis=1)
    shares_NK = counts_NK / sizes_N[:, None]
    several_N = sizes_N >= 2
    agreeing_N = (counts_NK * (counts_NK @ weights_KK - 1)).sum(axis=1)
    observed_N = agreeing_N[several_N] / (sizes_N * (sizes_N - 1))[several_N]
    observed = observed_N.mean()

    spread_K = weights_KK.sum() / (q * (q - 1)) * (1 - shares_NK.mean(axis=0))
    expected_N = shares_NK @ spread_K
    expected = expected_N.mean()  # T sum_k pi_k (1 - pi_k), as pi is the mean of the shares

    value = (observed - expected) / (1 - expected)
    value_N = np.zeros(n)
    value_N[several_N] = n / several_N.sum() * (observed_N - expected) / (1 - expected)
    value_N -= 2 * (1 - value) * (expected_N - expected) / (1 - expected)
    error = math.sqrt(np.square(value_N - value).sum() / (n * (n - 1)))
    interval = Interval(float(value), float(value - Z * error), min(1.0, float(value + Z * error)))
    return Agreement(interval, error, float(observed), float(expected), n, name)


def _distance(scale: Array) -> Array:
    return np.abs(scale[:, None] - scale)
