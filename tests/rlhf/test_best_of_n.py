import itertools
import math

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.rlhf.archive import Sample
from llama2_jax.rlhf.best_of_n import (
    best_temperature,
    expected_curves,
    expected_max,
    expected_median,
    kl_bound,
    pick_best,
    pool_scores,
)
from tests.rlhf.small_policy import prompt

VERSIONS = {"helpfulness": "h1", "safety": "s1"}


def sample(number: int, score: float, *, round: int = 1, seed: int = 0, **changes: object) -> Sample:
    scores = {"helpfulness": score, "safety": 0.0, "combined": score}
    made = Sample(prompt(number), round, "m", 1.0, seed, (5,), "text", True, "llama2/x", scores, VERSIONS)
    return made._replace(**changes)  # type: ignore[arg-type]


def test_best_sample_of_every_prompt() -> None:
    samples = [sample(1, 0.1, seed=0), sample(1, 0.9, seed=1), sample(2, -3.0), sample(2, -2.0, seed=1)]
    assert [(s.prompt.prompt_id, s.seed) for s in pick_best(samples)] == [("p1", 1), ("p2", 1)]


def test_best_of_all_rounds() -> None:
    samples = [
        sample(1, 0.9, round=1),
        sample(2, 0.1, round=1),
        sample(1, 0.5, round=2),
        sample(3, 0.0, round=2),
    ]
    assert [(s.prompt.prompt_id, s.round) for s in pick_best(samples)] == [("p1", 1), ("p2", 1), ("p3", 2)]


def test_equal_scores_go_to_the_lowest_index_in_any_order() -> None:
    ties = [sample(1, 0.5, round=r, seed=s) for r in (1, 2) for s in (0, 1, 2)]
    for order in itertools.permutations(ties):
        (best,) = pick_best(order)
        assert (best.round, best.seed) == (1, 0)


def test_equal_scores_of_one_round_go_to_the_lower_temperature_whatever_the_seed() -> None:
    ties = [sample(1, 0.5, seed=0, temperature=1.3), sample(1, 0.5, seed=1, temperature=0.7)]
    for order in itertools.permutations(ties):
        (best,) = pick_best(order)
        assert (best.temperature, best.seed) == (0.7, 1)


def test_same_text_under_two_prompts_stays_two() -> None:
    """Keyed by the prompt's id, never by its text."""
    twin = prompt(1)._replace(prompt_id="other")
    picked = pick_best([sample(1, 0.5), sample(1, 0.7, prompt=twin)])
    assert [s.prompt.prompt_id for s in picked] == ["p1", "other"]


def test_scores_of_two_versions_are_not_compared() -> None:
    other = sample(1, 0.7, seed=1, rm_versions={"helpfulness": "h2", "safety": "s1"})
    with pytest.raises(ConfigError, match="scored by 2 versions of the reward models"):
        pick_best([sample(1, 0.5), other])
    with pytest.raises(ConfigError, match=r"\('p1', 1, 'm', 1.0, 0\) has no combined score"):
        pick_best([sample(1, 0.5, scores={}, rm_versions={})])


def brute_force(scores: np.ndarray, n: int, statistic: object) -> float:
    subsets = [statistic(subset) for row in scores for subset in itertools.combinations(row, n)]  # type: ignore[operator]
    return float(np.mean(subsets))


@pytest.mark.parametrize("n", range(1, 8))
def test_expectations_equal_all_subsets(n: int) -> None:
    scores_PC = np.random.default_rng(0).normal(size=(3, 7))
    scores_PC[1, :4] = 0.25  # ties
    assert expected_max(scores_PC, n) == pytest.approx(brute_force(scores_PC, n, max), abs=1e-12)
    assert expected_median(scores_PC, n) == pytest.approx(brute_force(scores_PC, n, np.median), abs=1e-12)


@pytest.mark.parametrize(("n", "expected"), [(2, 0.5642), (5, 1.1630), (10, 1.5388), (100, 2.5076)])
def test_best_of_n_standard_normal_scores(n: int, expected: float) -> None:
    """Unbiased over 4,000 pools of 128; the error of the mean is below 0.01."""
    scores_PC = np.random.default_rng(1).normal(size=(4000, 128))
    assert expected_max(scores_PC, n) == pytest.approx(expected, abs=0.02)
    assert expected_median(scores_PC, n) == pytest.approx(0.0, abs=0.01)


def test_curves_begin_at_the_mean_and_end_at_the_extremes() -> None:
    scores_PC = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    curves = expected_curves(scores_PC)
    assert curves["max"] == pytest.approx([2.0, (2 + 6 + 6 + 0 + 3 + 3) / 6, 4.5])
    assert curves["median"] == pytest.approx([2.0, 2.0, 1.0])


def test_more_samples_than_drawn_is_refused() -> None:
    for n in (0, 4):
        with pytest.raises(ConfigError, match=f"n = {n} samples out of 3"):
            expected_max(np.zeros((1, 3)), n)


def test_pool_is_by_seed_and_as_wide_as_the_smallest() -> None:
    samples = [sample(1, 0.3, seed=2), sample(1, 0.1, seed=0), sample(1, 0.2, seed=1)]
    samples += [sample(2, 1.0, seed=0), sample(2, 2.0, seed=1)]
    assert pool_scores(samples).tolist() == [[0.1, 0.2], [1.0, 2.0]]
    with pytest.raises(ConfigError, match="no sample"):
        pool_scores([])


def test_temperature_with_the_highest_maximum_of_n() -> None:
    curves = {1.4: [0.0, 0.8], 0.6: [0.5, 0.6], 1.0: [0.3, 0.8]}
    assert best_temperature(curves, 1) == 0.6
    assert best_temperature(curves, 2) == 1.0  # of equals the lower


def test_kl_bound_against_the_exact_divergence() -> None:
    """Best of n of a continuous score has density n u^(n-1) on the rank u: KL = ln n - (n-1)/n."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 16):
        density = n * u ** (n - 1)
        assert kl_bound(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)
    assert kl_bound(1) == 0.0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)
