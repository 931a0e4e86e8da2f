"""Whether contamination moved a metric (Llama 2, A.6 and Table 51; CONT-5 to CONT-8)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

LENGTHS = (10, 20, 30, 40, 50)
"""Minimum lengths of a span, in tokens (CONT-6)."""

SUBSETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "clean": lambda share: share < 0.2,
    "not clean": lambda share: share >= 0.2,
    "not dirty": lambda share: share < 0.8,
    "dirty": lambda share: share >= 0.8,
}
"""Which contaminated shares of a sample belong to a subset (CONT-5). The subsets overlap."""

SIGNS = {"clean": -1, "not clean": 1, "not dirty": -1, "dirty": 1}
"""Where a subset's metric lies, beside that of all, if contamination helped (CONT-7)."""

THRESHOLD = 2.0


class Subset(NamedTuple):
    """A row of Table 51."""

    size: int
    contamination: float | None  # mean contaminated share; None of no sample, likewise below
    mean: float | None
    expected: float  # mu_n: the mean over all samples
    z: float | None  # None also where all samples have the same metric


def subsets(shares: Sequence[float] | np.ndarray, metrics: Sequence[float] | np.ndarray) -> dict[str, Subset]:
    """The four subsets of a dataset's samples, by contaminated share in [0, 1].

    With mu and sigma the mean and standard deviation of the metric over all samples, the mean of n samples
    that are drawn from them with replacement has mean mu and standard deviation sigma / sqrt(n) (D76)::

      Z_n = (mean - mu) / (sigma / sqrt(n))

    For a metric that is 0 or 1, sigma is sqrt(mu (1 - mu)) (CONT-8).
    """
    share, metric = np.asarray(shares, np.float64), np.asarray(metrics, np.float64)
    mu, sigma = float(metric.mean()), 0.0 if np.ptp(metric) == 0 else float(metric.std())
    masks = {name: belongs(share) for name, belongs in SUBSETS.items()}
    return {name: _subset(share[own], metric[own], mu, sigma) for name, own in masks.items()}


def _subset(share: np.ndarray, metric: np.ndarray, mu: float, sigma: float) -> Subset:
    if not metric.size:
        return Subset(0, None, None, mu, None)
    mean = float(metric.mean())
    return Subset(metric.size, float(share.mean()), mean, mu, z_score(mean, mu, sigma, metric.size))


def z_score(mean: float, mu: float, sigma: float, size: int) -> float | None:
    """``(mean - mu) / (sigma / sqrt(size))``; None where sigma is 0."""
    return (mean - mu) / (sigma / math.sqrt(size)) if sigma > 0 else None


def shows_effect(found: Mapping[str, Subset]) -> bool:
    """Whether all four subsets deviate as they would if contamination helped (CONT-7)."""
    return all(map(deviates, found, found.values()))


def deviates(name: str, subset: Subset) -> bool:
    """Whether |Z| of a subset exceeds 2, unrounded (D77): below mu if it is cleaner, above if dirtier."""
    return subset.z is not None and SIGNS[name] * subset.z > THRESHOLD


def largest_effect(by_length: Mapping[int, Mapping[str, Subset]]) -> int | None:
    """The largest minimum length at which the metric shows an effect (CONT-6), or None."""
    return max((length for length, found in by_length.items() if shows_effect(found)), default=None)
