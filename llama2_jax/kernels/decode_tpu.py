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

from llama2_jax.kernels.flash_tpu import LANES, LIST_BYTES, LOG2_E, VMEM_BYTES, Interpret, Ref
from llama2_jax.kernels.reference import NEGATIVE

BLOCK_BYTES = 2**20  # of keys, and of values, per step


@dataclasses.dataclass(frozen=True)
class Split:
    """How the cache is cut."""

    slots: int = 512  # per block
    parts: int = 1  # of the row, each with its own softmax


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
      visible_BS: which slots each row sees.

    Raises:
      ValueError: the list of blocks does not fit scalar memory.
    """
    batch, kv_heads, slots, head_dim = k_BKSH.shape
    split = split or Split()
    block = min(split.slots, -(-slots // LANES) * LANES)
    part_blocks = -(-slots // (block * split.parts))
    padded = part_blocks * split.parts * block
    mask_BS = jnp.pad(visible_BS.astype(jnp.int32), ((0, 0), (0, padded - slots)))
    # a part is a row of its own: R = B times parts
    used_RI = mask_BS.reshape(batch * split.parts, part_blocks, block).any(-1)
    used_RI = used_RI.at[:, 0].set(used_RI[:, 0] | ~used_RI.any(-1))  # every output is written
    if 8 * used_RI.size > LIST_BYTES:
        raise ValueError(
            f"decoding with 'tpu': {batch} rows of {slots} slots take {8 * used_RI.size:,} bytes of blocks, "
            f"scalar memory has room for {LIST_BYTES:,}; use fewer rows per device"
        )
    part_I, block_I = (
        array.astype(jnp.int32) for array in jnp.nonzero(used_RI, size=used_RI.size, fill_value=0)
    )
    heads = _heads_per_block(kv_heads, block * head_dim * k_BKSH.dtype.itemsize)
    groups = q_BNH.shape[1] // kv_heads
    last_block = -(-slots // block) - 1

    def query_index(h: Any, i: Any, part: Any, block: Any) -> tuple[Any, ...]:
        return part[i] // split.parts, h, 0, 0

    def slot_block(i: Any, part: Any, block: Any) -> Any:
        # a part may end beyond the cache, where all is masked
        return jnp.minimum(part[i] % split.parts * part_blocks + block[i], last_block)

    def cache_index(h: Any, i: Any, part: Any, block: Any) -> tuple[Any, ...]:
        return part[i] // split.parts, h, slot_block(i, part, block), 0

    def mask_index(h: Any, i: Any, part: Any, block: Any) -> tuple[Any, ...]:
        return part[i] // split.parts, 0, part[i] % split.parts * part_blocks + block[i]

    def out_index(h: Any, i: Any, part: Any, block: Any) -> tuple[Any, ...]:
        return part[i], h, 0, 0

    cache_spec = pl.BlockSpec((1, heads, block, head_dim), cache_index)
    rows = batch * split.parts
    out_RKGH, lse_RKG1 = pl.pallas_call(
        functools.partial(_kernel, scale=scale, slots=slots, part_blocks=part_blocks, parts=split.parts),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(kv_heads // heads, used_RI.sum(dtype=jnp.int32)),
            in_specs=[
                pl.BlockSpec((1, 1, block), mask_index),
                pl.BlockSpec((1, heads, groups, head_dim), query_index),
                cache_spec,
                cache_spec,
            ],
            out_specs=[
                pl.BlockSpec((1, heads, groups, head_dim), out_index),
                pl.BlockSpec((1, heads, groups, 1), out_index),
            ],
            scratch_shapes=[
                pltpu.VMEM((heads, groups, 1), jnp.float32),
                pltpu.VMEM((heads, groups, 1), jnp.float32),
                pltpu.VMEM((heads, groups, head_dim), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((rows, kv_heads, groups, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((rows, kv_heads, groups, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * q_BNH.size * slots,
            transcendentals=q_BNH.shape[0] * q_BNH.shape[1] * slots,
            bytes_accessed=2 * k_BKSH.size * k_BKSH.dtype.itemsize,
        ),
        interpret=interpret,
        name="flash_decode",
    )(part_I, block_I, mask_BS[:, None], q_BNH.reshape(batch, kv_heads, groups, head_dim), k_BKSH, v_BKSH)
    out = out_RKGH.reshape(batch, split.parts, -1, head_dim)
    lse = lse_RKG1.reshape(batch, split.parts, -1, 1)
    return combine(out, lse).astype(q_BNH.dtype)


def combine(out_BPNH: jax.Array, lse_BPN1: jax.Array) -> jax.Array:
    """Attention over all slots from that over each of P parts; one that saw nothing has log-sum-exp -inf."""
    peak = jnp.maximum(lse_BPN1.max(axis=1, keepdims=True), NEGATIVE)
    weights = jnp.exp(lse_BPN1 - peak)
    return (out_BPNH * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1e-30)


def _heads_per_block(kv_heads: int, head_bytes: int) -> int:
    """The largest divisor of the key/value heads whose block is at most ``BLOCK_BYTES``."""
    fitting = [
        heads
        for heads in range(1, kv_heads + 1)
        if kv_heads % heads == 0 and heads * head_bytes <= BLOCK_BYTES
    ]
    return max(fitting, default=1)


def _kernel(
    part_ref: Ref, block_ref: Ref,
    mask_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
    out_ref: Ref, lse_ref: Ref,
    peak_ref: Ref, total_ref: Ref, sum_ref: Ref,
    *, scale: float, slots: int, part_blocks: int, parts: int,
) -> None:  # fmt: skip
    step, last = pl.program_id(1), pl.num_programs(1) - 1
    part = part_ref[step]

    @pl.when((step == 0) | (part_ref[jnp.maximum(step - 1, 0)] != part))
    def _start() -> None:
        peak_ref[...] = jnp.full(peak_ref.shape, NEGATIVE / 2, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    q, k, v = q_ref[0], k_ref[0], v_ref[0]
    # beyond the end of the cache a block holds anything, NaN as well
    index = (part % parts * part_blocks + block_ref[step]) * k.shape[1]
    is_slot = index + jax.lax.broadcasted_iota(jnp.int32, (1, k.shape[1], 1), 1) < slots
    v = jnp.where(is_slot, v, jnp.zeros_like(v))
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    scores = dot(q, k, (((2,), (2,)), ((0,), (0,)))) * (scale * LOG2_E)
    scores = jnp.where(mask_ref[...] != 0, scores, NEGATIVE)
    before = peak_ref[...]
    peak = jnp.maximum(before, scores.max(axis=-1, keepdims=True))
    probs, shrink = jnp.exp2(scores - peak), jnp.exp2(before - peak)
    peak_ref[...] = peak
    total_ref[...] = total_ref[...] * shrink + probs.sum(axis=-1, keepdims=True)
    sum_ref[...] = sum_ref[...] * shrink + dot(probs.astype(v.dtype), v, (((2,), (1,)), ((0,), (0,))))

    @pl.when((step == last) | (part_ref[jnp.minimum(step + 1, last)] != part))
    def _finish() -> None:
        total = total_ref[...]
        is_seeing = total != 0
        safe = jnp.where(is_seeing, total, 1.0)
        out_ref[0] = sum_ref[...] / safe
        lse_ref[0] = jnp.where(is_seeing, peak_ref[...] / LOG2_E + jnp.log(safe), -jnp.inf)
