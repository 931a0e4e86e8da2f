"""Attention of new tokens to a key/value cache that keeps heads before slots.

The output of ``reference.attention``; in this layout each key/value head's slots are contiguous, so a decode
step reads the cache once and transposes nothing.
"""

import jax
import jax.numpy as jnp

from llama2_jax.kernels.reference import masked_softmax
from llama2_jax.precision import float32_dot, product_precision


def attention(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Grouped-query attention, output (B, T, N, H) in the dtype of ``q``."""
    batch, length, heads, head_dim = q_BTNH.shape
    kv_heads = k_BKSH.shape[1]
    q_BKGTH = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    scores = float32_dot("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH)
    probs = masked_softmax(scores * head_dim**-0.5, mask_BTS).astype(v_BKSH.dtype)
    out_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", probs, v_BKSH, precision=product_precision(q_BTNH.dtype))
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)
