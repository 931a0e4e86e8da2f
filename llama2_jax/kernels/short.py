"""Self-attention of short rows in blocks of queries, without a loop.

A block of queries sees only the keys up to its own end, so about half of the work is never started. Only the
output and the log-sum-exp are kept for the backward pass, which makes the probabilities again block by block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.kernels.ranges import Seen, seen_mask
from llama2_jax.kernels.reference import NEGATIVE
from llama2_jax.kernels.softmax import finish, start_backward
from llama2_jax.precision import float32_dot

BLOCK = 64  # queries


class _Call(NamedTuple):
    scale: float
    is_triangular: bool  # no range ends beyond its query


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    seen: Seen,
    *,
    scale: float,
    causal: bool,
) -> tuple[jax.Array, jax.Array]:
    """As ``chunked.attention``, of which it is a part."""
    batch, length, heads, head_dim = q_BTNH.shape
    keys, kv_heads = k_BSKH.shape[1:3]
    # heads before tokens: every block is then a plain batched matrix product
    q_BKGTH = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    # a device that holds a part of the queries and all keys does not know which part
    call = _Call(scale, causal and length == keys)
    out_BKGTH, lse_BKGT = _attention(call, q_BKGTH, k_BKSH, v_BKSH, seen)
    lse_BTN = lse_BKGT.transpose(0, 3, 1, 2).reshape(batch, length, heads)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape), lse_BTN


def _blocks(call: _Call, length: int, keys: int) -> list[tuple[slice, slice]]:
    """Queries of each block, and the keys they may see."""
    rows = [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
    return [(block, slice(0, block.stop if call.is_triangular else keys)) for block in rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    call: _Call, q_BKGTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, seen: Seen
) -> tuple[jax.Array, jax.Array]:
    return _forward(call, q_BKGTH, k_BKSH, v_BKSH, seen)[0]


def _forward(call: _Call, q_BKGTH: Any, k_BKSH: Any, v_BKSH: Any, seen: Seen) -> tuple[Any, Any]:
    outputs, lses = [], []
    for rows, keys in _blocks(call, q_BKGTH.shape[3], k_BKSH.shape[2]):
        scores = _masked_scores(call, q_BKGTH, k_BKSH, seen, rows, keys)
        # above NEGATIVE, so that a fully masked row has weights exp(NEGATIVE - peak) = 0
        peak = jnp.maximum(scores.max(axis=-1, keepdims=True), NEGATIVE / 2)
        weights = jnp.exp(scores - peak)
        total = weights.sum(axis=-1, keepdims=True)
        sums = float32_dot("BKGTS,BKSH->BKGTH", weights.astype(v_BKSH.dtype), v_BKSH[:, :, keys])
        out, lse = finish(sums, total, peak)
        outputs.append(out.astype(q_BKGTH.dtype))
        lses.append(lse[..., 0])
    out_BKGTH = checkpoint_name(jnp.concatenate(outputs, axis=3), "attention_out")
    lse_BKGT = checkpoint_name(jnp.concatenate(lses, axis=3), "attention_lse")
    return (out_BKGTH, lse_BKGT), (q_BKGTH, k_BKSH, v_BKSH, seen, out_BKGTH, lse_BKGT)


def _backward(call: _Call, residuals: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    q_BKGTH, k_BKSH, v_BKSH, seen, out_BKGTH, lse_BKGT = residuals
    d_out_BKGTH, d_lse_BKGT = cotangents
    lse_BKGT, delta_BKGT = start_backward(out_BKGTH, lse_BKGT, d_out_BKGTH, d_lse_BKGT)
    dk_BKSH, dv_BKSH = jnp.zeros(k_BKSH.shape, jnp.float32), jnp.zeros(v_BKSH.shape, jnp.float32)
    dqs = []
    for rows, keys in _blocks(call, q_BKGTH.shape[3], k_BKSH.shape[2]):
        queries, d_rows = q_BKGTH[:, :, :, rows], d_out_BKGTH[:, :, :, rows]
        scores = _masked_scores(call, q_BKGTH, k_BKSH, seen, rows, keys)
        probs = jnp.exp(scores - lse_BKGT[:, :, :, rows, None])
        d_probs = float32_dot("BKGTH,BKSH->BKGTS", d_rows, v_BKSH[:, :, keys])
        d_scores = (probs * (d_probs - delta_BKGT[:, :, :, rows, None])).astype(v_BKSH.dtype)
        dv = float32_dot("BKGTS,BKGTH->BKSH", probs.astype(v_BKSH.dtype), d_rows)
        dv_BKSH = dv_BKSH.at[:, :, keys].add(dv)
        dk_BKSH = dk_BKSH.at[:, :, keys].add(float32_dot("BKGTS,BKGTH->BKSH", d_scores, queries))
        # the scale in float32, see below
        dq = float32_dot("BKGTS,BKSH->BKGTH", d_scores, k_BKSH[:, :, keys]) * call.scale
        dqs.append(dq.astype(q_BKGTH.dtype))
    dk_BKSH = (dk_BKSH * call.scale).astype(k_BKSH.dtype)
    return jnp.concatenate(dqs, axis=3), dk_BKSH, dv_BKSH.astype(v_BKSH.dtype), None


_attention.defvjp(_forward, _backward)


def _masked_scores(
    call: _Call, q_BKGTH: jax.Array, k_BKSH: jax.Array, seen: Seen, rows: slice, keys: slice
) -> jax.Array:
    """Scores of one block of queries with the keys that it may see; what it does not see is ``NEGATIVE``.

    Scaled in float32: a scaled query in bfloat16 would be rounded a second time.
    """
    mask_BTS = seen_mask(jax.tree.map(lambda array: array[:, rows], seen), keys.stop)
    scores = float32_dot("BKGTH,BKSH->BKGTS", q_BKGTH[:, :, :, rows], k_BKSH[:, :, keys])
    return jnp.where(mask_BTS[:, None, None], scores * call.scale, NEGATIVE)
