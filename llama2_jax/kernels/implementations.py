"""Attention implementations by name: what each serves, and how it is called.

``auto`` takes the first of ``PREFERRED`` for the platform that serves the request, and says once which.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.config import ConfigError, require_choice
from llama2_jax.kernels import chunked, reference
from llama2_jax.kernels.ranges import KeyRanges, Seen, seen_mask
from llama2_jax.kernels.softmax import joined


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
    least_capability: float = 0.0
    least_jax: tuple[int, int] = (0, 0)
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    documents: bool = True
    non_causal: bool = True
    lse: bool = True
    some_queries: bool = True
    x64: bool = True  # compiles in jax's x64 mode
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
        elif _number(request.capability) < self.least_capability:
            found.append(
                f"it runs on GPUs of compute capability {self.least_capability} or later, this one has "
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
        if jax.config.jax_enable_x64 and not self.x64:
            found.append("it does not compile where jax_enable_x64 is on")
        return found


class Inputs(NamedTuple):
    """Of one device."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    seen: Seen
    segment_ids_BT: jax.Array
    scale: float
    causal: bool


def _reference(inputs: Inputs) -> Any:
    mask_BTS = seen_mask(inputs.seen, inputs.k_BSKH.shape[1])
    out, lse = reference.attention(*inputs[:3], mask_BTS, scale=inputs.scale)
    return checkpoint_name(out, "attention_out"), lse


def _chunked(inputs: Inputs) -> Any:
    return chunked.attention(*inputs[:4], scale=inputs.scale, causal=inputs.causal)


# modules with Pallas are imported when they are used: that takes a quarter of a second


def _xla(inputs: Inputs) -> Any:
    from llama2_jax.kernels import library

    (ranges,) = inputs.seen
    return checkpoint_name(library.xla(*inputs[:3], ranges, scale=inputs.scale), "attention_out"), None


def _tpu(inputs: Inputs, *, interpret: bool = False) -> Any:
    from llama2_jax.kernels import flash_tpu

    def attend(ranges: KeyRanges) -> Any:
        return flash_tpu.attention(
            *inputs[:3], ranges, scale=inputs.scale, causal=inputs.causal, interpret=interpret
        )

    return joined(attend, inputs.seen)


def _splash(inputs: Inputs) -> Any:
    from llama2_jax.kernels import library

    return library.splash(*inputs[:3], inputs.segment_ids_BT, scale=inputs.scale), None


def _cudnn(inputs: Inputs) -> Any:
    from llama2_jax.kernels import library

    return library.cudnn(*inputs[:3], scale=inputs.scale, causal=inputs.causal), None


def _triton(inputs: Inputs) -> Any:
    from llama2_jax.kernels import library

    ids_BT = inputs.segment_ids_BT
    return library.triton(*inputs[:3], ids_BT, scale=inputs.scale, causal=inputs.causal), None


def _hopper(inputs: Inputs) -> Any:
    from llama2_jax.kernels import flash_hopper

    def attend(ranges: KeyRanges) -> Any:
        return flash_hopper.attention(*inputs[:3], ranges, scale=inputs.scale)

    return joined(attend, inputs.seen)


def _decode_tpu(*arrays: jax.Array, scale: float, interpret: bool = False) -> jax.Array:
    from llama2_jax.kernels import decode_tpu

    return decode_tpu.decode_attention(*arrays, scale=scale, interpret=interpret)


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
        x64=False, leaves_padding_zero=True, decode=_decode_tpu,
    ),
    # the same kernels in Pallas' interpreter: slow, for tests and for looking into them
    "tpu_interpret": Implementation(
        functools.partial(_tpu, interpret=True), dtypes=("bfloat16", "float32"), leaves_padding_zero=True,
        decode=functools.partial(_decode_tpu, interpret=True),
    ),
    # jax's own TPU kernel: documents are masked, not skipped
    "splash": Implementation(
        _splash, platforms=("tpu",), head_dims=(64, 128, 256), dtypes=("bfloat16", "float32"),
        non_causal=False, lse=False, some_queries=False, x64=False,
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
    # jax's own Triton kernel, for GPUs from A100 on: documents are masked, not skipped
    "triton": Implementation(
        _triton, platforms=("gpu", "cuda"), least_capability=8.0, head_dims=(64, 128), dtypes=HALF,
        lse=False, some_queries=False, x64=False,
    ),
}  # fmt: skip
_GPU = ("hopper", "triton", "chunked")
PREFERRED = {"cpu": ("chunked",), "tpu": ("tpu", "chunked"), "gpu": _GPU, "cuda": _GPU}
NAMES = ("auto", *IMPLEMENTATIONS)


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
        say_once(f"attention on {request.platform}", impl)
    elif impl not in serving:
        reasons = "; ".join(IMPLEMENTATIONS[impl].refusals(request))
        raise ConfigError(
            f"attention_impl {impl!r} cannot serve this: {reasons}. These can: {', '.join(serving)}"
        )
    return IMPLEMENTATIONS[impl]


@functools.cache
def say_once(what: str, how: str) -> None:
    """One line on the standard error, of every text only once."""
    print(f"{what}: {how}", file=sys.stderr)


def _number(capability: str) -> float:
    try:
        return float(capability)
    except ValueError:  # none, or that of another vendor
        return 0.0


def _either(choices: tuple[Any, ...]) -> str:
    return " or ".join(str(choice) for choice in choices)
