"""From scores of reward models to rewards per token (Llama 2, section 3.2.3, eq. 4).

A *score* is the raw scalar of a reward model for a whole answer. A *reward* is what PPO maximises:
two scores combined (PPO-3), whitened over the global batch (D46), put on the last token of the
answer, minus beta times the KL divergence of every token (D45).
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from llama2_jax.config import require, require_choice
from llama2_jax.losses.ppo import kl_estimate
from llama2_jax.losses.preference import SAFETY_THRESHOLD
from llama2_jax.shapes import check_shapes

MISSING_EOS = ("none", "penalty", "replace")


def combine(
    safety_B: jax.Array,
    helpfulness_B: jax.Array,
    is_safety_B: jax.Array,
    *,
    threshold: float = SAFETY_THRESHOLD,
) -> jax.Array:
    """The safety score if the prompt is tagged or the answer looks unsafe, else the helpfulness score::

      R_c = R_s  if is_safety or sigmoid(R_s) < threshold,  else R_h

    Raw scores in and out: LOGIT of the paper's sigmoid scores is the raw score, which cannot
    saturate (D47). The threshold, a probability, is compared as its logit, the same thing.

    Args:
      is_safety_B: bool, the tag that prompts carry beforehand (PPO-4).
    """
    require(0 < threshold < 1, f"threshold = {threshold} is a probability; it must lie between 0 and 1")
    check_shapes("combine", safety_B=safety_B, helpfulness_B=helpfulness_B, is_safety_B=is_safety_B)
    safety_B = jnp.asarray(safety_B, jnp.float32)
    is_unsafe_B = safety_B < math.log(threshold / (1 - threshold))
    return jnp.where(
        jnp.asarray(is_safety_B) | is_unsafe_B, safety_B, jnp.asarray(helpfulness_B, jnp.float32)
    )


def reward_of(
    scores: Mapping[str, jax.Array], is_safety_B: jax.Array, *, threshold: float = SAFETY_THRESHOLD
) -> jax.Array:
    """``combine`` of scores by the kind of the model; without a safety model the helpfulness score."""
    if "safety" not in scores:
        return jnp.asarray(scores["helpfulness"], jnp.float32)
    return combine(scores["safety"], scores["helpfulness"], is_safety_B, threshold=threshold)


def without_eos(rewards_B: jax.Array, stopped_B: jax.Array, *, handling: str, value: float) -> jax.Array:
    """Rewards of whole answers, where those that no stop token ended are treated specially.

    Args:
      rewards_B: whitened, so that ``value`` is in standard deviations of the batch.
      stopped_B: bool, a stop token (of any id) ended the answer.
      handling: "none" leaves them, "penalty" subtracts ``value``, "replace" puts ``value`` instead.
    """
    require_choice("missing_eos", handling, MISSING_EOS)
    if handling == "none":
        return rewards_B
    otherwise_B = rewards_B - value if handling == "penalty" else jnp.full_like(rewards_B, value)
    return jnp.where(stopped_B, rewards_B, otherwise_B)


def on_last_token(rewards_B: jax.Array, lengths_B: jax.Array, *, num_tokens: int) -> jax.Array:
    """Rewards of whole answers as rewards per token, float32 (B, C): all on token ``length - 1``.

    That is the stop token of a finished answer. One slot later, GAE would damp it by lambda.
    """
    is_last_BC = jnp.arange(num_tokens) == jnp.asarray(lengths_B)[:, None] - 1
    return jnp.where(is_last_BC, jnp.asarray(rewards_B, jnp.float32)[:, None], 0.0)


def kl_penalty(
    behaviour_logprobs_BC: jax.Array, reference_logprobs_BC: jax.Array, mask_BC: jax.Array, *, kl_coef: float
) -> jax.Array:
    """-beta (log pi - log pi_0) of every token (PPO-2, D45): k1, whose policy gradient is exact."""
    k1_BC = kl_estimate(behaviour_logprobs_BC, reference_logprobs_BC, mask_BC, estimator="k1")
    return -kl_coef * k1_BC
