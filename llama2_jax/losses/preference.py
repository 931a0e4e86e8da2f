"""Losses of reward models over plain arrays, and their scores for display (Llama 2, section 3.2.2).

Ranking, eq. 1 and 2, of the score r_c of the chosen and r_r of the rejected response::

    - log sigmoid(r_c - r_r - m(rating))

Safety auxiliary loss, of each labelled response; the paper prints no formula (D27)::

    - y log sigmoid(r) - (1 - y) log sigmoid(-r),   y = 1 if the response is safe, 0 if not
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.shapes import check_shapes
from llama2_jax.structs import LossSums, Mean

MARGINS = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (0.0, 1 / 3, 2 / 3, 1.0),
    "large": (0.0, 1.0, 2.0, 3.0),
}
"""m(rating) for unsure, slightly better, better, significantly better (Table 27, RM-5)."""

SAFETY_THRESHOLD = 0.15
"""Of a displayed safety score: below it an answer counts as unsafe, with precision 0.89 and recall 0.55 in
the paper, and its safety score is what PPO sees (section 3.2.3)."""


def ranking_losses(chosen_B: jax.Array, rejected_B: jax.Array, margin_B: jax.Array) -> jax.Array:
    """Loss of each pair in nats, float32 (B,) (RM-3, RM-4)."""
    # (B, 1) minus (B,) would be (B, B), and the loss would look fine
    check_shapes("ranking_losses", chosen_B=chosen_B, rejected_B=rejected_B, margin_B=margin_B)
    difference_B = chosen_B.astype(jnp.float32) - rejected_B.astype(jnp.float32)
    return jax.nn.softplus(margin_B - difference_B)


def safety_losses(scores_BC: jax.Array, safe_BC: jax.Array) -> jax.Array:
    """Loss of each response in nats, float32 (B, C); 0 where the label is unknown (RM-6, D27).

    Args:
      safe_BC: 1 safe, 0 unsafe, -1 unknown.
    """
    check_shapes("safety_losses", scores_BC=scores_BC, safe_BC=safe_BC)
    scores_BC = scores_BC.astype(jnp.float32)
    losses_BC = jax.nn.softplus(jnp.where(safe_BC == 1, -scores_BC, scores_BC))
    return jnp.where(safe_BC >= 0, losses_BC, 0.0)


def preference_sums(
    scores_BC: jax.Array,
    margin_B: jax.Array,
    safe_BC: jax.Array,
    is_pair_B: jax.Array,
    *,
    safety_weight: float,
) -> LossSums:
    """Ranking loss plus ``safety_weight`` times the mean safety loss of the two responses, over pairs.

    A pair has safety labels on both responses or on none; without them it adds no safety loss. So the
    weight of a label does not depend on what else is in the batch.

    Args:
      scores_BC: of the chosen (0) and the rejected (1) response.
      is_pair_B: False for empty places of a row; they count nowhere.

    Returns:
      Means: ``accuracy`` (ties 0.5, D37), ``ranking_loss``, ``score_difference``, ``score``; of
      labelled responses also ``safety_loss`` and ``safety_accuracy`` (safe = score above 0, RM-11).
    """
    check_shapes(
        "preference_sums", scores_BC=scores_BC, margin_B=margin_B, safe_BC=safe_BC, is_pair_B=is_pair_B
    )
    scores_BC = jnp.where(is_pair_B[:, None], scores_BC, 0.0)
    safe_BC = jnp.where(is_pair_B[:, None], safe_BC, -1)
    chosen_B, rejected_B = scores_BC[:, 0], scores_BC[:, 1]
    ranking_B = jnp.where(is_pair_B, ranking_losses(chosen_B, rejected_B, margin_B), 0.0)
    safety_BC = safety_losses(scores_BC, safe_BC)
    right_B = jnp.where(is_pair_B, 0.5 * (1 + jnp.sign(chosen_B - rejected_B)), 0.0)
    called_safe_BC = jnp.where(safe_BC >= 0, (scores_BC > 0) == (safe_BC == 1), False)

    pairs, labels = _count(is_pair_B), _count(safe_BC >= 0)
    return LossSums(
        ranking_B.sum() + 0.5 * safety_weight * safety_BC.sum(),
        pairs,
        means={
            "accuracy": Mean(right_B.sum(), pairs),
            "ranking_loss": Mean(ranking_B.sum(), pairs),
            "score_difference": Mean((chosen_B - rejected_B).sum(), pairs),
            "score": Mean(scores_BC.sum(), 2 * pairs),
            "safety_loss": Mean(safety_BC.sum(), labels),
            "safety_accuracy": Mean(_count(called_safe_BC), labels),
        },
        totals={"pairs": pairs},
    )


def displayed(scores: Any) -> np.ndarray:
    """Displayed score in [0, 1] of raw scores: their sigmoid (RM-11), float64, of any shape, on the host."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(scores, np.float64)))  # never overflows


def _count(condition: jax.Array) -> jax.Array:
    return condition.astype(jnp.float32).sum()
