"""One interface to every attention implementation: ``attention`` for rows of tokens, ``decode`` for a cache.

The implementation is a name in the config. Each says in ``implementations.py`` what it serves; a request that
it cannot serve is refused with the reason and the names of those that can, before anything is compiled.
Nothing falls back silently.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llama2_jax.kernels import cached
from llama2_jax.kernels.checks import check_cache_shapes, check_shapes
from llama2_jax.kernels.implementations import Inputs, Request, choose, say_once
from llama2_jax.kernels.ranges import KeyRanges, document_ranges, prefix_ranges, row_ranges


class Placement(NamedTuple):
    """Where attention runs, and how its arrays are split over a mesh."""

    platform: str
    map_shards: Callable[..., Any]
    """``map_shards(function, arguments, dims, out_dims)`` runs the function on every device's part of the
    arguments; dims are the suffix of each (``Partitioner.map_shards``)."""
    head_shards: int = 1
    query_shards: int = 1
    capability: str = ""
    """Compute capability of a GPU, as 9.0 of Hopper."""


def unsharded(platform: str | None = None, capability: str = "") -> Placement:
    """On one device, by default the first of the process."""
    if platform is None:
        device = jax.devices()[0]
        platform, capability = device.platform, getattr(device, "compute_capability", "")
    return Placement(
        platform,
        lambda function, arguments, dims, out_dims: function(*arguments),
        capability=capability,
    )


class Attended(NamedTuple):
    """What attention gives; ``lse_BTN`` is None unless it was asked for."""

    out_BTNH: jax.Array
    lse_BTN: jax.Array | None


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    prefix_ids_BT: jax.Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    impl: str = "auto",
    needs_lse: bool = False,
    placement: Placement | None = None,
) -> Attended:
    """Grouped-query attention of tokens to one another, with gradients; query head n reads key head n // G.

    Args:
      segment_ids_BT: documents of each row, contiguous and ascending; 0 is padding, which sees nothing, is
        seen by nobody and may hold anything. None: a row is one document.
      prefix_ids_BT: an earlier segment of the row that the tokens of a segment see as well, all of it; 0 for
        none. So one prompt may have several answers in a row.
      causal: a query sees no later key. Without documents T may differ from S; the last query then sees the
        last key.
      scale: of the scores, default H ** -0.5.
      impl: one of ``implementations.NAMES``.
      placement: default ``unsharded()``.

    Returns:
      Output in the dtype of ``q`` and the natural log of the sum of exponentials, float32; where a query sees
      nothing 0 and -inf.

    Raises:
      ConfigError: the shapes do not fit, or the implementation does not serve them.
    """
    check_shapes(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, prefix_ids_BT)
    placement = placement or unsharded()
    batch, length, _, head_dim = q_BTNH.shape
    keys = k_BSKH.shape[1]
    request = Request(
        placement.platform,
        head_dim,
        jnp.dtype(q_BTNH.dtype).name,
        has_documents=segment_ids_BT is not None,
        causal=causal,
        needs_lse=needs_lse or prefix_ids_BT is not None,
        has_all_queries=length == keys and placement.query_shards == 1,
        capability=placement.capability,
    )
    chosen = choose(impl, request)
    scale = head_dim**-0.5 if scale is None else scale
    if segment_ids_BT is None:
        ranges = [row_ranges(batch, length, keys, causal=causal)]
        ids = jnp.ones((batch, length), jnp.int32)
    else:
        ranges, ids = [document_ranges(segment_ids_BT, causal=causal)], segment_ids_BT
        ranges += [prefix_ranges(segment_ids_BT, prefix_ids_BT)] if prefix_ids_BT is not None else []
        # also the gradients of padding are zero, and what it held cannot turn into NaN times 0
        clear = _cleared if chosen.leaves_padding_zero else _tokens_only
        q_BTNH, k_BSKH, v_BSKH = (clear(array, ids) for array in (q_BTNH, k_BSKH, v_BSKH))

    def local(q: Any, k: Any, v: Any, ids: Any, *bounds: Any) -> tuple[jax.Array, ...]:
        seen = tuple(KeyRanges(*pair) for pair in zip(bounds[::2], bounds[1::2], strict=True))
        out, lse = chosen.run(Inputs(q, k, v, seen, ids, scale, causal))
        return (out, lse) if needs_lse else (out,)

    k_BSKH, v_BSKH = (_head_per_shard(array, 2, placement) for array in (k_BSKH, v_BSKH))
    arguments = (q_BTNH, k_BSKH, v_BSKH, ids, *itertools.chain(*ranges))
    dims = ("BTNH", "BSKH", "BSKH", *["BT"] * (len(arguments) - 3))
    out_dims = ("BTNH", "BTN") if needs_lse else ("BTNH",)
    out_BTNH, *lse = placement.map_shards(local, arguments, dims, out_dims)
    if segment_ids_BT is None:
        return Attended(out_BTNH, *lse or [None])
    is_token_BT1 = ids[:, :, None] != 0
    clear = _gradient_cleared if chosen.leaves_padding_zero else _tokens_only
    return Attended(clear(out_BTNH, ids), jnp.where(is_token_BT1, lse[0], -jnp.inf) if needs_lse else None)


def decode(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array,
    *,
    impl: str = "auto",
    placement: Placement | None = None,
) -> jax.Array:
    """Attention of new tokens to a cache that keeps heads before slots, output (B, T, N, H).

    One token per row goes through a kernel where the implementation has one (``Implementation.decode``). All
    else is plain jnp over the whole cache, whatever the name; said once where the name is a kernel's.

    Args:
      mask_BTS: which slots a token sees; what the others hold must be finite.

    Raises:
      ConfigError: the shapes do not fit, or the implementation does not serve them.
    """
    check_cache_shapes(q_BTNH, k_BKSH, v_BKSH, mask_BTS)
    placement = placement or unsharded()
    request = Request(
        placement.platform,
        q_BTNH.shape[-1],
        jnp.dtype(q_BTNH.dtype).name,
        capability=placement.capability,
    )
    chosen = choose(impl, request)
    kernel = chosen.decode
    if q_BTNH.shape[1] > 1 or kernel is None:
        if chosen.platforms:
            tokens = "one token" if q_BTNH.shape[1] == 1 else "several tokens"
            say_once(f"attention of {tokens} to a cache", f"plain jnp, {impl!r} has no kernel for it")
        return cached.attention(q_BTNH, k_BKSH, v_BKSH, mask_BTS)

    def local(q: Any, k: Any, v: Any, mask: Any) -> tuple[jax.Array]:
        return (kernel(q[:, 0], k, v, mask[:, 0], scale=q.shape[-1] ** -0.5)[:, None],)

    k_BKSH, v_BKSH = (_head_per_shard(array, 1, placement) for array in (k_BKSH, v_BKSH))
    dims = ("BTNH", "BKSH", "BKSH", "BTS")
    return placement.map_shards(local, (q_BTNH, k_BKSH, v_BKSH, mask_BTS), dims, ("BTNH",))[0]


def _head_per_shard(x: jax.Array, axis: int, placement: Placement) -> jax.Array:
    """Keys or values with a head for every shard of query heads, repeated where there are fewer.

    Every device then holds the heads that its query heads read, and no other.
    """
    heads, shards = x.shape[axis], placement.head_shards
    return x if heads % shards == 0 else jnp.repeat(x, math.lcm(heads, shards) // heads, axis=axis)


def _tokens_only(array: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    return jnp.where(segment_ids_BT[:, :, None, None] != 0, array, jnp.zeros((), array.dtype))


# ``_tokens_only`` in one direction only, where the kernel does the other: saves a pass over memory


@jax.custom_vjp
def _cleared(array: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    return _tokens_only(array, segment_ids_BT)


_cleared.defvjp(lambda array, ids: (_tokens_only(array, ids), None), lambda _, gradient: (gradient, None))


@jax.custom_vjp
def _gradient_cleared(array: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    return array


_gradient_cleared.defvjp(
    lambda array, ids: (array, ids), lambda ids, gradient: (_tokens_only(gradient, ids), None)
)
