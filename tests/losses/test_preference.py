import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.losses.preference import MARGINS, displayed, preference_sums, ranking_losses, safety_losses

RNG = np.random.default_rng(0)
SCORES = RNG.normal(scale=2, size=(7, 2)).astype(np.float32)
MARGIN = np.array([0, 1, 2, 3, 1 / 3, 2 / 3, 0], np.float32)
SAFE = np.array([[1, 0], [1, 1], [0, 0], [-1, -1], [1, 0], [-1, -1], [0, 0]], np.int32)
IS_PAIR = np.array([1, 1, 1, 1, 1, 0, 0], bool)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_displayed_scores_are_sigmoids_of_any_size():
    logit = math.log(0.15 / (1 - 0.15))
    assert logit == pytest.approx(-1.7346, abs=1e-4)
    with np.errstate(all="raise"):
        found = displayed([0.0, logit, 800.0, -800.0, 1e4, -1e4])
    assert found == pytest.approx([0.5, 0.15, 1.0, 0.0, 1.0, 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("margin", "wanted"), [(0, 0.313262), (1 / 3, 0.414370), (2 / 3, 0.540306), (1, 0.693147), (3, 2.126928)]
)
def test_losses_of_a_difference_of_one(margin, wanted):
    found = ranking_losses(jnp.array([1.5]), jnp.array([0.5]), jnp.array([margin]))
    assert float(found[0]) == pytest.approx(wanted, abs=1e-6)


def test_scores_of_bfloat16_are_subtracted_in_float32():
    chosen, rejected = jnp.array([1.0], jnp.bfloat16), jnp.array([-(2.0**-9)], jnp.bfloat16)
    found = ranking_losses(chosen, rejected, jnp.zeros(1))  # the difference has more bits than bfloat16
    np.testing.assert_allclose(found, [-log_sigmoid(1 + 2**-9)], rtol=1e-6)


def test_margins_of_table_27():
    small = ["0", "0.333", "0.667", "1"]
    assert [f"{margin:.3g}" for margin in MARGINS["small"]] == small
    assert MARGINS["large"] == (0, 1, 2, 3)
    assert set(MARGINS["none"]) == {0}


def test_three_pairs_against_a_loop_not_all_against_all():
    chosen, rejected, margin = (RNG.normal(size=3) for _ in range(3))
    found = ranking_losses(*(jnp.asarray(x, jnp.float32) for x in (chosen, rejected, margin)))
    wanted = [-log_sigmoid(c - r - m) for c, r, m in zip(chosen, rejected, margin, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for shapes in [((3, 1), (3,)), ((3,), (3, 1))]:
        with pytest.raises(ValueError, match="rank 2; its suffix B needs rank 1"):
            ranking_losses(*(jnp.zeros(shape) for shape in shapes), jnp.zeros(3))


def test_extreme_scores_stay_finite_with_gradients_of_at_most_one():
    chosen, rejected = jnp.array([1e4, -1e4, 60.0]), jnp.array([-1e4, 1e4, 0.0])

    def total(chosen):
        return ranking_losses(chosen, rejected, jnp.zeros(3)).sum()

    np.testing.assert_allclose(ranking_losses(chosen, rejected, jnp.zeros(3)), [0, 2e4, 0], atol=1e-6)
    np.testing.assert_allclose(jax.grad(total)(chosen), [0, -1, 0], atol=1e-6)
    safety = safety_losses(jnp.array([[1e4, -1e4]]), jnp.array([[0, 0]]))
    np.testing.assert_allclose(safety, [[1e4, 0]])


def test_a_constant_added_to_all_scores_changes_the_ranking_loss_nowhere():
    chosen, rejected = (jnp.asarray(SCORES[:, i]) for i in range(2))
    np.testing.assert_allclose(
        ranking_losses(chosen + 5, rejected + 5, jnp.asarray(MARGIN)),
        ranking_losses(chosen, rejected, jnp.asarray(MARGIN)),
        rtol=1e-5,
    )


def test_a_score_of_zero_costs_ln_2_whatever_the_label_and_unknown_costs_nothing():
    found = safety_losses(jnp.zeros((1, 3)), jnp.array([[1, 0, -1]]))
    np.testing.assert_allclose(found, [[math.log(2), math.log(2), 0]], rtol=1e-6)
    # log(1 + e^2) and log(1 + e^-2)
    found = safety_losses(jnp.array([[2.0, 2.0]]), jnp.array([[0, 1]]))
    np.testing.assert_allclose(found, [[2.126928, 0.126928]], rtol=1e-5)


def loop(safety_weight):
    """Everything once more, pair by pair in float64."""
    ranking, safety, right, labels, difference = [], [], [], [], []
    for (c, r), margin, labels_of_pair, is_pair in zip(
        SCORES.astype(float), MARGIN, SAFE, IS_PAIR, strict=True
    ):
        if not is_pair:
            continue
        ranking.append(-log_sigmoid(c - r - float(margin)))
        difference.append(c - r)
        right.append(c > r)
        for score, label in zip((c, r), labels_of_pair, strict=True):
            if label >= 0:
                safety.append(-log_sigmoid(score if label else -score))
                labels.append((score > 0) == bool(label))
    return {
        "loss_sum": sum(ranking) + safety_weight * sum(safety) / 2,
        "accuracy": np.mean(right),
        "ranking_loss": np.mean(ranking),
        "score_difference": np.mean(difference),
        "score": SCORES[IS_PAIR].mean(),
        "safety_loss": np.mean(safety),
        "safety_accuracy": np.mean(labels),
    }


def sums(safety_weight, scores=SCORES, margin=MARGIN):
    return preference_sums(scores, margin, SAFE, IS_PAIR, safety_weight=safety_weight)


@pytest.mark.parametrize("safety_weight", [0.0, 1.0, 0.3])
def test_sums_equal_the_loop_in_float64(safety_weight):
    found, wanted = sums(safety_weight), loop(safety_weight)
    assert float(found.loss_sum) == pytest.approx(wanted.pop("loss_sum"), rel=1e-5)
    assert float(found.weight) == float(found.totals["pairs"]) == 5
    assert {name: float(mean.total / mean.weight) for name, mean in found.means.items()} == pytest.approx(
        wanted, rel=1e-5
    )


def test_empty_pairs_count_nowhere_even_if_their_scores_are_nan():
    scores, margin = SCORES.copy(), MARGIN.copy()
    scores[~IS_PAIR], margin[~IS_PAIR] = np.nan, np.nan
    for found, wanted in zip(
        jax.tree.leaves(sums(1.0, scores, margin)), jax.tree.leaves(sums(1.0)), strict=True
    ):
        assert float(found) == float(wanted)
    gradient = jax.grad(lambda scores: sums(1.0, scores, margin).loss_sum)(jnp.asarray(scores))
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[~IS_PAIR])


def test_a_tie_is_half_right():
    tied = preference_sums(
        jnp.zeros((2, 2)), jnp.zeros(2), jnp.full((2, 2), -1), jnp.ones(2, bool), safety_weight=1.0
    )
    assert float(tied.means["accuracy"].total) == 1.0
    assert float(tied.means["safety_loss"].weight) == 0.0


def test_safe_is_a_score_above_0():
    found = preference_sums(
        jnp.array([[0.1, -0.1]]), jnp.zeros(1), jnp.array([[1, 0]]), jnp.ones(1, bool), safety_weight=1.0
    )
    assert float(found.means["safety_accuracy"].total) == 2
