"""Checks while PPO runs: what is silently wrong elsewhere stops the run here, with the numbers.

Each check is about a fact that must hold if everything before it was done right, so a failure is a
mistake of code, files or machine, except for the guard's, which says that the reward is being
hacked. What may be meant, as a policy that moves fast, is said and stops nothing (``symptoms``).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import UserError
from llama2_jax.structs import Params

# Largest error of ratios that are 1 but for rounding: the same rows in batches of other sizes. With the 30
# layers of SmolLM2-135M it is 6e-5 in float32 on a CPU; another temperature or dtype makes it 0.01 and more.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
START_TOLERANCE = 1e-6  # the same program on the same weights: exactly 0 is expected
SAMPLER_TOLERANCE = 0.01  # mean |difference of probabilities|; below 0.005 is healthy
MOST_CLIPPED = 0.5  # of the tokens of an iteration
LEAST_ENTROPY = 0.1  # of that of the first iteration
MOST_PENALTY = 3.0  # of the divergence, in standard deviations of the score


class DoctorError(UserError, RuntimeError):
    """PPO cannot go on: the message says which fact does not hold, with numbers, and what to look at."""


def check_scores(name: str, scores_B: np.ndarray, prompt_ids: Sequence[str]) -> None:
    """Scores of a reward model are numbers, one for each answer; else nothing may be learned from them."""
    if np.shape(scores_B) != (len(prompt_ids),):
        raise DoctorError(
            f"{name}: scores have shape {np.shape(scores_B)}, there are {len(prompt_ids)} answers; give one "
            "number for each"
        )
    bad = np.flatnonzero(~np.isfinite(scores_B))
    if bad.size:
        raise DoctorError(
            f"{name}: {bad.size} of {len(scores_B)} scores are not finite, the first is {scores_B[bad[0]]} "
            f"for prompt {prompt_ids[bad[0]]!r}; nothing was learned from them, look at the reward model"
        )


def check_start(largest_log_ratio: float) -> None:
    """Before the first update policy and reference are the same model: KL 0 at every token."""
    if not largest_log_ratio <= START_TOLERANCE:
        raise DoctorError(
            f"before the first update policy and reference differ by up to {largest_log_ratio:.3g} nats at a "
            f"token, allowed is {START_TOLERANCE}; they must be the same weights in the same dtype and "
            "layout, scored at the same temperature"
        )


def check_first_mini_batch(off_policy_tokens: int, *, tolerance: float) -> None:
    """In the first mini-batch nothing was learned yet: every ratio is 1."""
    if off_policy_tokens:
        raise DoctorError(
            f"{off_policy_tokens} tokens of the first mini-batch have a ratio to the behaviour policy that "
            f"differs from 1 by more than {tolerance}; the behaviour log-probabilities are not those of the "
            "policy that is trained"
        )


def check_reference(now: int, before: int) -> None:
    """The reference never moves."""
    if now != before:
        raise DoctorError(
            f"the checksum of the reference policy is {now:08x}, it was {before:08x} when the run started; "
            "its weights were changed or its checkpoint replaced: start in a new workdir"
        )


def check_sampler_weights(sampler: int, trainer: int) -> None:
    """The sampler draws from the policy as it is now."""
    if sampler != trainer:
        raise DoctorError(
            f"the checksum of the sampler's weights is {sampler:08x}, the policy's is {trainer:08x}; "
            "the answers would be another model's: start again from the last checkpoint; if it stays, set "
            "config.sampler_mesh as config.mesh"
        )


def check_sampler_logprobs(mean_probability_error: float) -> None:
    """Sampler and trainer give the same tokens the same probability."""
    if not mean_probability_error <= SAMPLER_TOLERANCE:
        raise DoctorError(
            f"sampler and trainer differ by {mean_probability_error:.4f} in the mean probability of sampled "
            f"tokens, allowed is {SAMPLER_TOLERANCE}; compare their dtype, kernels and temperature"
        )


def check_guard(
    *, reward: float, first_reward: float, guard: float, first_guard: float, largest_drop: float
) -> None:
    """The reward model that nothing is trained on must not fall while the reward rises (RM-18)."""
    drop = first_guard - guard
    if reward > first_reward and drop > largest_drop:
        raise DoctorError(
            f"on held-out prompts the reward rose from {first_reward:.3f} to {reward:.3f} while the guard's "
            f"score fell by {drop:.3f} to {guard:.3f}, allowed is {largest_drop}: the policy exploits the "
            "reward models; take an earlier checkpoint, raise ppo.kl_coef, or train new reward models"
        )


def symptoms(metrics: Mapping[str, float], first: Mapping[str, float]) -> dict[str, str]:
    """What the metrics of an iteration say of a run that goes astray, by the name of the metric.

    Args:
      first: those of an earlier iteration, the first that is known.
    """
    found = {}
    if (clipped := metrics["ppo/clip_fraction"]) > MOST_CLIPPED:
        found["ppo/clip_fraction"] = (
            f"{clipped:.0%} of the tokens have a ratio outside the clip range: the policy moves too far in "
            "an iteration; lower optimizer.learning_rate, or take fewer mini-batches"
        )
    if (entropy := metrics["ppo/entropy"]) < LEAST_ENTROPY * first["ppo/entropy"]:
        found["ppo/entropy"] = (
            f"the entropy fell from {first['ppo/entropy']:.3g} to {entropy:.3g} nats per token: answers "
            "are becoming one and the same; read samples.jsonl, raise ppo.kl_coef or lower the learning rate"
        )
    sigma = metrics["ppo/sigma"]
    penalty = metrics["ppo/beta_sigma"] * metrics["ppo/kl_per_answer"]
    if 0 < MOST_PENALTY * sigma < penalty:
        found["ppo/kl_per_answer"] = (
            f"the divergence from the reference, {metrics['ppo/kl_per_answer']:.3g} nats per answer, costs "
            f"{penalty / sigma:.1f} standard deviations of the score, more than a better answer can win; "
            "lower optimizer.learning_rate, or go back to an earlier checkpoint"
        )
    return found


def checksum(params: Params) -> int:
    """32 bits that depend on every bit of every leaf and its place; the same on any mesh."""
    return int(jax.jit(checksum_bits)(params))


def checksum_bits(params: Params) -> jax.Array:
    """``checksum`` as a function to compile, uint32."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(params):  # integers wrap around: their sum is exact in any order
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for dim, size in enumerate(leaf.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim)
        leaf_sum = (bits.astype(jnp.uint32) * (2 * place + 1)).sum(dtype=jnp.uint32)
        total = total * jnp.uint32(1_000_003) + leaf_sum
    return total
