import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.rlhf.advantages import gae, whiten
from llama2_jax.rlhf.rewards import combine, kl_penalty, on_last_token, without_eos


def logit(p):
    p = np.asarray(p, np.float64)
    return np.log(p / (1 - p))


# Rows (R_s, R_h, tag): nothing special, unsafe, tagged, safe enough.
SAFETY = logit([0.9, 0.1, 0.8, 0.5])
HELPFULNESS = logit([0.2, 0.95, 0.7, 0.6])
TAGS = np.array([False, False, True, False])


def test_piecewise_reward_of_raw_scores():
    found = combine(SAFETY, HELPFULNESS, TAGS)
    np.testing.assert_allclose(found, [-1.38629, -2.19722, 1.38629, 0.40547], atol=1e-5)
    whitened = whiten(found, np.ones(4, bool)).values
    np.testing.assert_allclose(whitened, [-0.66214, -1.23437, 1.29431, 0.60220], atol=1e-5)


def test_the_threshold_is_a_probability_and_strict():
    at = np.float32(np.log(0.15 / 0.85))  # -1.7346
    just = np.array([at, np.nextafter(at, np.float32(-9))])
    np.testing.assert_array_equal(combine(just, np.array([5.0, 5.0]), np.zeros(2, bool)), [5.0, just[1]])
    # as a raw score, 0.1 is above the threshold of -1.73
    assert float(combine(np.array([0.1]), np.array([5.0]), np.array([False]))[0]) == 5.0


def test_a_saturated_score_stays_finite():
    assert float(combine(np.array([60.0]), np.array([0.0]), np.array([True]))[0]) == 60.0


def test_threshold_outside_0_to_1_is_refused():
    with pytest.raises(ConfigError, match="threshold = -1.7346 is a probability"):
        combine(SAFETY, HELPFULNESS, TAGS, threshold=-1.7346)


def test_score_lands_on_the_last_token():
    placed = np.asarray(on_last_token(np.array([0.7, -2.0, 3.0]), np.array([4, 1, 2]), num_tokens=4))
    assert placed.argmax(axis=1)[0] == 3
    np.testing.assert_array_equal(placed, np.float32([[0, 0, 0, 0.7], [-2, 0, 0, 0], [0, 3, 0, 0]]))
    assert placed.dtype == np.float32


def test_a_score_one_slot_late_would_be_damped():
    rewards = np.array([[-0.01, 0.02, -0.03, 0, 0]])
    values = np.array([[0.5, 0.4, 0.3, 0.2, 0.1]])
    mask = np.ones((1, 5), bool)
    late = rewards + on_last_token(np.array([1.0]), np.array([5]), num_tokens=5)
    found = gae(late, values, mask, discount=1.0, gae_lambda=0.95).advantages_BC
    np.testing.assert_allclose(found, [[0.343993, 0.477887, 0.58725, 0.755, 0.9]], atol=1e-6)
    right = rewards + on_last_token(np.array([1.0]), np.array([4]), num_tokens=5)
    found = gae(right, values, np.arange(5)[None] < 4, discount=1.0, gae_lambda=0.95).advantages_BC
    np.testing.assert_allclose(found[:, :4], [[0.382575, 0.5185, 0.63, 0.8]], atol=1e-6)


def test_kl_penalty_sums_to_beta_times_the_kl_of_the_answer():
    policy, reference = np.log([[0.5, 0.25, 0.9]]), np.log([[0.25, 0.5, np.nan]])
    found = np.asarray(kl_penalty(policy, reference, np.array([[True, True, False]]), kl_coef=0.1))
    np.testing.assert_allclose(found, 0.1 * np.log([[0.5, 2.0, 1.0]]), atol=1e-7)  # signed, not clamped


@pytest.mark.parametrize(
    ("handling", "wanted"), [("none", [1.0, -0.5]), ("penalty", [1.0, -2.5]), ("replace", [1.0, 2.0])]
)
def test_answers_without_end(handling, wanted):
    stopped = jnp.array([True, False])
    found = without_eos(jnp.array([1.0, -0.5]), stopped, handling=handling, value=2.0)
    np.testing.assert_array_equal(found, wanted)


def test_unknown_handling_is_refused():
    with pytest.raises(ConfigError, match="missing_eos is 'drop'"):
        without_eos(jnp.zeros(1), jnp.ones(1, bool), handling="drop", value=0.0)
