"""Self-attention in blocks of queries: memory linear in T, nothing computed after the diagonal.

The same function as ``reference.attention`` for tokens attending to themselves (no cache). A
block of queries sees only the keys up to its own end, because within a segment positions grow
with the index; so about half of the work is never started. Only the output and the log-sum-exp
are kept for the backward pass, which makes the probabilities again block by block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from llama2_jax.kernels.reference import NEGATIVE, attention_mask

Residuals = tuple[jax.Array, ...]

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    positions_BT: jax.Array,
) -> jax.Array:
    """Causal attention within segments, output (B, T, N, H) in the dtype of ``v``.

    Positions must not decrease within a segment.
    """
    batch, length, heads, head_dim = q_BTNH.shape
    kv_heads = k_BTKH.shape[2]
    # heads before tokens: every block is then a plain batched matrix product
    q_BKGTH = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    out_BKGTH = _attention(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, positions_BT)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


def block_size(length: int) -> int:
    """Queries per block: an eighth of the row, between 64 and 512."""
    return max(64, min(512, length // 8))


def _blocks(length: int) -> list[slice]:
    size = block_size(length)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


@jax.custom_vjp
def _attention(q_BKGTH: Any, k_BKSH: Any, v_BKSH: Any, segment_ids_BT: Any, positions_BT: Any) -> jax.Array:
    return _forward(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, positions_BT)[0]


def _forward(
    q_BKGTH: Any, k_BKSH: Any, v_BKSH: Any, segment_ids_BT: Any, positions_BT: Any
) -> tuple[jax.Array, Residuals]:
    outputs, lses = [], []
    for rows in _blocks(q_BKGTH.shape[3]):
        scores = _masked_scores(q_BKGTH, k_BKSH, segment_ids_BT, positions_BT, rows)
        # above NEGATIVE, so that a fully masked row has weights exp(NEGATIVE - peak) = 0
        peak = jnp.maximum(scores.max(axis=-1, keepdims=True), NEGATIVE / 2)
        weights = jnp.exp(scores - peak)
        total = jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)
        out = _dot("BKGTS,BKSH->BKGTH", weights.astype(v_BKSH.dtype), v_BKSH[:, :, : rows.stop])
        outputs.append((out / total).astype(v_BKSH.dtype))
        lses.append(peak + jnp.log(total))
    out_BKGTH, lse_BKGT1 = jnp.concatenate(outputs, axis=3), jnp.concatenate(lses, axis=3)
    return out_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, positions_BT, out_BKGTH, lse_BKGT1)


def _backward(residuals: Residuals, d_out_BKGTH: jax.Array) -> tuple[jax.Array | None, ...]:
    q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, positions_BT, out_BKGTH, lse_BKGT1 = residuals
    # sum_s p_s dp_s, known without the probabilities
    delta_BKGT1 = (d_out_BKGTH.astype(jnp.float32) * out_BKGTH).sum(axis=-1, keepdims=True)
    dk_BKSH, dv_BKSH = jnp.zeros(k_BKSH.shape, jnp.float32), jnp.zeros(v_BKSH.shape, jnp.float32)
    scale, dqs = q_BKGTH.shape[-1] ** -0.5, []  # of the scores, and so of dq and dk: in float32, see below
    for rows in _blocks(q_BKGTH.shape[3]):
        keys, values = k_BKSH[:, :, : rows.stop], v_BKSH[:, :, : rows.stop]
        queries, d_rows = q_BKGTH[:, :, :, rows], d_out_BKGTH[:, :, :, rows]
        scores = _masked_scores(q_BKGTH, k_BKSH, segment_ids_BT, positions_BT, rows)
        probs = jnp.exp(scores - lse_BKGT1[:, :, :, rows])
        d_probs = _dot("BKGTH,BKSH->BKGTS", d_rows, values)
        d_scores = (probs * (d_probs - delta_BKGT1[:, :, :, rows])).astype(v_BKSH.dtype)
        dv = _dot("BKGTS,BKGTH->BKSH", probs.astype(v_BKSH.dtype), d_rows)
        dv_BKSH = dv_BKSH.at[:, :, : rows.stop].add(dv)
        dk_BKSH = dk_BKSH.at[:, :, : rows.stop].add(_dot("BKGTS,BKGTH->BKSH", d_scores, queries))
        dqs.append((_dot("BKGTS,BKSH->BKGTH", d_scores, keys) * scale).astype(q_BKGTH.dtype))
    dq_BKGTH = jnp.concatenate(dqs, axis=3)
    return dq_BKGTH, (dk_BKSH * scale).astype(k_BKSH.dtype), dv_BKSH.astype(v_BKSH.dtype), None, None


_attention.defvjp(_forward, _backward)


def _masked_scores(
    q_BKGTH: Any, k_BKSH: Any, segment_ids_BT: Any, positions_BT: Any, rows: slice
) -> jax.Array:
    """Scores of one block of queries with the keys up to its end; what must not be seen is ``NEGATIVE``.

    Scaled in float32: a scaled query in bfloat16 would be rounded a second time.
    """
    mask_BTS = attention_mask(
        query_segment_ids_BT=segment_ids_BT[:, rows],
        query_positions_BT=positions_BT[:, rows],
        key_segment_ids_BS=segment_ids_BT[:, : rows.stop],
        key_positions_BS=positions_BT[:, : rows.stop],
    )
    scores = _dot("BKGTH,BKSH->BKGTS", q_BKGTH[:, :, :, rows], k_BKSH[:, :, : rows.stop])
    return jnp.where(mask_BTS[:, None, None], scores * q_BKGTH.shape[-1] ** -0.5, NEGATIVE)
