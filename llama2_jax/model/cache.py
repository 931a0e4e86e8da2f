"""The key/value cache: allocation and bookkeeping of its slots."""

import jax
import jax.numpy as jnp

from llama2_jax.model.config import ModelConfig
from llama2_jax.structs import KVCache


def empty_cache(config: ModelConfig, *, batch_size: int, num_slots: int) -> KVCache:
    """A cache with no token in it. Keys and values are stored in the compute dtype."""
    shape = (config.num_layers, batch_size, num_slots, config.num_kv_heads, config.head_dim)
    dtype = jnp.dtype(config.compute_dtype)
    return KVCache(
        k_LBSKH=jnp.zeros(shape, dtype),
        v_LBSKH=jnp.zeros(shape, dtype),
        segment_ids_BS=jnp.zeros((batch_size, num_slots), jnp.int32),
        positions_BS=jnp.zeros((batch_size, num_slots), jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )


def claim_slots(cache: KVCache, segment_ids_BT: jax.Array, positions_BT: jax.Array) -> KVCache:
    """Label the next T slots; their keys and values are written by the layers."""
    at = (0, cache.index)
    return cache._replace(
        segment_ids_BS=jax.lax.dynamic_update_slice(cache.segment_ids_BS, segment_ids_BT, at),
        positions_BS=jax.lax.dynamic_update_slice(cache.positions_BS, positions_BT, at),
    )
