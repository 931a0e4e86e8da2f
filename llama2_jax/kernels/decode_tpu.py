"""Attention of one new token per row to a key/value cache, on TPU.

Decoding reads the cache once and computes little, so the kernel is about loading: it visits only the blocks
of slots in which the row has a token. The G query heads of a key/value head are the rows of one product, and
a block holds several key/value heads, so that each load is large. The slots may be split in parts, each with
its own softmax; their outputs are combined by their log-sum-exps.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llama2_jax.kernels.flash_tpu import (
    LANES,
    VMEM_BYTES,
    Interpret,
    Ref,
    check_list_bytes,
)
from llama2_jax.kernels.reference import NEGATIVE
from llama2_jax.kernels.softmax import LOG2_E, combine, finish
from llama2_jax.precision import kernel_precision

BLOCK_BYTES = 2**20  # of keys, and of values, per step


@dataclasses.dataclass(frozen=True)
class Split:
    """How the cache is cut."""

    slots: int = 512  # per block
    parts: int = 1  # of the row, each with its own softmax; the cores of a chip share them


def choose_split(kv_heads: int, slots: int, head_dim: int, value_bytes: int) -> Split:
    """Two parts where there is but one block of heads, for chips with two cores."""
    split = Split()
    heads = heads_per_block(kv_heads, split.slots * head_dim * value_bytes)
    return dataclasses.replace(split, parts=2 if heads == kv_heads and slots >= 2 * split.slots else 1)


def decode_attention(
    q_BNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    visible_BS: jax.Array,
    *,
    scale: float,
    split: Split | None = None,
    interpret: Interpret = False,
) -> jax.Array:
    """Grouped-query attention of one token, output (B, N, H); 0 where no slot is visible.

    Args:
      visible_BS: which slots each row sees. In a block with one of them the others must be finite.

    Raises:
      ConfigError: the lists of blocks do not fit scalar memory.
    """
    batch, kv_heads, slots, head_dim = k_BKSH.shape
    groups = q_BNH.shape[1] // kv_heads
    value_bytes = k_BKSH.dtype.itemsize
    split = split or choose_split(kv_heads, slots, head_dim, value_bytes)
    block = min(split.slots, -(-slots // LANES) * LANES)
    part_blocks = -(-slots // (block * split.parts))
    mask_BS = jnp.pad(visible_BS.astype(jnp.int32), ((0, 0), (0, part_blocks * split.parts * block - slots)))
    row_PI, block_PI, total_P = _visits(mask_BS.reshape(batch, split.parts, part_blocks, block).any(-1))
    check_list_bytes(8 * row_PI.size, f"decoding {batch} rows of {slots} slots takes")
    heads = heads_per_block(kv_heads, block * head_dim * value_bytes)
    at = _Index(batch * part_blocks, part_blocks, last_block=-(-slots // block) - 1)
    cache_spec = pl.BlockSpec((1, heads, block, head_dim), at.cache)
    out_BPKGH, lse_BPKG1 = pl.pallas_call(
        functools.partial(
            _kernel, scale=scale, slots=slots, part_blocks=part_blocks, part_visits=at.part_visits
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(kv_heads // heads, split.parts, total_P.max()),
            in_specs=[
                pl.BlockSpec((1, 1, block), at.mask),
                pl.BlockSpec((1, heads, groups, head_dim), at.query),
                cache_spec,
                cache_spec,
            ],
            out_specs=[
                pl.BlockSpec((1, 1, heads, groups, head_dim), at.out),
                pl.BlockSpec((1, 1, heads, groups, 1), at.out),
            ],
            scratch_shapes=[
                pltpu.VMEM((heads, groups, 1), jnp.float32),
                pltpu.VMEM((heads, groups, 1), jnp.float32),
                pltpu.VMEM((heads, groups, head_dim), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, split.parts, kv_heads, groups, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((batch, split.parts, kv_heads, groups, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * q_BNH.size * slots,
            transcendentals=batch * q_BNH.shape[1] * slots,
            bytes_accessed=2 * k_BKSH.size * value_bytes,
        ),
        interpret=interpret,
        name="flash_decode",
    )(
        row_PI.reshape(-1), block_PI.reshape(-1), total_P,
        mask_BS[:, None], q_BNH.reshape(batch, kv_heads, groups, head_dim), k_BKSH, v_BKSH,
    )  # fmt: skip
    parts = (batch, split.parts, kv_heads * groups)
    out, _ = combine(out_BPKGH.reshape(*parts, head_dim), lse_BPKG1.reshape(*parts, 1))
    return out.astype(q_BNH.dtype)


@dataclasses.dataclass(frozen=True)
class _Index:
    """Which block of an array a step of the grid (heads, part, visit) works on, read from the lists."""

    part_visits: int
    part_blocks: int
    last_block: int

    def _visit(self, p: Any, i: Any, row: Ref, block: Ref, total: Ref) -> tuple[Any, Any]:
        # beyond its visits a part stays where it is: nothing is loaded or computed
        index = p * self.part_visits + jnp.minimum(i, total[p] - 1)
        return row[index], p * self.part_blocks + block[index]

    def query(self, h: Any, p: Any, i: Any, *lists: Ref) -> tuple[Any, ...]:
        return self._visit(p, i, *lists)[0], h, 0, 0

    def cache(self, h: Any, p: Any, i: Any, *lists: Ref) -> tuple[Any, ...]:
        row, block = self._visit(p, i, *lists)
        # the last part may end beyond the cache, where all is masked
        return row, h, jnp.minimum(block, self.last_block), 0

    def mask(self, h: Any, p: Any, i: Any, *lists: Ref) -> tuple[Any, ...]:
        row, block = self._visit(p, i, *lists)
        return row, 0, block

    def out(self, h: Any, p: Any, i: Any, *lists: Ref) -> tuple[Any, ...]:
        return self._visit(p, i, *lists)[0], p, h, 0, 0


def _visits(is_used_BPI: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows and blocks (of the part) that each part visits, row by row, and how many they are.

    A row without a visible slot in the part is visited once, so that its output is written.
    """
    is_used_BPI = is_used_BPI.at[:, :, 0].set(is_used_BPI[:, :, 0] | ~is_used_BPI.any(-1))
    size = is_used_BPI.shape[0] * is_used_BPI.shape[2]

    def of_part(is_used_BI: jax.Array) -> tuple[jax.Array, ...]:
        row, block = jnp.nonzero(is_used_BI, size=size, fill_value=0)
        return row.astype(jnp.int32), block.astype(jnp.int32), is_used_BI.sum(dtype=jnp.int32)

    row_PI, block_PI, total_P = jax.vmap(of_part)(is_used_BPI.swapaxes(0, 1))
    return row_PI, block_PI, total_P


def heads_per_block(kv_heads: int, head_bytes: int) -> int:
    """The largest divisor of the key/value heads whose block is at most ``BLOCK_BYTES``."""
    divisors = [heads for heads in range(1, kv_heads + 1) if kv_heads % heads == 0]
    return max((heads for heads in divisors if heads * head_bytes <= BLOCK_BYTES), default=1)


def _kernel(
    row_ref: Ref, block_ref: Ref, total_ref: Ref,
    mask_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
    out_ref: Ref, lse_ref: Ref,
    peak_ref: Ref, sum_ref: Ref, weighted_ref: Ref,
    *, scale: float, slots: int, part_blocks: int, part_visits: int,
) -> None:  # fmt: skip
    part, step = pl.program_id(1), pl.program_id(2)
    last = total_ref[part] - 1

    def row_of(step: Any) -> Any:
        return row_ref[part * part_visits + step]

    @pl.when(step <= last)
    def _visit() -> None:
        row = row_of(step)

        @pl.when((step == 0) | (row_of(jnp.maximum(step - 1, 0)) != row))
        def _start() -> None:
            peak_ref[...] = jnp.full(peak_ref.shape, NEGATIVE / 2, jnp.float32)
            sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
            weighted_ref[...] = jnp.zeros(weighted_ref.shape, jnp.float32)

        q, k, v = q_ref[0], k_ref[0], v_ref[0]
        # beyond the end of the cache a block holds anything, NaN as well
        first = (part * part_blocks + block_ref[part * part_visits + step]) * k.shape[1]
        is_slot = first + jax.lax.broadcasted_iota(jnp.int32, (1, k.shape[1], 1), 1) < slots
        v = jnp.where(is_slot, v, jnp.zeros_like(v))
        precision = kernel_precision(q.dtype)
        dot = functools.partial(jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
        scores = dot(q, k, (((2,), (2,)), ((0,), (0,)))) * (scale * LOG2_E)
        scores = jnp.where(mask_ref[...] != 0, scores, NEGATIVE)
        before = peak_ref[...]
        peak = jnp.maximum(before, scores.max(axis=-1, keepdims=True))
        probs, shrink = jnp.exp2(scores - peak), jnp.exp2(before - peak)
        peak_ref[...] = peak
        sum_ref[...] = sum_ref[...] * shrink + probs.sum(axis=-1, keepdims=True)
        weighted = dot(probs.astype(v.dtype), v, (((2,), (1,)), ((0,), (0,))))
        weighted_ref[...] = weighted_ref[...] * shrink + weighted

        @pl.when((step == last) | (row_of(jnp.minimum(step + 1, last)) != row))
        def _finish() -> None:
            out_ref[0, 0], lse_ref[0, 0] = finish(weighted_ref[...], sum_ref[...], peak_ref[...] / LOG2_E)
