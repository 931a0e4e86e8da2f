"""Attention in plain jnp: the specification that every kernel is tested against.

A query attends to a key of the same segment, or of its prefix, whose position is not after its own. This
one rule covers packed documents, padding (segment 0), several answers to one prompt, ragged prompts and
cached decoding.
"""

import functools

import jax
import jax.numpy as jnp

# the specification is exact on every device, whatever precision products have by default
_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

NEGATIVE = -1e30  # finite, so that a fully masked row gives zeros and never NaN


def attention_mask(
    *,
    query_segment_ids_BT: jax.Array,
    query_positions_BT: jax.Array,
    key_segment_ids_BS: jax.Array,
    key_positions_BS: jax.Array,
    query_prefix_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """mask_BTS, True where the query may see the key."""
    same_segment = query_segment_ids_BT[:, :, None] == key_segment_ids_BS[:, None, :]
    if query_prefix_ids_BT is not None:
        same_segment |= query_prefix_ids_BT[:, :, None] == key_segment_ids_BS[:, None, :]
    not_after = key_positions_BS[:, None, :] <= query_positions_BT[:, :, None]
    return same_segment & not_after & (key_segment_ids_BS[:, None, :] != 0)


def attention_probs(q_BTNH: jax.Array, k_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Softmax of the scaled scores, float32, shape (B, K, G, T, S); masked rows are all zero."""
    return masked_softmax(_scores(q_BTNH, k_BSKH, q_BTNH.shape[-1] ** -0.5), mask_BTS)


def _scores(q_BTNH: jax.Array, k_BSKH: jax.Array, scale: float) -> jax.Array:
    """Query head n reads key/value head n // G (ARCH-6), so K and V are never repeated."""
    batch, length, heads, head_dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    accumulate = jnp.float64 if q_BTNH.dtype == jnp.float64 else jnp.float32
    return _product("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=accumulate) * scale


def masked_softmax(scores_BKGTS: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Softmax over the visible keys, float32; a row that sees none is all zero."""
    mask = mask_BTS[:, None, None]
    scores = jnp.where(mask, scores_BKGTS, NEGATIVE)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array, *, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Output (B, T, N, H) in the dtype of ``v`` and log-sum-exp (B, T, N), -inf where nothing is seen."""
    scores_BKGTS = _scores(q_BTNH, k_BSKH, scale)
    probs = masked_softmax(scores_BKGTS, mask_BTS).astype(v_BSKH.dtype)
    out_BTNH = _product("BKGTS,BSKH->BTKGH", probs, v_BSKH).reshape(q_BTNH.shape)
    lse_BKGT = jax.nn.logsumexp(scores_BKGTS, axis=-1, where=mask_BTS[:, None, None])
    return out_BTNH, lse_BKGT.transpose(0, 3, 1, 2).reshape(q_BTNH.shape[:3])
