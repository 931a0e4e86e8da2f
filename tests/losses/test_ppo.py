import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.losses.ppo import entropy, kl_estimate, policy_sums, value_sums

ALL = jnp.ones((1, 1), bool)


def row(*values):
    return jnp.asarray([values], jnp.float32)


def policy(logprobs, behaviour, advantages, mask=None, **changes):
    mask = jnp.ones_like(logprobs, bool) if mask is None else mask
    return policy_sums(
        logprobs, behaviour, advantages, mask, **{"clip_range": 0.2, "ratio_tolerance": 1e-5, **changes}
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside the range: -A r, whose slope in log r is itself
        (1.5, 2.0, -2.4, 0.0),  # beyond it in the direction of the advantage: no more to gain
        (0.5, 2.0, -1.0, -1.0),  # beyond it against the advantage: still pulled back
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_clipped_objective_and_its_gradient(ratio, advantage, loss, slope):
    def total(logprobs):
        return policy(logprobs, row(-1.0), row(advantage)).loss_sum

    value, grad = jax.value_and_grad(total)(row(-1.0 + np.log(ratio)))
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(grad, [[slope]], rtol=1e-6, atol=1e-7)


def test_policy_metrics_by_hand():
    ratios = np.array([1.0, 1.1, 1.5, 0.5])
    sums = policy(row(*np.log(ratios)), row(0, 0, 0, 0), row(1, 1, 1, 1))
    means = {name: float(mean.total / mean.weight) for name, mean in sums.means.items()}
    assert means["ratio"] == pytest.approx(4.1 / 4, rel=1e-6)
    assert means["clip_fraction"] == 0.5
    assert means["approx_kl"] == pytest.approx((ratios - 1 - np.log(ratios)).mean(), rel=1e-6)
    assert (sums.totals["off_policy_tokens"], sums.totals["tokens"]) == (3, 4)


def test_value_loss_with_clip():
    # old 0, new 1, return 2, clip .2: 1/2 max(1, 1.8^2)
    sums = value_sums(row(1.0), row(0.0), row(2.0), ALL, clip_range=0.2)
    np.testing.assert_allclose(sums.loss_sum, 1.62, rtol=1e-6)
    assert sums.means["clip_fraction"].total == 1
    # with return -1 the clipped value .2 is nearer to it, so 1/2 (1 + 1)^2
    sums = value_sums(row(1.0), row(0.0), row(-1.0), ALL, clip_range=0.2)
    assert (sums.loss_sum, sums.means["clip_fraction"].total) == (2, 0)


def test_perfect_critic_has_no_loss():
    values = row(0.5, -3.0, 7.0)
    sums = value_sums(values, values, values, jnp.ones((1, 3), bool), clip_range=0.2)
    assert sums.loss_sum == 0
    assert sums.weight == sums.totals["tokens"] == 3


def test_tokens_are_counted_without_padding():
    values, mask = row(1, 2, 3, 4), jnp.asarray([[True, True, True, False]])
    assert policy(values, values, values, mask).totals["tokens"] == 3
    assert value_sums(values, values, values, mask, clip_range=0.2).totals["tokens"] == 3


def test_sums_give_the_mean_over_all_tokens_and_not_that_of_micro_batches():
    # losses [[1, 2, -], [3, 4, 5], [7, -, -]]: 22 / 6; micro-batches {1, 2} and {3, 4, 5, 6, 7}: 28 / 7
    for rows, wanted in (([[1, 2], [3, 4, 5], [7]], 22 / 6), ([[1, 2], [3, 4, 5, 6, 7]], 4.0)):
        parts = []
        for losses in rows:
            returns = jnp.sqrt(2 * row(*losses))
            zeros = jnp.zeros_like(returns)
            parts.append(value_sums(zeros, zeros, returns, zeros == 0, clip_range=0.2))
        total = sum(part.loss_sum for part in parts) / sum(part.weight for part in parts)
        np.testing.assert_allclose(total, wanted, rtol=1e-6)


def poisoned(values, mask):
    return jnp.where(mask, values, jnp.nan)


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.float32])
def test_a_mask_of_numbers_is_one_of_truth_values(dtype):
    # ratios 1 and 1.5 count, 2 does not: -1 - 1.2, one token off the policy
    mask = jnp.asarray([[1, 1, 0]], dtype)
    sums = policy(row(*np.log([1, 1.5, 2])), row(0, 0, 0), row(1, 1, 1), mask)
    np.testing.assert_allclose(sums.loss_sum, -2.2, rtol=1e-6)
    assert (sums.totals["off_policy_tokens"], sums.weight) == (1, 2)


def test_nan_in_masked_slots_changes_nothing():
    draw = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    mask = jnp.arange(5) < jnp.asarray([[5], [2], [0]])

    def losses(arrays):
        lp, old, advantages, returns = arrays
        one, two = policy(lp, old, advantages, mask), value_sums(lp, old, returns, mask, clip_range=0.2)
        three = kl_estimate(lp, old, mask, estimator="k2").sum()
        return one.loss_sum + two.loss_sum + three, (one, two)

    clean = jax.value_and_grad(losses, has_aux=True)(list(draw))
    dirty = jax.value_and_grad(losses, has_aux=True)([poisoned(array, mask) for array in draw])
    for found, wanted in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert all(np.all(np.asarray(grad)[~np.asarray(mask)] == 0) for grad in dirty[1])
    assert np.any(np.asarray(dirty[1][0]) != 0)


P, Q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])


@pytest.mark.parametrize(("estimator", "deviation"), [("k1", 0.3911), ("k2", 0.0543), ("k3", 0.0759)])
def test_kl_estimators_over_samples_of_the_policy(estimator, deviation):
    values = kl_estimate(row(*np.log(P)), row(*np.log(Q)), jnp.ones((1, 3), bool), estimator=estimator)[0]
    mean = float(P @ values)
    assert float(np.sqrt(P @ (values - mean) ** 2)) == pytest.approx(deviation, abs=5e-5)
    if estimator != "k2":  # biased
        assert mean == pytest.approx(0.0851228, abs=1e-6)
    if estimator == "k1":  # no clamp: that would be 0.2355
        assert float(values.min()) < 0


def test_unknown_estimator_is_refused():
    with pytest.raises(ConfigError, match="kl estimator is 'k4'; choose one of 'k1', 'k2', 'k3'"):
        kl_estimate(row(0.0), row(0.0), ALL, estimator="k4")


REFERENCE = np.log(np.full(4, 0.25)).astype(np.float32)


def expected_gradient(logits, placement, estimator):
    """Over every answer of one token, weighted with its probability, through the losses that train."""
    probs = jax.nn.softmax(logits)
    behaviour = jax.nn.log_softmax(logits)[None]
    mask = jnp.ones((1, 4), bool)

    def loss(logits):
        logprobs = jax.nn.log_softmax(logits)[None]
        if placement == "loss":
            return (probs * kl_estimate(logprobs, REFERENCE[None], mask, estimator=estimator)).sum()
        reward = -kl_estimate(behaviour, REFERENCE[None], mask, estimator=estimator)
        return policy(logprobs, behaviour, probs * reward).loss_sum

    return np.asarray(jax.grad(loss)(logits), np.float64)


def exact_gradient(logits):
    def kl(logits):
        return (jax.nn.softmax(logits) * (jax.nn.log_softmax(logits) - REFERENCE)).sum()

    return np.asarray(jax.grad(kl)(logits), np.float64)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("placement", [("reward", "k1"), ("loss", "k2")])
@pytest.mark.parametrize("shift", [0.3, 1.0, -1.0])
def test_placements_with_the_gradient_of_the_divergence(placement, shift):
    logits = jnp.asarray([shift, 0.2, 0.0, -0.4])
    np.testing.assert_allclose(expected_gradient(logits, *placement), exact_gradient(logits), atol=2e-7)


def test_answers_of_two_tokens():
    """k1 in the reward knows what the first token does to the divergence of the second; k2 does not."""
    logits = jnp.asarray([0.4, 2.0, -0.6])  # of token 1 first, then after 0, then after 1
    reference = jnp.asarray([0.1, -1.0, -0.5])
    answers = jnp.asarray([(0, 0), (0, 1), (1, 0), (1, 1)])
    mask = jnp.ones((4, 2), bool)

    def logprobs(logits):
        at = jnp.stack([jnp.zeros(4, int), 1 + answers[:, 0]], axis=1)
        return jax.nn.log_sigmoid(jnp.where(answers == 1, logits[at], -logits[at]))

    def exact(logits):  # of whole answers
        return (jnp.exp(logprobs(logits).sum(1)) * (logprobs(logits) - logprobs(reference)).sum(1)).sum()

    behaviour = logprobs(logits)
    probs = jnp.exp(behaviour.sum(1, keepdims=True))
    k1 = kl_estimate(behaviour, logprobs(reference), mask, estimator="k1")
    to_go = jnp.cumsum(k1[:, ::-1], axis=1)[:, ::-1]
    in_reward = jax.grad(lambda x: policy(logprobs(x), behaviour, -probs * to_go).loss_sum)(logits)
    np.testing.assert_allclose(in_reward, jax.grad(exact)(logits), atol=1e-6)

    def in_loss(logits):
        return (probs * kl_estimate(logprobs(logits), logprobs(reference), mask, estimator="k2")).sum()

    p = jax.nn.sigmoid(logits)
    reached = jnp.asarray([1, 1 - p[0], p[0]])  # d KL / d logit = p (1 - p) (logit - reference's), by hand
    next_tokens = reached * p * (1 - p) * (logits - reference)
    np.testing.assert_allclose(jax.grad(in_loss)(logits), next_tokens, atol=1e-6)
    assert in_reward[0] < -0.1 < 0.05 < next_tokens[0]
    np.testing.assert_allclose(next_tokens[1:], in_reward[1:], atol=1e-6)


@pytest.mark.parametrize(
    ("shift", "ratio", "sign"),
    [
        (0.05, 0.0121, 1), (0.3, 0.0605, 1), (1.0, 0.0963, 1),
        (-0.05, 0.0129, -1), (-0.3, 0.0906, -1), (-1.0, 0.4467, -1),
    ],
)  # fmt: skip
def test_k3_in_the_reward_has_another_gradient(shift, ratio, sign):
    logits = jnp.asarray([shift, 0.0, 0.0, 0.0])
    found, exact = expected_gradient(logits, "reward", "k3"), exact_gradient(logits)
    assert np.linalg.norm(found) / np.linalg.norm(exact) == pytest.approx(ratio, abs=1e-4)
    assert cosine(found, exact) == pytest.approx(sign, abs=1e-3)


def test_k1_in_the_loss_has_no_gradient():
    logits = jnp.asarray([1.0, 0.2, 0.0, -0.4])
    np.testing.assert_allclose(expected_gradient(logits, "loss", "k1"), 0, atol=1e-7)


def test_entropy():
    np.testing.assert_allclose(entropy(jnp.zeros((1, 1, 8))), [[np.log(8)]], rtol=1e-6)
    np.testing.assert_allclose(entropy(jnp.log(row(*P))[None]), [[-(P * np.log(P)).sum()]], rtol=1e-6)
    np.testing.assert_allclose(entropy(jnp.array([[[0.0, 0.0, -np.inf]]])), [[np.log(2)]], rtol=1e-6)


def test_the_entropy_of_bfloat16_is_float32():
    found = entropy(jnp.array([[[1.0, 2.0, 3.0]]], jnp.bfloat16))
    p = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [[-(p * np.log(p)).sum()]], rtol=1e-5)
