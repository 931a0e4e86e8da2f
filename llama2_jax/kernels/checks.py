"""Shapes and dtypes of attention, said in words before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import require
from llama2_jax.kernels.ranges import check_prefix_ids, check_segment_ids


def check_shapes(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids_BT: jax.Array | None,
    prefix_ids_BT: jax.Array | None,
) -> None:
    """Refuse arrays that ``attention`` cannot take, with ``ConfigError``."""
    _check_arrays(q, k, v, heads=q.shape[2], kv_heads=k.shape[2])
    if prefix_ids_BT is not None:
        shape = None if segment_ids_BT is None else segment_ids_BT.shape
        require(
            prefix_ids_BT.shape == shape,
            f"attention: prefix ids have shape {prefix_ids_BT.shape}, segment ids {shape}; a prefix is a "
            "segment of the row",
        )
        if not isinstance(prefix_ids_BT, jax.core.Tracer):
            check_prefix_ids(np.asarray(segment_ids_BT), np.asarray(prefix_ids_BT))
    if segment_ids_BT is None:
        return
    require(
        segment_ids_BT.shape == q.shape[:2] and q.shape[1] == k.shape[1],
        f"attention: segment ids have shape {segment_ids_BT.shape}, q {q.shape[:2]} and k {k.shape[:2]} "
        "tokens; documents need the same tokens as queries and keys",
    )
    if not isinstance(segment_ids_BT, jax.core.Tracer):
        check_segment_ids(np.asarray(segment_ids_BT))


def check_cache_shapes(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> None:
    """Refuse arrays that ``decode`` cannot take, with ``ConfigError``."""
    _check_arrays(q, k, v, heads=q.shape[2], kv_heads=k.shape[1])
    expected = (*q.shape[:2], k.shape[2])
    require(
        mask.shape == expected,
        f"attention: the mask has shape {mask.shape}, {q.shape[1]} tokens and {k.shape[2]} slots need "
        f"{expected}",
    )


def _check_arrays(q: jax.Array, k: jax.Array, v: jax.Array, *, heads: int, kv_heads: int) -> None:
    dtypes = [jnp.dtype(array.dtype).name for array in (q, k, v)]
    require(
        len(set(dtypes)) == 1,
        f"attention: q, k and v are {', '.join(dtypes)}; cast them to one dtype, which the output will have",
    )
    require(k.shape == v.shape, f"attention: k has shape {k.shape}, v {v.shape}; they must be equal")
    require(
        (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3]),
        f"attention: q has shape {q.shape} and k {k.shape}; rows and head dim must be equal",
    )
    require(
        heads % kv_heads == 0,
        f"attention: {heads} query heads are not a multiple of {kv_heads} key/value heads; "
        "every key/value head serves the same number of query heads",
    )
