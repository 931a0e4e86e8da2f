"""PPO's losses over plain arrays, as sums over response tokens (PPO-1, PPO-5, D43, D49).

With the ratio r = pi(a) / pi_behaviour(a), advantages A, returns R and the clip range c::

  policy = sum max(-A r, -A clip(r, 1 - c, 1 + c))
  value  = sum 1/2 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2)

Arrays are (B, C): column c belongs to response token c. Where ``mask_BC`` is False, or 0, a slot may
hold anything, even NaN: it changes nothing and gets gradient 0. Sums, never means of means: the caller
divides once by the token count of the whole mini-batch.
"""

import jax
import jax.numpy as jnp

from llama2_jax.config import require_choice
from llama2_jax.shapes import check_shapes
from llama2_jax.structs import LossSums, Mean

KL_ESTIMATORS = ("k1", "k2", "k3")


def policy_sums(
    logprobs_BC: jax.Array,
    behaviour_logprobs_BC: jax.Array,
    advantages_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    clip_range: float,
    ratio_tolerance: float,
) -> LossSums:
    """The clipped surrogate objective, negated (Schulman et al. 2017, eq. 7).

    Args:
      logprobs_BC: of the policy that is trained, with gradient.
      behaviour_logprobs_BC: of the policy that sampled, at the same temperature, before any update.
      ratio_tolerance: tokens whose ratio is further from 1 are counted in ``off_policy_tokens``.

    Returns:
      Means: ``ratio``, ``clip_fraction`` (ratios outside the range), ``approx_kl`` (k3 of behaviour
      to policy). Totals: ``off_policy_tokens``, ``tokens``.
    """
    check_shapes(
        "policy_sums",
        logprobs_BC=logprobs_BC,
        behaviour_logprobs_BC=behaviour_logprobs_BC,
        advantages_BC=advantages_BC,
        mask_BC=mask_BC,
    )
    log_ratio_BC = _kept(mask_BC, logprobs_BC) - _kept(mask_BC, behaviour_logprobs_BC)
    advantages_BC = _kept(mask_BC, advantages_BC)
    ratio_BC = jnp.exp(log_ratio_BC)
    clipped_BC = jnp.clip(ratio_BC, 1 - clip_range, 1 + clip_range)
    loss_BC = jnp.maximum(-advantages_BC * ratio_BC, -advantages_BC * clipped_BC)
    off_BC = jnp.abs(ratio_BC - 1)
    return LossSums(
        loss_BC.sum(),
        _count(mask_BC),
        means={
            "ratio": masked_mean(ratio_BC, mask_BC),
            "clip_fraction": masked_mean(off_BC > clip_range, mask_BC),
            "approx_kl": masked_mean(ratio_BC - 1 - log_ratio_BC, mask_BC),
        },
        totals={
            "off_policy_tokens": jnp.where(mask_BC, off_BC > ratio_tolerance, False).sum(),
            "tokens": _count(mask_BC),
        },
    )


def value_sums(
    values_BC: jax.Array,
    old_values_BC: jax.Array,
    returns_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    clip_range: float,
) -> LossSums:
    """Squared error of the values, clipped around the values at sampling time (D43).

    Returns:
      Means: ``clip_fraction``, how often the clipped error is the one that counts. Totals: ``tokens``.
    """
    check_shapes(
        "value_sums",
        values_BC=values_BC,
        old_values_BC=old_values_BC,
        returns_BC=returns_BC,
        mask_BC=mask_BC,
    )
    values_BC, old_values_BC = _kept(mask_BC, values_BC), _kept(mask_BC, old_values_BC)
    returns_BC = _kept(mask_BC, returns_BC)
    clipped_BC = jnp.clip(values_BC, old_values_BC - clip_range, old_values_BC + clip_range)
    error_BC, clipped_error_BC = jnp.square(values_BC - returns_BC), jnp.square(clipped_BC - returns_BC)
    return LossSums(
        0.5 * jnp.maximum(error_BC, clipped_error_BC).sum(),
        _count(mask_BC),
        means={"clip_fraction": masked_mean(clipped_error_BC > error_BC, mask_BC)},
        totals={"tokens": _count(mask_BC)},
    )


def kl_estimate(
    logprobs_BC: jax.Array, reference_logprobs_BC: jax.Array, mask_BC: jax.Array, *, estimator: str
) -> jax.Array:
    """Estimate of KL(policy || reference) at each token, from samples of the policy; 0 where masked.

    With x = reference / policy: k1 = -log x, k2 = (log x)^2 / 2, k3 = x - 1 - log x. All of them
    *measure* the divergence; which gradient each one gives depends on where it stands. k1 in the
    reward gives that of KL(policy || reference) over whole answers (Eq. 4). k2 in the loss gives that of
    the next token at each prefix, summed over the prefixes that were sampled: what a token does to the
    divergence of later ones is left out. Nothing else gives either.
    """
    require_choice("kl estimator", estimator, KL_ESTIMATORS)
    log_x_BC = _kept(mask_BC, reference_logprobs_BC) - _kept(mask_BC, logprobs_BC)
    if estimator == "k1":
        return -log_x_BC
    if estimator == "k2":
        return 0.5 * jnp.square(log_x_BC)
    return jnp.exp(log_x_BC) - 1 - log_x_BC


def entropy(logits_BCV: jax.Array) -> jax.Array:
    """Entropy of softmax(logits) in nats, float32 (B, C); a logit of -inf adds nothing."""
    logits_BCV = logits_BCV.astype(jnp.float32)
    finite_BCV = jnp.where(logits_BCV == -jnp.inf, 0.0, logits_BCV)
    mean_BC = (jax.nn.softmax(logits_BCV, axis=-1) * finite_BCV).sum(axis=-1)
    return jax.nn.logsumexp(logits_BCV, axis=-1) - mean_BC


def masked_mean(values: jax.Array, mask: jax.Array) -> Mean:
    """Sum and count over the slots where the mask is True."""
    return Mean(_kept(mask, values).sum(), _count(mask))


def _kept(mask: jax.Array, values: jax.Array) -> jax.Array:
    """float32, 0 where masked: before any arithmetic, so that 0 * NaN never happens, nor in a gradient."""
    return jnp.where(mask, jnp.asarray(values, jnp.float32), 0.0)


def _count(mask: jax.Array) -> jax.Array:
    return jnp.asarray(mask, jnp.float32).sum()
