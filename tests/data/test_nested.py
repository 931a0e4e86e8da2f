import itertools

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.nested import nested_subsets

SHARES = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)


def test_sizes_are_the_shares_to_the_nearest_whole_number() -> None:
    # 0, 1.23, 12.3, 30.75, 61.5, 123
    assert [len(subset) for subset in nested_subsets(range(123), SHARES, seed=0)] == [0, 1, 12, 31, 62, 123]
    # the paper's: 0.1 million
    sizes = [len(subset) for subset in nested_subsets(range(100_000), SHARES, seed=0)]
    assert sizes == [0, 1_000, 10_000, 25_000, 50_000, 100_000]


@pytest.mark.parametrize("seed", [0, 1])
def test_each_subset_holds_all_smaller_ones_in_the_order_given(seed: int) -> None:
    subsets = nested_subsets(range(200), SHARES, seed=seed)
    for smaller, larger in itertools.pairwise(subsets):
        assert set(smaller) < set(larger)
        assert larger == sorted(set(larger))
    assert subsets[-1] == list(range(200))


def test_which_items_are_a_matter_of_the_seed_and_not_of_the_place() -> None:
    chosen = {tuple(nested_subsets(range(40), (0.25,), seed=seed)[0]) for seed in (0, 0, 1, 2)}
    assert len(chosen) == 3
    picks = [item for seed in range(400) for item in nested_subsets(range(40), (0.25,), seed=seed)[0]]
    counts = [picks.count(item) for item in range(40)]  # 100 each, standard deviation 8.7
    assert 60 < min(counts) <= max(counts) < 140


def test_a_subset_does_not_depend_on_the_other_shares() -> None:
    assert nested_subsets(range(50), (0.2, 0.4), seed=3)[1] == nested_subsets(range(50), (0.4,), seed=3)[0]


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (0.5, 0.1), (-0.1, 1.0), (0.0, 1.5)])
def test_shares_that_do_not_rise_within_zero_and_one_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="must rise, from 0 or more to at most 1"):
        nested_subsets(range(10), shares, seed=0)


@pytest.mark.parametrize("shares", [("a",), (0.5, "1"), (None, 1.0)])
def test_shares_that_are_no_numbers_are_refused(shares: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match="must be numbers"):
        nested_subsets(range(10), shares, seed=0)  # type: ignore[arg-type]


def test_a_share_that_would_be_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a share of 0\.01 of 49 items is none"):
        nested_subsets(range(49), (0.0, 0.01), seed=0)
