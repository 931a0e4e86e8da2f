"""Attention of one new token per row to a key/value cache, on Hopper GPUs.

Decoding reads the cache once and computes little, so the kernel is about loading. There is one block of
threads for every processor. It goes through its shares, each a key/value head of a part of a row's slots, and
its copying warpgroup runs ahead over the blocks of slots in which the row has a token, from share to share
without a pause. Two warpgroups compute, each with one half of every block, as if the halves were parts of
their own: parts are combined by their log-sum-exps at the end. The G query heads of a key/value head are rows
of one product; the other rows of the 64 that an instruction multiplies hold anything, and nothing is read
from them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from llama2_jax.config import require
from llama2_jax.kernels import hopper
from llama2_jax.kernels.flash_hopper_steps import along, softmax_start, softmax_step
from llama2_jax.kernels.hopper import BY_COLUMN, BY_ROW, COMPUTE, PART, Ref, Ring
from llama2_jax.kernels.reference import NEGATIVE
from llama2_jax.kernels.softmax import combine, finish

PROCESSORS = 132  # of an H100 SXM or H200; a chip with fewer does the same in two rounds
ROWS = 8  # rows of a swizzled tile: what is copied comes in eights


@dataclasses.dataclass(frozen=True)
class Split:
    """How the cache is cut: slots of the cache per block, blocks in flight, shares wanted per processor."""

    keys: int  # a multiple of 128: each of two warpgroups multiplies 64 or more
    blocks: int
    shares: int = 8

    def parts(self, programs: int, blocks: int) -> int:
        """Parts of a row of so many blocks, where each makes ``programs`` shares."""
        return max(1, min(blocks, -(-self.shares * PROCESSORS // programs)))


VARIANTS = {
    64: (Split(128, 4), Split(256, 2), Split(128, 4, shares=4)),
    128: (Split(128, 2), Split(128, 2, shares=4), Split(128, 2, shares=16)),
}
"""By head dim what may be chosen from; the first is the default. Measured is that of 128 only."""


def decode_attention(
    q_BNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    visible_BS: jax.Array,
    *,
    scale: float,
    split: Split | None = None,
) -> jax.Array:
    """Grouped-query attention of one token, output (B, N, H); 0 where no slot is visible.

    Args:
      visible_BS: which slots each row sees. In a block with one of them the others must be finite.

    Raises:
      ConfigError: more than 64 query heads share a key/value head, or slots are no multiple of 8.
    """
    batch, kv_heads, slots, head_dim = k_BKSH.shape
    groups = q_BNH.shape[1] // kv_heads
    require(
        groups <= PART,
        f"attention_impl 'hopper': {groups} query heads share a key/value head, the kernel that decodes "
        f"takes {PART}; use 'chunked'",
    )
    require(
        slots % ROWS == 0,
        f"attention_impl 'hopper': the cache has {slots} slots, the kernel that decodes copies {ROWS} at a "
        f"time; make it with {-(-slots // ROWS) * ROWS}, or use 'chunked'",
    )
    split = split or VARIANTS[head_dim][0]
    blocks = -(-slots // split.keys)
    parts = split.parts(batch * kv_heads, blocks)
    part_blocks = -(-blocks // parts)
    # beyond the end of the cache nothing is visible, and a copy fills in zeros
    mask_BS = jnp.pad(visible_BS.astype(jnp.int32), ((0, 0), (0, parts * part_blocks * split.keys - slots)))
    is_used_BPI = mask_BS.reshape(batch, parts, part_blocks, split.keys).any(-1)
    # used blocks first, in order
    order_BPI = jnp.argsort(~is_used_BPI, axis=-1, stable=True).astype(jnp.int32)
    block_BPI = order_BPI + jnp.arange(parts, dtype=jnp.int32)[:, None] * part_blocks
    rows = -(-groups // ROWS) * ROWS
    q_BKGH = q_BNH.reshape(batch, kv_heads, groups, head_dim)
    q_BKRH = jnp.pad(q_BKGH, ((0, 0), (0, 0), (0, rows - groups), (0, 0)))
    out_BPKRH, lse_BPKR = _launch(
        block_BPI, is_used_BPI.sum(-1, dtype=jnp.int32), mask_BS, q_BKRH, k_BKSH, v_BKSH,
        scale=scale, split=split,
    )  # fmt: skip
    shape = (batch, parts * COMPUTE, kv_heads * groups)
    out_BPNH = out_BPKRH[:, :, :, :groups].reshape(*shape, head_dim)
    out_BNH, _ = combine(out_BPNH, lse_BPKR[..., :groups].reshape(*shape, 1))
    return out_BNH.astype(q_BNH.dtype)


def _launch(
    block_BPI: jax.Array, count_BP: jax.Array, mask_BS: jax.Array, q_BKRH: jax.Array, k_BKSH: jax.Array,
    v_BKSH: jax.Array, *, scale: float, split: Split,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Output (B, P, K, rows, H) and log-sum-exp (B, P, K, rows) of every half of a part, float32."""
    batch, kv_heads, rows, dim = q_BKRH.shape
    parts, keys, dtype = block_BPI.shape[1], split.keys, q_BKRH.dtype
    half, shares = keys // COMPUTE, batch * parts * kv_heads
    programs = min(PROCESSORS, shares)

    def flash_decode(
        block_ref: Ref, count_ref: Ref, mask_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
        out_ref: Ref, lse_ref: Ref,
        out_shared: Ref, lse_shared: Ref, q_ring: Ring, k_ring: Ring, v_ring: Ring,
    ) -> None:  # fmt: skip
        used_rows = pl.ds(0, rows)

        def each_share(visit: Callable[..., Any]) -> tuple[Any, Any]:
            """How many shares and steps there were; ``visit(number, step, ...)`` gives the next step."""
            program = lax.axis_index("program")

            def share(number: Any, step: Any) -> Any:
                index = program + number * programs
                of_rows, head = lax.div(index, jnp.int32(kv_heads)), lax.rem(index, jnp.int32(kv_heads))
                row, part = lax.div(of_rows, jnp.int32(parts)), lax.rem(of_rows, jnp.int32(parts))
                return visit(number, step, row, part, head)

            mine = lax.div(shares - program + programs - 1, jnp.int32(programs))
            return mine, lax.fori_loop(0, mine, share, jnp.int32(0))

        def copy() -> None:
            def visit(number: Any, step: Any, row: Any, part: Any, head: Any) -> Any:
                q_ring.put(number, q_ref.at[row, head], rows=used_rows)

                def block(i: Any, step: Any) -> Any:
                    slots = pl.ds(block_ref[row, part, i] * keys, keys)
                    k_ring.put(step, k_ref.at[row, head, slots], mask_ref.at[row, slots])
                    v_ring.put(step, v_ref.at[row, head, slots])
                    return step + 1

                return lax.fori_loop(0, count_ref[row, part], block, step)

            mine, steps = each_share(visit)
            q_ring.drain(mine)
            k_ring.drain(steps)
            v_ring.drain(steps)

        def compute(warpgroup: Any) -> None:
            my_half = pl.ds(warpgroup * half, half)

            def visit(number: Any, before: Any, row: Any, part: Any, head: Any) -> Any:
                count = count_ref[row, part]
                (queries,) = q_ring.refs(number)
                q_ring.await_full(number)

                def block(i: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                    sums, peak, total = carry
                    step = before + i
                    k_block, mask = (ref.at[my_half] for ref in k_ring.refs(step))
                    v_block = v_ring.refs(step)[0].at[my_half]

                    def score(accumulator: Ref) -> jax.Array:
                        k_ring.await_full(step)
                        plgpu.wgmma(accumulator, queries, k_block.T)
                        return accumulator[...]

                    scores = hopper.accumulate(score, (PART, half), 1)
                    is_seen = plgpu.load(mask, layout=BY_COLUMN)
                    k_ring.release(step)
                    scores = jnp.where(along(is_seen, scores.shape, 1) != 0, scores, NEGATIVE)
                    probs, shrink, peak, total = softmax_step(scores, peak, total, scale=scale)
                    sums *= along(shrink, sums.shape, 0)
                    probs = probs.astype(dtype)
                    v_ring.await_full(step)
                    (sums,) = hopper.add(lambda accumulator: plgpu.wgmma(accumulator, probs, v_block), sums)
                    v_ring.release(step)
                    return sums, peak, total

                start = (plgpu.layout_cast(x, BY_ROW) for x in softmax_start(PART))
                sums, peak, total = lax.fori_loop(0, count, block, (hopper.zeros((PART, dim)), *start))
                q_ring.release(number)
                inverse, lse = finish(1.0, total, peak * scale)
                place = part * COMPUTE + warpgroup
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the share before
                out_shared.at[warpgroup][...] = sums * along(inverse, sums.shape, 0)
                lse_shared.at[warpgroup][...] = lse
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(out_shared.at[warpgroup, used_rows], out_ref.at[row, place, head])
                plgpu.copy_smem_to_gmem(lse_shared.at[warpgroup, used_rows], lse_ref.at[row, place, head])
                return before + count

            each_share(visit)
            plgpu.wait_smem_to_gmem(0)

        hopper.roles(copy, compute)

    swizzled = plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128)
    return hopper.launch(
        flash_decode,
        (block_BPI, count_BP, mask_BS, q_BKRH, k_BKSH, v_BKSH),
        out=(
            jax.ShapeDtypeStruct((batch, parts * COMPUTE, kv_heads, rows, dim), jnp.float32),
            jax.ShapeDtypeStruct((batch, parts * COMPUTE, kv_heads, rows), jnp.float32),
        ),
        scratch=(
            plgpu.SMEM((COMPUTE, PART, dim), jnp.float32, transforms=swizzled),
            hopper.shared((COMPUTE, PART), jnp.float32),
            Ring.of(2, ((PART, dim), dtype)),
            Ring.of(split.blocks, ((keys, dim), dtype), ((keys,), jnp.int32)),
            Ring.of(split.blocks, ((keys, dim), dtype)),
        ),
        grid={"program": programs},
    )
