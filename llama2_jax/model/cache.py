"""The key/value cache: allocation and bookkeeping of its slots."""

import jax
import jax.numpy as jnp

from llama2_jax.config import ConfigError
from llama2_jax.model.config import ModelConfig
from llama2_jax.structs import KVCache


def empty_cache(config: ModelConfig, *, batch_size: int, num_slots: int, stacked: bool = True) -> KVCache:
    """A cache with no token in it. Keys and values are stored in the compute dtype.

    ``stacked`` as in the model: one array with L in front, or an array per layer.
    """
    shape = (batch_size, config.num_kv_heads, num_slots, config.head_dim)
    dtype = jnp.dtype(config.compute_dtype)

    def values() -> jax.Array | tuple[jax.Array, ...]:
        if stacked:
            return jnp.zeros((config.num_layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    return KVCache(
        k_LBKSH=values(),
        v_LBKSH=values(),
        segment_ids_BS=jnp.zeros((batch_size, num_slots), jnp.int32),
        positions_BS=jnp.zeros((batch_size, num_slots), jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )


def claim_slots(
    cache: KVCache, segment_ids_BT: jax.Array, positions_BT: jax.Array, *, is_prompt: bool
) -> KVCache:
    """Label the next T slots; their keys and values are written by the layers.

    Raises:
      ConfigError: they do not fit, or a prompt finds tokens in the cache. Of an index that only the device
        knows (inside ``jit``) nothing can be raised: ``fits`` is then False.
    """
    slots, new = cache.segment_ids_BS.shape[1], segment_ids_BT.shape[1]
    used = 0 if isinstance(cache.index, jax.core.Tracer) else int(cache.index)
    if used + new > slots:
        raise ConfigError(
            f"the cache has {slots} slots, {used} of them used, and {new} new tokens do not fit; "
            "make it with a larger num_slots"
        )
    if is_prompt and used:
        raise ConfigError(f"a prompt needs an empty cache, this one holds {used} tokens; leave is_prompt out")

    def write(all_BS: jax.Array, new_BT: jax.Array) -> jax.Array:
        # new ones have 64 bits where jax's x64 mode is on
        return jax.lax.dynamic_update_slice_in_dim(all_BS, new_BT.astype(all_BS.dtype), cache.index, axis=1)

    return cache._replace(
        segment_ids_BS=write(cache.segment_ids_BS, segment_ids_BT),
        positions_BS=write(cache.positions_BS, positions_BT),
    )


def fits(cache: KVCache) -> jax.Array:
    """False if more tokens were written than the cache has slots."""
    return cache.index <= cache.segment_ids_BS.shape[1]


def write_slots(
    cache: KVCache, layer: jax.Array | int, k_BTKH: jax.Array, v_BTKH: jax.Array
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Write T new slots of one layer in place; return the cache and that layer's keys and values."""
    k_LBKSH = _write(cache.k_LBKSH, layer, cache.index, k_BTKH)
    v_LBKSH = _write(cache.v_LBKSH, layer, cache.index, v_BTKH)
    return cache._replace(k_LBKSH=k_LBKSH, v_LBKSH=v_LBKSH), k_LBKSH[layer], v_LBKSH[layer]


def write_prompt(
    cache: KVCache, layer: jax.Array | int, k_BTKH: jax.Array, v_BTKH: jax.Array
) -> tuple[KVCache, jax.Array, jax.Array]:
    """The same for a prompt; return the cache and the keys and values given, for use once they are written.

    By itself XLA would write the slots of all layers at the end, and keep the keys and values of each until
    then; on a GPU with the queries, where they come from one product.
    """
    cache, k_BKSH, v_BKSH = write_slots(cache, layer, k_BTKH, v_BTKH)
    if not isinstance(cache.k_LBKSH, tuple):  # a loop over layers: each turn writes
        return cache, k_BTKH, v_BTKH
    # this layer's alone: slots that are not written yet would be copied
    k_BKSH, v_BKSH, k_BTKH, v_BTKH = jax.lax.optimization_barrier((k_BKSH, v_BKSH, k_BTKH, v_BTKH))
    k_LBKSH = _with_layer(cache.k_LBKSH, layer, k_BKSH)
    v_LBKSH = _with_layer(cache.v_LBKSH, layer, v_BKSH)
    return cache._replace(k_LBKSH=k_LBKSH, v_LBKSH=v_LBKSH), k_BTKH, v_BTKH


def _write(
    all_layers: jax.Array | tuple[jax.Array, ...],
    layer: jax.Array | int,
    index: jax.Array,
    new_BTKH: jax.Array,
) -> jax.Array | tuple[jax.Array, ...]:
    new_BKTH = new_BTKH.swapaxes(1, 2)
    if not isinstance(all_layers, tuple):
        new = new_BKTH[None].astype(all_layers.dtype)
        zero = jnp.zeros_like(index)  # indices must have one dtype, and a Python 0 has that of the mode
        at = (jnp.asarray(layer, index.dtype), zero, zero, index, zero)
        return jax.lax.dynamic_update_slice(all_layers, new, at)
    new = new_BKTH.astype(all_layers[layer].dtype)
    written = jax.lax.dynamic_update_slice_in_dim(all_layers[layer], new, index, axis=2)
    return _with_layer(all_layers, layer, written)


def _with_layer(
    all_layers: tuple[jax.Array, ...], layer: jax.Array | int, one: jax.Array
) -> tuple[jax.Array, ...]:
    assert isinstance(layer, int)
    return (*all_layers[:layer], one, *all_layers[layer + 1 :])
