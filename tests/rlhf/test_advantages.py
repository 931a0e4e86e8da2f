import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llama2_jax.rlhf.advantages import explained_variance, gae, masked_moments, whiten

GAE = functools.partial(gae, discount=1.0, gae_lambda=0.95)
# observations of another speaker in between (rewards and values there mean nothing)
MASK = np.array([[0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0]], bool)
REWARDS = np.array([[0, 0, 0.1, 0.1, 0.1, 0, 0, 0.1, 1, 0, 0]])
VALUES = np.array([[0, 0, 4, 5, 6, 0, 0, 7, 9, 0, 0.0]])
ADVANTAGES = [-1.577813, -2.81875, -4.125, -5.5, -8]


def ones(count):
    return np.ones((1, count), bool)


def test_gae_by_hand():
    found = GAE(np.array([[-0.01, 0.02, -0.03, 1]]), np.array([[0.5, 0.4, 0.3, 0.2]]), ones(4))
    np.testing.assert_allclose(found.advantages_BC, [[0.382575, 0.5185, 0.63, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(found.returns_BC, [[0.882575, 0.9185, 0.93, 1]], rtol=1e-6)


def test_gae_with_a_tail_that_is_masked_or_leaks():
    rewards = np.array([[-0.01, 0.02, -0.03, 1, 0, 0]])
    values = np.array([[0.5, 0.4, 0.3, 0.2, 1.2, 1.0]])
    masked = GAE(rewards, values, np.arange(6)[None] < 4)
    assert float(masked.advantages_BC[0, 0]) == pytest.approx(0.382575, abs=1e-6)
    assert float(GAE(rewards, values, ones(6)).advantages_BC[0, 0]) == pytest.approx(0.474743, abs=1e-6)


def test_gae_skips_observations():
    found = GAE(REWARDS, VALUES, MASK)
    np.testing.assert_allclose(np.asarray(found.advantages_BC)[MASK], ADVANTAGES, rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(found.returns_BC)[MASK], [2.422187, 2.18125, 1.875, 1.5, 1], rtol=2e-6
    )
    assert not np.asarray(found.advantages_BC)[~MASK].any()


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_garbage_where_masked_changes_nothing(discount, gae_lambda):
    run = functools.partial(gae, discount=discount, gae_lambda=gae_lambda)
    garbage = run(np.where(MASK, REWARDS, np.nan), np.where(MASK, VALUES, np.inf), MASK)
    squeezed = run(REWARDS[MASK][None], VALUES[MASK][None], ones(5))
    for found, wanted in zip(garbage, squeezed, strict=True):
        np.testing.assert_array_equal(np.asarray(found)[MASK], np.asarray(wanted)[0])


def test_longer_padding_changes_nothing():
    draw = np.random.default_rng(0)
    rewards, values = draw.normal(size=(2, 3, 5))
    mask = np.arange(5) < np.array([[5], [2], [3]])
    wide = [np.pad(x, [(0, 0), (0, 15)], constant_values=fill) for x, fill in ((rewards, 9), (values, 7))]
    wide_mask = np.pad(mask, [(0, 0), (0, 15)])
    short, long = GAE(rewards, values, mask), GAE(*wide, wide_mask)
    np.testing.assert_array_equal(short.advantages_BC, long.advantages_BC[:, :5])
    np.testing.assert_allclose(
        whiten(short.advantages_BC, mask).values,
        whiten(long.advantages_BC, wide_mask).values[:, :5],
        atol=1e-6,
    )


def test_an_answer_that_was_cut_off_may_go_on_from_an_estimate():
    ended = GAE(np.array([[1.0]]), np.array([[0.2]]), ones(1))
    cut = GAE(np.array([[1.0]]), np.array([[0.2]]), ones(1), final_values_B=jnp.array([0.5]))
    assert float(ended.advantages_BC[0, 0]) == pytest.approx(0.8)
    assert float(cut.advantages_BC[0, 0]) == pytest.approx(1.3)


def test_gae_is_the_sum_of_discounted_errors():
    rewards, values = np.random.default_rng(1).normal(size=(2, 1, 6))
    found = gae(rewards, values, ones(6), discount=0.9, gae_lambda=0.7).advantages_BC[0]
    following = np.append(values[0, 1:], 0)
    errors = rewards[0] + 0.9 * following - values[0]
    for t in range(6):
        wanted = sum((0.9 * 0.7) ** k * errors[t + k] for k in range(6 - t))
        assert float(found[t]) == pytest.approx(wanted, abs=1e-5)


def test_moments_are_those_of_the_population():
    mean, variance = masked_moments(np.arange(1.0, 5), np.array([0, 1, 1, 0], bool))
    assert (float(mean), float(variance)) == (2.5, 0.25)  # with n - 1: 0.5
    mask = np.array([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
    mean, variance = masked_moments(np.arange(1.0, 11).reshape(2, 5), mask)
    assert float(mean) == pytest.approx(6.0)
    assert float(variance) * 8 / 7 == pytest.approx(10.285715, abs=1e-5)


def test_whitened_advantages_of_the_dialogue():
    found = np.asarray(whiten(GAE(REWARDS, VALUES, MASK).advantages_BC, MASK).values)[MASK]
    with_n_minus_1 = [1.137201, 0.637928, 0.112377, -0.440834, -1.446672]
    np.testing.assert_allclose(found * np.sqrt(4 / 5), with_n_minus_1, atol=2e-6)
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert found.var() == pytest.approx(1, abs=1e-6)


def test_whitening_without_shift_keeps_the_mean():
    values = np.arange(1.2, 2.05, 0.1).reshape(3, 3)
    found = whiten(values, np.ones((3, 3), bool), shift_mean=False)
    np.testing.assert_allclose(found.values[0], [0.050807, 0.438105, 0.825403], atol=2e-6)
    assert float(np.mean(found.values)) == pytest.approx(1.6, abs=1e-6)


@pytest.mark.parametrize(("shift_mean", "wanted"), [(True, 0.0), (False, 0.7)])
@pytest.mark.parametrize("count", [1, 8])
def test_equal_values_stay_finite(shift_mean, wanted, count):
    found = whiten(np.full(count, 0.7), np.ones(count, bool), shift_mean=shift_mean)
    np.testing.assert_allclose(found.values, wanted, atol=1e-3)
    assert float(found.sigma) == pytest.approx(0, abs=1e-6)


def test_integers_are_not_truncated():
    found = whiten(np.array([0, 1]), np.ones(2, bool)).values
    np.testing.assert_allclose(found, [-1, 1], rtol=1e-6)
    half = GAE(np.array([[0, 1]]), np.array([[0.5, 0.25]]), ones(2)).advantages_BC
    assert float(half[0, 1]) == 0.75


def test_rows_without_tokens_change_nothing():
    scores, mask = np.array([1.0, 2.0, 4.0, 100.0]), np.array([1, 1, 1, 0], bool)
    np.testing.assert_array_equal(whiten(scores, mask).values[:3], whiten(scores[:3], mask[:3]).values)


def test_whitening_is_over_all_devices():
    draw = np.random.default_rng(2)
    # every device has other statistics: whitening on each alone would give another result
    values = (draw.normal(size=(16, 6)) + 10 * np.arange(16)[:, None]).astype(np.float32)
    mask = draw.random((16, 6)) < 0.6
    mesh = jax.make_mesh((8,), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    arrays = [jax.device_put(array, split) for array in (values, mask)]
    assert len(arrays[0].addressable_shards) == 8
    found = jax.jit(whiten)(*arrays)
    wanted = jax.jit(whiten)(values, mask)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_explained_variance():
    returns, mask = np.array([[1.0, 2.0, 3.0, np.nan]]), np.array([[1, 1, 1, 0]], bool)
    assert float(explained_variance(returns, returns, mask)) == 1
    assert float(explained_variance(np.full((1, 4), 2.0), returns, mask)) == pytest.approx(0)
    assert float(explained_variance(-returns, returns, mask)) == pytest.approx(-3)
