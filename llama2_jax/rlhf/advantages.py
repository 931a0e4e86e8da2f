"""From rewards per token to advantages: GAE with a mask, and whitening over the global batch.

Variances are *population* variances (divided by n) everywhere in PPO; some code bases divide by
n - 1. Under ``jit`` the sums run over the rows of all devices, so nothing here depends on the mesh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llama2_jax.shapes import check_shapes

EPSILON = 1e-8  # in the variance, so that equal values give 0 and not 0/0


class Whitened(NamedTuple):
    """Whitened values (0 where masked) and what they were divided by."""

    values: jax.Array
    mean: jax.Array
    sigma: jax.Array  # standard deviation


class Advantages(NamedTuple):
    """Both 0 where masked."""

    advantages_BC: jax.Array
    returns_BC: jax.Array  # advantages + values, before any whitening


def whiten(values: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> Whitened:
    """(x - mean) / sigma over the slots where ``mask`` is True; without the shift the mean stays.

    Equal values, or a single one, have no deviation: they give 0 (or, unshifted, stay as they are).
    """
    values = jnp.where(mask, jnp.asarray(values, jnp.float32), 0.0)
    mean, variance = masked_moments(values, mask)
    whitened = (values - mean) * jax.lax.rsqrt(variance + EPSILON)
    if not shift_mean:
        whitened = whitened + mean
    return Whitened(jnp.where(mask, whitened, 0.0), mean, jnp.sqrt(variance))


def masked_moments(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance where ``mask`` is True; 0 and 0 if it is nowhere."""
    values = jnp.where(mask, jnp.asarray(values, jnp.float32), 0.0)
    count = jnp.maximum(jnp.asarray(mask, jnp.float32).sum(), 1.0)
    mean = values.sum() / count
    return mean, jnp.where(mask, jnp.square(values - mean), 0.0).sum() / count


def gae(
    rewards_BC: jax.Array,
    values_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    discount: float,
    gae_lambda: float,
    final_values_B: jax.Array | float = 0.0,
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the unmasked tokens of a row::

      delta_t = r_t + discount * v_{t+1} - v_t
      A_t     = delta_t + discount * gae_lambda * A_{t+1}

    t + 1 is the next *unmasked* token: padding after the end and tokens of others in between are
    passed over, whatever they hold.

    Args:
      final_values_B: the value after the last token: 0 where the answer ended, an estimate where it
        was only cut off.
    """
    check_shapes("gae", rewards_BC=rewards_BC, values_BC=values_BC, mask_BC=mask_BC)
    rewards_BC = jnp.where(mask_BC, jnp.asarray(rewards_BC, jnp.float32), 0.0)
    values_BC = jnp.where(mask_BC, jnp.asarray(values_BC, jnp.float32), 0.0)

    def backwards(
        carry: tuple[jax.Array, jax.Array], token: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        next_value_B, next_advantage_B = carry
        reward_B, value_B, mask_B = token
        delta_B = reward_B + discount * next_value_B - value_B
        advantage_B = delta_B + discount * gae_lambda * next_advantage_B
        kept = jnp.where(mask_B, value_B, next_value_B), jnp.where(mask_B, advantage_B, next_advantage_B)
        return kept, jnp.where(mask_B, advantage_B, 0.0)

    rows = rewards_BC.shape[0]
    after = jnp.broadcast_to(jnp.asarray(final_values_B, jnp.float32), (rows,)), jnp.zeros((rows,))
    columns = rewards_BC.T, values_BC.T, mask_BC.T
    _, advantages_CB = jax.lax.scan(backwards, after, columns, reverse=True)
    advantages_BC = advantages_CB.T
    return Advantages(advantages_BC, advantages_BC + values_BC)


def explained_variance(values_BC: jax.Array, returns_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
    """1 - var(returns - values) / var(returns): 1 is a perfect critic, 0 one that knows the mean only."""
    _, total = masked_moments(returns_BC, mask_BC)
    _, left = masked_moments(jnp.where(mask_BC, returns_BC - values_BC, 0.0), mask_BC)
    return 1 - left / jnp.maximum(total, EPSILON)
