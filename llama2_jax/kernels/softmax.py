"""How every tile-by-tile form ends the softmax, joins parts, and begins the way back."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llama2_jax.kernels.ranges import KeyRanges, Seen
from llama2_jax.kernels.reference import NEGATIVE

LOG2_E = math.log2(math.e)  # kernels take the softmax in base 2


def finish(sums: jax.Array, total: jax.Array, peak: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp from sums of exp(score - peak) times values, and of exp(score - peak).

    Where nothing was seen (a total of 0) they are 0 and -inf; NaN stays NaN. ``total`` and ``peak`` must
    broadcast to ``sums``; the log-sum-exp has their shape.
    """
    is_seeing = total != 0
    total = jnp.where(is_seeing, total, 1.0)
    return sums / total, jnp.where(is_seeing, peak + jnp.log(total), -jnp.inf)


def combine(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp over all keys from those over each of P parts, float32.

    Args:
      out: (B, P, ..., H); a part that saw nothing has 0.
      lse: (B, P, ..., 1), of such a part -inf.
    """
    # what is joined does not depend on the peak
    peak = jax.lax.stop_gradient(jnp.maximum(lse.max(axis=1), NEGATIVE))
    weights = jnp.exp(lse - peak[:, None])
    return finish((out * weights).sum(axis=1), weights.sum(axis=1), peak)


def joined(attend: Callable[[KeyRanges], tuple[jax.Array, jax.Array]], seen: Seen) -> tuple[Any, Any]:
    """Output and log-sum-exp (B, T, N) over all that is seen, by a pass over each of its ranges."""
    parts = [attend(ranges) for ranges in seen]
    if len(parts) == 1:
        return parts[0]
    outs, lses = (jnp.stack(arrays, axis=1) for arrays in zip(*parts, strict=True))
    out, lse = combine(outs, lses[..., None])
    return out.astype(outs.dtype), lse[..., 0]


def start_backward(out: Any, lse: Any, d_out: Any, d_lse: Any) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp and delta of every row: probs = exp(score - lse), d_score = probs * (d_prob - delta).

    Delta is sum_s p_s dp_s, known without the probabilities, less the gradient of the log-sum-exp, which is
    p_s as well. Rows that see nothing get a huge log-sum-exp, hence probabilities of 0, and a delta of 0
    whatever gradients they have.
    """
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1) - d_lse
    is_blind = jnp.isneginf(lse)
    return jnp.where(is_blind, -NEGATIVE, lse), jnp.where(is_blind, 0.0, delta)
