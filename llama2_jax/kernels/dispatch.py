"""One interface to every attention implementation: ``attention`` for rows of tokens, ``decode`` for a cache.

The implementation is a name in the config. Each says below what it serves; a request that it cannot serve is
refused with the reason and the names of those that can, before anything is compiled. ``auto`` takes the first
of ``PREFERRED`` for the platform that serves the request and says once which. Nothing falls back silently.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.config import ConfigError, require, require_choice
from llama2_jax.kernels import cached, chunked, reference
from llama2_jax.kernels.ranges import KeyRanges, check_segment_ids, document_ranges, range_mask, row_ranges


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


class Request(NamedTuple):
    """What an implementation is asked to serve."""

    platform: str
    head_dim: int
    dtype: str
    has_documents: bool = True
    causal: bool = True
    needs_lse: bool = False
    has_all_queries: bool = True  # a device's queries are the same tokens as its keys
    capability: str = ""  # of a GPU


@dataclasses.dataclass(frozen=True)
class Implementation:
    """What one implementation serves."""

    run: Callable[..., Any]
    platforms: tuple[str, ...] = ()  # empty: all
    capability: str = ""  # of a GPU; empty: any
    least_jax: tuple[int, int] = (0, 0)
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    documents: bool = True
    non_causal: bool = True
    lse: bool = True
    some_queries: bool = True
    leaves_padding_zero: bool = False  # output and gradients are 0 there by themselves, if inputs are finite
    decode: Callable[..., jax.Array] | None = None  # one token against a cache; None: plain jnp

    def refusals(self, request: Request) -> list[str]:
        """Why it cannot serve the request; empty if it can."""
        found = []
        if self.platforms and request.platform not in self.platforms:
            found.append(f"it runs on {_either(self.platforms)}, this is {request.platform}")
        elif self.capability and request.capability != self.capability:
            found.append(
                f"it runs on GPUs of compute capability {self.capability}, this one has "
                f"{request.capability or 'none'}"
            )
        if jax.version.__version_info__[:2] < self.least_jax:
            least = ".".join(map(str, self.least_jax))
            found.append(f"it needs jax {least} or later, this is {jax.__version__}")
        if self.head_dims and request.head_dim not in self.head_dims:
            found.append(f"it takes head_dim {_either(self.head_dims)}, not {request.head_dim}")
        if self.dtypes and request.dtype not in self.dtypes:
            found.append(f"it takes {_either(self.dtypes)}, not {request.dtype}")
        if request.has_documents and not self.documents:
            found.append("it cannot keep documents apart (segment ids)")
        if not request.causal and not self.non_causal:
            found.append("it is causal only")
        if request.needs_lse and not self.lse:
            found.append("it gives no log-sum-exp that gradients go through")
        if not request.has_all_queries and not self.some_queries:
            found.append("queries must be the same tokens as keys, not split over 'sequence'")
        return found


class _Inputs(NamedTuple):
    """Of one device."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    ranges: KeyRanges
    segment_ids_BT: jax.Array
    scale: float
    causal: bool


def _reference(inputs: _Inputs) -> Any:
    mask_BTS = range_mask(inputs.ranges, inputs.k_BSKH.shape[1])
    out, lse = reference.attention(*inputs[:3], mask_BTS, scale=inputs.scale)
    return checkpoint_name(out, "attention_out"), lse


def _chunked(inputs: _Inputs) -> Any:
    return chunked.attention(*inputs[:4], scale=inputs.scale, causal=inputs.causal)


# modules with Pallas are imported when they are used: that takes a quarter of a second


def _xla(inputs: _Inputs) -> Any:
    from llama2_jax.kernels import library

    return checkpoint_name(library.xla(*inputs[:4], scale=inputs.scale), "attention_out"), None


def _tpu(inputs: _Inputs, *, interpret: bool = False) -> Any:
    from llama2_jax.kernels import flash_tpu

    return flash_tpu.attention(*inputs[:4], scale=inputs.scale, causal=inputs.causal, interpret=interpret)


def _tpu_interpret(inputs: _Inputs) -> Any:
    return _tpu(inputs, interpret=True)


def _splash(inputs: _Inputs) -> Any:
    from llama2_jax.kernels import library

    return library.splash(*inputs[:3], inputs.segment_ids_BT, scale=inputs.scale), None


def _cudnn(inputs: _Inputs) -> Any:
    from llama2_jax.kernels import library

    return library.cudnn(*inputs[:3], scale=inputs.scale, causal=inputs.causal), None


def _hopper(inputs: _Inputs) -> Any:
    from llama2_jax.kernels import flash_hopper

    return flash_hopper.attention(*inputs[:4], scale=inputs.scale)


def _decode_tpu(*arrays: jax.Array, scale: float, interpret: bool = False) -> jax.Array:
    from llama2_jax.kernels import decode_tpu

    return decode_tpu.decode_attention(*arrays, scale=scale, interpret=interpret)


def _decode_tpu_interpret(*arrays: jax.Array, scale: float) -> jax.Array:
    return _decode_tpu(*arrays, scale=scale, interpret=True)


def _decode_hopper(*arrays: jax.Array, scale: float) -> jax.Array:
    from llama2_jax.kernels import decode_hopper

    return decode_hopper.decode_attention(*arrays, scale=scale)


HALF = ("bfloat16", "float16")
IMPLEMENTATIONS = {
    # the specification; holds all scores
    "reference": Implementation(_reference),
    # jnp, memory linear in T, skips tiles outside documents: CPU, and anywhere
    "chunked": Implementation(_chunked, dtypes=("bfloat16", "float16", "float32")),
    # jax.nn's plain form; holds all scores
    "xla": Implementation(_xla, dtypes=("bfloat16", "float16", "float32"), lse=False),
    # our kernels
    "tpu": Implementation(
        _tpu, platforms=("tpu",), head_dims=(64, 128), dtypes=("bfloat16", "float32"),
        leaves_padding_zero=True, decode=_decode_tpu,
    ),
    # the same kernels in Pallas' interpreter: slow, for tests and for looking into them
    "tpu_interpret": Implementation(
        _tpu_interpret, dtypes=("bfloat16", "float32"), leaves_padding_zero=True,
        decode=_decode_tpu_interpret,
    ),
    # jax's own TPU kernel: documents are masked, not skipped
    "splash": Implementation(
        _splash, platforms=("tpu",), head_dims=(64, 128, 256), dtypes=("bfloat16", "float32"),
        non_causal=False, lse=False, some_queries=False,
    ),
    # our kernels for H100 and H200
    "hopper": Implementation(
        _hopper, platforms=("gpu", "cuda"), capability="9.0", least_jax=(0, 11), head_dims=(64, 128),
        dtypes=HALF, leaves_padding_zero=True, decode=_decode_hopper,
    ),
    "cudnn": Implementation(
        _cudnn, platforms=("gpu", "cuda"), head_dims=(64, 128), dtypes=HALF, documents=False, lse=False,
        some_queries=False,
    ),
}  # fmt: skip
_GPU = ("hopper", "chunked")
PREFERRED = {"cpu": ("chunked",), "tpu": ("tpu", "chunked"), "gpu": _GPU, "cuda": _GPU}
NAMES = ("auto", *IMPLEMENTATIONS)


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
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
      causal: a query sees no later key. Without documents T may differ from S; the last query then sees the
        last key.
      scale: of the scores, default H ** -0.5.
      impl: one of ``NAMES``.
      placement: default ``unsharded()``.

    Returns:
      Output in the dtype of ``q`` and the natural log of the sum of exponentials, float32; where a query sees
      nothing 0 and -inf.

    Raises:
      ConfigError: the shapes do not fit, or the implementation does not serve them.
    """
    _check_shapes(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT)
    placement = placement or unsharded()
    batch, length, _, head_dim = q_BTNH.shape
    keys = k_BSKH.shape[1]
    request = Request(
        placement.platform,
        head_dim,
        jnp.dtype(q_BTNH.dtype).name,
        has_documents=segment_ids_BT is not None,
        causal=causal,
        needs_lse=needs_lse,
        has_all_queries=length == keys and placement.query_shards == 1,
        capability=placement.capability,
    )
    chosen = choose(impl, request)
    scale = head_dim**-0.5 if scale is None else scale
    if segment_ids_BT is None:
        ranges, ids = row_ranges(batch, length, keys, causal=causal), jnp.ones((batch, length), jnp.int32)
    else:
        ranges, ids = document_ranges(segment_ids_BT, causal=causal), segment_ids_BT
        # also the gradients of padding are zero, and what it held cannot turn into NaN times 0
        clear = _cleared if chosen.leaves_padding_zero else _tokens_only
        q_BTNH, k_BSKH, v_BSKH = (clear(array, ids) for array in (q_BTNH, k_BSKH, v_BSKH))

    def local(q: Any, k: Any, v: Any, first: Any, end: Any, ids: Any) -> tuple[jax.Array, ...]:
        out, lse = chosen.run(_Inputs(q, k, v, KeyRanges(first, end), ids, scale, causal))
        return (out, lse) if needs_lse else (out,)

    k_BSKH, v_BSKH = (_head_per_shard(array, 2, placement) for array in (k_BSKH, v_BSKH))
    dims = ("BTNH", "BSKH", "BSKH", "BT", "BT", "BT")
    out_dims = ("BTNH", "BTN") if needs_lse else ("BTNH",)
    out_BTNH, *lse = placement.map_shards(local, (q_BTNH, k_BSKH, v_BSKH, *ranges, ids), dims, out_dims)
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
    _check_cache_shapes(q_BTNH, k_BKSH, v_BKSH, mask_BTS)
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
            _say_once(f"attention of {tokens} to a cache", f"plain jnp, {impl!r} has no kernel for it")
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


def choose(impl: str, request: Request) -> Implementation:
    """The implementation behind a name.

    Raises:
      ConfigError: it does not serve the request; the message says why, and which do.
    """
    require_choice("attention_impl", impl, NAMES)
    serving = [name for name, one in IMPLEMENTATIONS.items() if not one.refusals(request)]
    if impl == "auto":
        preferred = PREFERRED.get(request.platform, ("chunked",))
        impl = next(name for name in preferred if name in serving)
        _say_once(f"attention on {request.platform}", impl)
    elif impl not in serving:
        reasons = "; ".join(IMPLEMENTATIONS[impl].refusals(request))
        raise ConfigError(
            f"attention_impl {impl!r} cannot serve this: {reasons}. These can: {', '.join(serving)}"
        )
    return IMPLEMENTATIONS[impl]


@functools.cache
def _say_once(what: str, how: str) -> None:
    print(f"{what}: {how}", file=sys.stderr)


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


def _check_shapes(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids_BT: jax.Array | None) -> None:
    _check_arrays(q, k, v, heads=q.shape[2], kv_heads=k.shape[2])
    if segment_ids_BT is None:
        return
    require(
        segment_ids_BT.shape == q.shape[:2] and q.shape[1] == k.shape[1],
        f"attention: segment ids have shape {segment_ids_BT.shape}, q {q.shape[:2]} and k {k.shape[:2]} "
        "tokens; documents need the same tokens as queries and keys",
    )
    if not isinstance(segment_ids_BT, jax.core.Tracer):
        check_segment_ids(np.asarray(segment_ids_BT))


def _check_cache_shapes(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> None:
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


def _either(choices: tuple[Any, ...]) -> str:
    return " or ".join(str(choice) for choice in choices)
