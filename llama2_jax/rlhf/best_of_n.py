"""The best of N samples: picking it, and what to expect of it (Llama 2, section 3.2.3, Figures 7, 8).

Expectations over N come from one pool of M samples per prompt by unbiased order statistics (D52):
the mean over all C(M, N) subsets, without drawing any.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from llama2_jax.config import require
from llama2_jax.rlhf.archive import Sample, require_scored


def pick_best(samples: Iterable[Sample]) -> list[Sample]:
    """The sample with the highest combined score of every prompt, in the order of the prompts.

    Args:
      samples: scored by one version of the reward models: the scores of two cannot be compared.

    Equal scores go to the earlier round, then the lower temperature, then the lower seed.

    Raises:
      ConfigError: a sample without score, or scores of several versions.
    """
    pool = list(samples)
    require_scored(pool)
    best: dict[str, Sample] = {}
    for sample in pool:
        held = best.setdefault(sample.prompt.prompt_id, sample)
        if _rank(sample) < _rank(held):
            best[sample.prompt.prompt_id] = sample
    return list(best.values())


def _rank(sample: Sample) -> tuple[float, int, float, int, str]:
    return -sample.scores["combined"], sample.round, sample.temperature, sample.seed, sample.model


def pool_scores(samples: Iterable[Sample]) -> np.ndarray:
    """``pool_values`` of the combined scores."""
    return pool_values(samples, lambda sample: sample.scores["combined"])


def pool_values(samples: Iterable[Sample], value: Callable[[Sample], float]) -> np.ndarray:
    """Values of every prompt's samples in a row, by seed: (P, C), C the smallest count of any prompt."""
    pools: dict[str, list[Sample]] = {}
    for sample in samples:
        pools.setdefault(sample.prompt.prompt_id, []).append(sample)
    require(bool(pools), "no sample to look at")
    count = min(len(pool) for pool in pools.values())
    return np.array(
        [
            [value(sample) for sample in sorted(pool, key=lambda sample: sample.seed)[:count]]
            for pool in pools.values()
        ]
    )


def expected_max(scores_PC: np.ndarray, n: int) -> float:
    """Expected highest score of ``n`` of the M samples, without replacement, averaged over prompts.

    The i-th smallest score is the highest of C(i-1, n-1) of the C(M, n) subsets.

    Raises:
      ConfigError: ``n`` is not between 1 and M.
    """
    return _expected_order_statistic(scores_PC, n, n)


def expected_median(scores_PC: np.ndarray, n: int) -> float:
    """Expected median of ``n`` of the M samples; of an even number, the mean of the middle two."""
    middle = {(n + 1) // 2, n // 2 + 1}
    return float(np.mean([_expected_order_statistic(scores_PC, n, rank) for rank in middle]))


def expected_curves(scores_PC: np.ndarray) -> dict[str, list[float]]:
    """``max`` and ``median`` for every n from 1 to M (Figure 7)."""
    ns = range(1, scores_PC.shape[1] + 1)
    return {
        "max": [expected_max(scores_PC, n) for n in ns],
        "median": [expected_median(scores_PC, n) for n in ns],
    }


def _expected_order_statistic(scores_PC: np.ndarray, n: int, rank: int) -> float:
    """The i-th smallest of M is the ``rank``-th of n in C(i-1, rank-1) C(M-i, n-rank) subsets."""
    num_samples = scores_PC.shape[1]
    require(1 <= n <= num_samples, f"n = {n} samples out of {num_samples}; n must lie between 1 and that")
    below = [math.comb(i, rank - 1) * math.comb(num_samples - 1 - i, n - rank) for i in range(num_samples)]
    subsets = math.comb(num_samples, n)
    weights_C = np.array([count / subsets for count in below])  # exact integers until here
    return float((np.sort(scores_PC, axis=1) @ weights_C).mean())


def best_temperature(curves: Mapping[float, Sequence[float]], n: int) -> float:
    """The temperature with the highest expected maximum of ``n`` samples (RS-7); the lowest of equals.

    Args:
      curves: temperature -> expected maximum of 1, 2, ... samples, up to ``n`` at least.
    """
    return min(curves, key=lambda temperature: (-curves[temperature][n - 1], temperature))


def kl_bound(n: int) -> float:
    """Upper bound of KL(best of ``n`` | policy) in nats: ln n - (n - 1)/n, exact without ties."""
    return math.log(n) - (n - 1) / n
