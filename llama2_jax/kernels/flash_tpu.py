"""Attention on TPU: Pallas kernels that visit only the tiles of the score matrix in which something is seen.

The grid is (key/value heads, visits). Lists of visits, made from the ranges of ``ranges.py``, are prefetched
scalars: they say which tile of queries and keys comes next, so Pallas loads nothing that is not computed,
and a row of packed documents costs what its documents cost. One list goes query by query (output and dq),
one key by key (dk and dv).

Keys lie along sublanes and queries along lanes. What is kept per query (range, maximum, sum, log-sum-exp)
is then a row of lanes, reductions over keys run across sublanes, and nothing is stored 128 times over. A tile
of queries holds all G query heads of its key/value head, so keys are loaded once for them, and dk and dv are
summed over them by the matrix product itself. Nothing is added across grid steps of different outputs: two
runs are bitwise equal.

Softmax in base 2 with the scale folded in; scores, sums and accumulators in float32; probabilities in the
dtype of the values for the second product.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llama2_jax.config import ConfigError
from llama2_jax.kernels.ranges import (
    PARTIAL,
    WHOLE,
    KeyRanges,
    Visit,
    VisitCode,
    Visits,
    visits_by_key,
    visits_by_query,
)
from llama2_jax.kernels.reference import NEGATIVE
from llama2_jax.kernels.softmax import LOG2_E, finish, start_backward
from llama2_jax.kernels.tiles import Layout, Tiles
from llama2_jax.precision import kernel_precision

LANES = 128
# Tokens and keys of a tile are multiples of the lanes. With these sizes every kernel in bfloat16 takes less
# than the 16 MiB of vector memory of the smallest chip; in float32 up to 50 MiB, by the older compiler.
TILES = Tiles(rows=1024, keys=512, multiple=LANES)
VMEM_BYTES = 16 * 2**20
LIST_BYTES = 512 * 1024  # of the lists of visits, half of the scalar memory

Ref = Any
"""A reference to a tile in vector memory, or to a list in scalar memory."""

Interpret = Any
"""False on a TPU; True or ``pltpu.InterpretParams`` anywhere."""


class _Call(NamedTuple):
    """What is fixed when a kernel is compiled."""

    layout: Layout
    scale: float
    causal: bool
    interpret: Interpret

    @property
    def most_visits(self) -> int:
        return self.layout.most_visits(causal=self.causal)


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    *,
    scale: float,
    causal: bool,
    tiles: Tiles = TILES,
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array]:
    """Output (B, T, N, H) in the dtype of ``q`` and log-sum-exp (B, T, N) float32, both differentiable.

    Where a query sees nothing the output is 0 and the log-sum-exp -inf. ``causal`` says that no range ends
    beyond its query, where queries and keys are the same tokens.

    Raises:
      ConfigError: the lists of visits do not fit scalar memory.
    """
    layout = tiles.layout(q_BTNH, k_BSKH)
    call = _Call(layout, scale, causal, interpret)
    check_list_bytes(
        4 * call.most_visits,
        f"{layout.batch} rows of {layout.length} queries and {layout.num_keys} keys take",
    )
    rows, keys, values = layout.rows(q_BTNH), layout.keys(k_BSKH), layout.keys(v_BSKH)
    out_BKMH, lse_BKM = _attention(call, rows, keys, values, ranges)
    return layout.tokens(out_BKMH), layout.tokens(lse_BKM[..., None])[..., 0]


def check_list_bytes(needed: int, what: str) -> None:
    """Raise ``ConfigError`` if lists of visits do not fit scalar memory."""
    if needed > LIST_BYTES:
        raise ConfigError(
            f"attention_impl 'tpu': {what} {needed:,} bytes of lists per device, scalar memory has room for "
            f"{LIST_BYTES:,}; use fewer rows per device or 'chunked'"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    call: _Call, q_BKMH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, ranges: KeyRanges
) -> tuple[jax.Array, jax.Array]:
    return _forward(call, q_BKMH, k_BKSH, v_BKSH, ranges)[0]


def _forward(call: _Call, q_BKMH: Any, k_BKSH: Any, v_BKSH: Any, ranges: KeyRanges) -> tuple[Any, Any]:
    layout = call.layout
    visits = visits_by_query(layout.work(ranges), call.most_visits)
    first, end = (array[:, None] for array in layout.row_ranges(ranges))
    out, lse_BK1M = _run(
        _forward_kernel,
        call,
        visits,
        inputs=[(first, "range"), (end, "range"), (q_BKMH, "rows"), (k_BKSH, "keys"), (v_BKSH, "keys")],
        outputs=[(q_BKMH.dtype, "rows"), (jnp.float32, "vector")],
        scratch=[(1, layout.tile_rows), (1, layout.tile_rows), (layout.head_dim, layout.tile_rows)],
        products=2,
        name="flash_forward",
    )
    # by these names a remat policy keeps what the backward pass needs, and the kernel does not run again
    out, lse_BKM = checkpoint_name(out, "attention_out"), checkpoint_name(lse_BK1M[:, :, 0], "attention_lse")
    return (out, lse_BKM), (q_BKMH, k_BKSH, v_BKSH, ranges, out, lse_BKM)


def _backward(call: _Call, residuals: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    q, k, v, ranges, out, lse_BKM = residuals
    d_out, d_lse_BKM = cotangents
    lse_BKM, delta_BKM = start_backward(out, lse_BKM, d_out, d_lse_BKM)
    layout = call.layout
    first, end = (array[:, None] for array in layout.row_ranges(ranges))
    inputs = [
        (first, "range"), (end, "range"), (q, "rows"), (k, "keys"), (v, "keys"), (d_out, "rows"),
        (lse_BKM[:, :, None], "vector"), (delta_BKM[:, :, None], "vector"),
    ]  # fmt: skip
    work = layout.work(ranges)
    dq = _run(
        _dq_kernel,
        call,
        visits_by_query(work, call.most_visits),
        inputs=inputs,
        outputs=[(q.dtype, "rows")],
        scratch=[(layout.head_dim, layout.tile_rows)],
        products=3,
        name="flash_dq",
    )[0]
    dk, dv = _run(
        _dkv_kernel,
        call,
        visits_by_key(work, call.most_visits),
        inputs=inputs,
        outputs=[(k.dtype, "keys"), (v.dtype, "keys")],
        scratch=[(layout.key_tile, layout.head_dim)] * 2,
        products=4,
        name="flash_dkv",
    )
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


def _run(
    kernel: Callable[..., None],
    call: _Call,
    visits: Visits,
    *,
    inputs: list[tuple[jax.Array, str]],
    outputs: list[tuple[Any, str]],
    scratch: list[tuple[int, int]],
    products: int,
    name: str,
) -> list[jax.Array]:
    """Run a kernel over all visits; every array is cut into tiles as its kind says."""
    layout = call.layout
    rows, keys, dim = layout.tile_rows, layout.key_tile, layout.head_dim

    def at(place: Callable[[Visit, Any], tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        return lambda head, step, codes: place(layout.code.decode(codes[step]), head)

    specs = {
        "rows": pl.BlockSpec((1, 1, rows, dim), at(lambda visit, head: (visit.row, head, visit.query, 0))),
        "keys": pl.BlockSpec((1, 1, keys, dim), at(lambda visit, head: (visit.row, head, visit.key, 0))),
        "range": pl.BlockSpec((1, 1, rows), at(lambda visit, head: (visit.row, 0, visit.query))),
        "vector": pl.BlockSpec((1, 1, 1, rows), at(lambda visit, head: (visit.row, head, 0, visit.query))),
    }
    all_rows, all_keys = layout.query_tiles * rows, layout.key_tiles * keys
    shapes = {"rows": (all_rows, dim), "keys": (all_keys, dim), "vector": (1, all_rows)}
    pairs = layout.batch * layout.kv_heads * all_rows * all_keys // 2  # causal: half of all
    return pl.pallas_call(
        functools.partial(kernel, scale=call.scale, code=layout.code),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(layout.kv_heads, visits.total),
            in_specs=[specs[kind] for _, kind in inputs],
            out_specs=[specs[kind] for _, kind in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((layout.batch, layout.kv_heads, *shapes[kind]), dtype)
            for dtype, kind in outputs
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * pairs * dim,
            transcendentals=pairs,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array, _ in inputs),
        ),
        interpret=call.interpret,
        name=name,
    )(visits.code_I, *(array for array, _ in inputs))


class _Step:
    """The current visit, read from the prefetched list."""

    def __init__(self, code_ref: Ref, code: VisitCode, *, output: str) -> None:
        step, last = pl.program_id(1), pl.num_programs(1) - 1

        def visit(step: Any) -> Visit:
            return code.decode(code_ref[step])

        here, before, after = (
            visit(at) for at in (step, jnp.maximum(step - 1, 0), jnp.minimum(step + 1, last))
        )

        def is_other(there: Visit) -> Any:
            return (there.row != here.row) | (getattr(there, output) != getattr(here, output))

        self.is_first = (step == 0) | is_other(before)
        self.is_last = (step == last) | is_other(after)
        self.key, self.work = here.key, here.work

    def compute(self, step: Callable[[bool], None]) -> None:
        """Run ``step(needs_mask)`` if there is something to do."""
        pl.when(self.work == WHOLE)(lambda: step(False))
        pl.when(self.work == PARTIAL)(lambda: step(True))


def _dot(a: jax.Array, b: jax.Array, *, contract: tuple[int, int]) -> jax.Array:
    precision = kernel_precision(a.dtype)
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _scores(
    q: jax.Array, k: jax.Array, first_ref: Any, end_ref: Any, *, key: Any, needs_mask: bool, scale: float
) -> jax.Array:
    """Scores of a tile, times log2(e): keys along sublanes, rows of queries along lanes."""
    scores = _dot(k, q, contract=(1, 1)) * (scale * LOG2_E)
    if not needs_mask:
        return scores
    index = key * k.shape[0] + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return jnp.where((index >= first_ref[0]) & (index < end_ref[0]), scores, NEGATIVE)


def _forward_kernel(
    code_ref: Ref,
    first_ref: Ref, end_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
    out_ref: Ref, lse_ref: Ref,
    peak_ref: Ref, total_ref: Ref, sum_ref: Ref,
    *, scale: float, code: VisitCode,
) -> None:  # fmt: skip
    visit = _Step(code_ref, code, output="query")

    @pl.when(visit.is_first)
    def _start() -> None:
        # above NEGATIVE, so that a row of masked scores has probabilities exp2(NEGATIVE - peak) = 0
        peak_ref[...] = jnp.full(peak_ref.shape, NEGATIVE / 2, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    def step(needs_mask: bool) -> None:
        v = v_ref[0, 0]
        scores = _scores(
            q_ref[0, 0], k_ref[0, 0], first_ref, end_ref, key=visit.key, needs_mask=needs_mask, scale=scale
        )
        before = peak_ref[...]
        peak = jnp.maximum(before, scores.max(axis=0, keepdims=True))
        probs, shrink = jnp.exp2(scores - peak), jnp.exp2(before - peak)
        peak_ref[...] = peak
        total_ref[...] = total_ref[...] * shrink + probs.sum(axis=0, keepdims=True)
        sum_ref[...] = sum_ref[...] * shrink + _dot(v, probs.astype(v.dtype), contract=(0, 0))

    visit.compute(step)

    @pl.when(visit.is_last)
    def _finish() -> None:
        out, lse = finish(sum_ref[...], total_ref[...], peak_ref[...] / LOG2_E)
        out_ref[0, 0], lse_ref[0, 0] = out.T.astype(out_ref.dtype), lse


def _dq_kernel(
    code_ref: Ref,
    first_ref: Ref, end_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, d_out_ref: Ref, lse_ref: Ref,
    delta_ref: Ref,
    dq_ref: Ref,
    sum_ref: Ref,
    *, scale: float, code: VisitCode,
) -> None:  # fmt: skip
    visit = _Step(code_ref, code, output="query")

    @pl.when(visit.is_first)
    def _start() -> None:
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    def step(needs_mask: bool) -> None:
        k = k_ref[0, 0]
        scores = _scores(
            q_ref[0, 0], k, first_ref, end_ref, key=visit.key, needs_mask=needs_mask, scale=scale
        )
        _, d_scores = _probs_and_gradient(scores, v_ref[0, 0], d_out_ref[0, 0], lse_ref, delta_ref)
        sum_ref[...] += _dot(k, d_scores.astype(k.dtype), contract=(0, 0))

    visit.compute(step)

    @pl.when(visit.is_last)
    def _finish() -> None:
        dq_ref[0, 0] = (sum_ref[...] * scale).T.astype(dq_ref.dtype)


def _dkv_kernel(
    code_ref: Ref,
    first_ref: Ref, end_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, d_out_ref: Ref, lse_ref: Ref,
    delta_ref: Ref,
    dk_ref: Ref, dv_ref: Ref,
    dk_sum_ref: Ref, dv_sum_ref: Ref,
    *, scale: float, code: VisitCode,
) -> None:  # fmt: skip
    visit = _Step(code_ref, code, output="key")

    @pl.when(visit.is_first)
    def _start() -> None:
        dk_sum_ref[...] = jnp.zeros(dk_sum_ref.shape, jnp.float32)
        dv_sum_ref[...] = jnp.zeros(dv_sum_ref.shape, jnp.float32)

    def step(needs_mask: bool) -> None:
        q, d_out = q_ref[0, 0], d_out_ref[0, 0]
        scores = _scores(
            q, k_ref[0, 0], first_ref, end_ref, key=visit.key, needs_mask=needs_mask, scale=scale
        )
        probs, d_scores = _probs_and_gradient(scores, v_ref[0, 0], d_out, lse_ref, delta_ref)
        dv_sum_ref[...] += _dot(probs.astype(d_out.dtype), d_out, contract=(1, 0))
        dk_sum_ref[...] += _dot(d_scores.astype(q.dtype), q, contract=(1, 0))

    visit.compute(step)

    @pl.when(visit.is_last)
    def _finish() -> None:
        dk_ref[0, 0] = (dk_sum_ref[...] * scale).astype(dk_ref.dtype)
        dv_ref[0, 0] = dv_sum_ref[...].astype(dv_ref.dtype)


def _probs_and_gradient(
    scores: jax.Array, v: jax.Array, d_out: jax.Array, lse_ref: Any, delta_ref: Any
) -> tuple[jax.Array, jax.Array]:
    """Probabilities of a tile made again, and the gradient of its scores before scaling."""
    probs = jnp.exp2(scores - lse_ref[0, 0] * LOG2_E)
    d_probs = _dot(v, d_out, contract=(1, 1))
    return probs, probs * (d_probs - delta_ref[0, 0])
