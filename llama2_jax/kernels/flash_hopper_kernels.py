"""The Hopper kernels for rows of tokens; what they share with decoding is in ``hopper.py``.

What each step computes is in ``flash_hopper_steps.py``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from llama2_jax.kernels import hopper
from llama2_jax.kernels.flash_hopper_steps import (
    Blocks,
    Loop,
    along,
    hide,
    place,
    probs_again,
    schedule,
    score_gradient,
    softmax_start,
    softmax_step,
)
from llama2_jax.kernels.hopper import BY_COLUMN, BY_ROW, COMPUTE, PART, Ref
from llama2_jax.kernels.softmax import finish

TILE = COMPUTE * PART  # rows that a block of threads keeps: queries, for dk and dv keys


class _Share(NamedTuple):
    """What a block of threads does before it goes on to the next: a tile of a row and a head."""

    head: Any
    loop: Loop
    row: Any
    tile: Any

    @classmethod
    def read(cls, schedule_ref: Ref, share: Any, heads: int) -> "_Share":
        """The share of this number; each role reads it for itself, to not keep registers for the other."""
        head, entry = place(share, heads, schedule_ref.shape[0], hopper.PROCESSORS)
        *bounds, row, tile = (schedule_ref[entry, field] for field in range(6))
        return cls(head, Loop(*bounds), row, tile)

    def rows(self, part: Any) -> Any:
        """Of the tile, those of a part."""
        return pl.ds(self.tile * TILE + part * PART, PART)

    def block_of(self, ref: Ref, size: int, head: Any) -> Callable[[Any], list[Ref]]:
        """The block of keys or values of each step."""
        return lambda step: [ref.at[self.row, pl.ds(self.loop.block(step) * size, size), head]]


def _copy_all(before: Any, steps: Any, *rings: tuple[hopper.Ring, Callable[[Any], list[Ref]]]) -> Any:
    """Fill rings step by step, each with what its function says; the number of steps so far."""

    @pl.loop(0, steps)
    def _fill(step: Any) -> None:
        for ring, sources in rings:
            ring.put(before + step, *sources(step))

    return before + steps


def _run(before: Any, masked: Any, steps: Any, step: Callable[..., Any], carry: Any) -> tuple[Any, Any]:
    """``step(number, carry, is_masked=)`` for the first steps with a mask, for the others without.

    Steps are numbered through all shares, from ``before``. Returns the next number too.
    """
    middle, end = before + masked, before + steps
    carry = lax.fori_loop(before, middle, functools.partial(step, is_masked=True), carry)
    return end, lax.fori_loop(middle, end, functools.partial(step, is_masked=False), carry)


def _hide(scores: jax.Array, start: Any, bounds: tuple[jax.Array, ...], *, axis: int) -> jax.Array:
    """``hide`` where keys are numbered from ``start``, queries lie along ``axis``."""
    index = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1 - axis, layout=plgpu.Layout.WGMMA)
    return hide(scores, index + start, *bounds, axis=axis)


def _load_pair(ref: Ref, layout: Any) -> tuple[jax.Array, ...]:
    return tuple(plgpu.load(ref.at[i], layout=layout) for i in range(2))


def forward(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, ranges_B2T: jax.Array, loops_BX4: jax.Array,
    *, scale: float, blocks: Blocks,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Output (B, T, N, H) and log-sum-exp (B, N, T) of whole tiles of queries and whole blocks of keys.

    The computing warpgroups take turns: one has the tensor cores while the other is at its softmax.
    """
    batch, length, heads, dim = q_BTNH.shape
    groups, keys, dtype = heads // k_BSKH.shape[2], blocks.forward_keys, q_BTNH.dtype
    shares = batch * heads * (length // TILE)

    def flash_forward(
        schedule_ref: Ref, ranges_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
        out_ref: Ref, lse_ref: Ref,
        kept: hopper.Kept, out_shared: Ref, lse_shared: Ref,
        k_ring: hopper.Ring, v_ring: hopper.Ring, turn: Ref,
    ) -> None:  # fmt: skip
        q_shared, seen_shared = kept.arrays

        def copy() -> None:
            def visit(number: Any, index: Any, before: Any) -> Any:
                share = _Share.read(schedule_ref, index, heads)
                kv_head = lax.div(share.head, jnp.int32(groups))

                def sources(part: int) -> list[Ref]:
                    here = share.rows(part)
                    return [q_ref.at[share.row, here, share.head], ranges_ref.at[share.row, :, here]]

                kept.fill(number, sources)
                k_blocks, v_blocks = (share.block_of(ref, keys, kv_head) for ref in (k_ref, v_ref))
                return _copy_all(before, share.loop.steps, (k_ring, k_blocks), (v_ring, v_blocks))

            _, steps = hopper.each_share(shares, visit)
            kept.drain()
            k_ring.drain(steps)
            v_ring.drain(steps)

        def compute(part: Any) -> None:
            def take_turns() -> None:
                plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(turn)

            def visit(number: Any, index: Any, before: Any) -> Any:
                share = _Share.read(schedule_ref, index, heads)
                loop = share.loop
                kept.await_full(part)
                bounds = _load_pair(seen_shared.at[part], BY_ROW)
                peak, total = (plgpu.layout_cast(x, BY_ROW) for x in softmax_start(PART))
                pl.when(loop.steps > 0)(lambda: k_ring.await_full(before))
                pl.when(loop.steps == 0)(lambda: kept.release(part))
                pl.when(part == 1)(take_turns)

                def step(here: Any, carry: Any, *, is_masked: bool) -> Any:
                    sums, peak, total = carry
                    (k_block,), (v_block,) = k_ring.refs(here), v_ring.refs(here)

                    def score(accumulator: Ref) -> jax.Array:
                        plgpu.wgmma(accumulator, q_shared.at[part], k_block.T)
                        take_turns()
                        return accumulator[...]

                    scores = hopper.accumulate(score, (PART, keys), 1)
                    k_ring.release(here)
                    pl.when(here + 1 == before + loop.steps)(lambda: kept.release(part))
                    if is_masked:
                        scores = _hide(scores, loop.block(here - before) * keys, bounds, axis=0)
                    probs, shrink, peak, total = softmax_step(scores, peak, total, scale=scale)
                    sums *= along(shrink, sums.shape, 0)
                    # all of the softmax comes before the turn is given away
                    sums, peak, total, probs = lax.optimization_barrier(
                        (sums, peak, total, probs.astype(dtype))
                    )
                    plgpu.barrier_arrive(turn)
                    v_ring.await_full(here)
                    plgpu.barrier_wait(turn)

                    def weigh(accumulator: Ref) -> None:
                        plgpu.wgmma(accumulator, probs, v_block)
                        pl.when(here + 1 < before + loop.steps)(lambda: k_ring.await_full(here + 1))

                    (sums,) = hopper.add(weigh, sums)
                    v_ring.release(here)
                    return sums, peak, total

                carry = hopper.zeros((PART, dim)), peak, total
                after, (sums, peak, total) = _run(before, loop.masked_steps, loop.steps, step, carry)
                pl.when(part == 0)(take_turns)
                inverse, lse = finish(1.0, total, peak * scale)
                here = share.rows(part)
                out = sums * along(inverse, sums.shape, 0)
                hopper.write(
                    (out, out_shared.at[part], out_ref.at[share.row, here, share.head]),
                    (lse, lse_shared.at[part], lse_ref.at[share.row, share.head, here]),
                )
                return after

            hopper.each_share(shares, visit)
            hopper.await_written()

        hopper.roles(copy, compute)

    return hopper.launch(
        flash_forward,
        (schedule(loops_BX4), ranges_B2T, q_BTNH, k_BSKH, v_BSKH),
        out=(
            jax.ShapeDtypeStruct(q_BTNH.shape, dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        scratch=(
            hopper.Kept.of(((PART, dim), dtype), ((2, PART), jnp.int32)),
            hopper.shared((COMPUTE, PART, dim), dtype),
            hopper.shared((COMPUTE, PART), jnp.float32),
            hopper.Ring.of(blocks.forward_slots, ((keys, dim), dtype)),
            hopper.Ring.of(blocks.forward_slots, ((keys, dim), dtype)),
            plgpu.Barrier(num_arrivals=COMPUTE),
        ),
        shares=shares,
    )


def gradient_q(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, d_out_BTNH: jax.Array, ranges_B2T: jax.Array,
    stats_BN2T: jax.Array, loops_BX4: jax.Array, *, scale: float, blocks: Blocks,
) -> jax.Array:  # fmt: skip
    """The gradient of the queries; ``stats`` are the log-sum-exp in base 2 and delta of every query."""
    batch, length, heads, dim = q_BTNH.shape
    groups, keys, dtype = heads // k_BSKH.shape[2], blocks.dq_keys, q_BTNH.dtype
    shares = batch * heads * (length // TILE)

    def flash_dq(
        schedule_ref: Ref, ranges_ref: Ref, stats_ref: Ref,
        q_ref: Ref, d_out_ref: Ref, k_ref: Ref, v_ref: Ref,
        dq_ref: Ref,
        kept: hopper.Kept, dq_shared: Ref, k_ring: hopper.Ring, v_ring: hopper.Ring,
    ) -> None:  # fmt: skip
        q_shared, d_out_shared, seen_shared, stats_shared = kept.arrays

        def copy() -> None:
            def visit(number: Any, index: Any, before: Any) -> Any:
                share = _Share.read(schedule_ref, index, heads)
                kv_head = lax.div(share.head, jnp.int32(groups))

                def sources(part: int) -> list[Ref]:
                    here = share.rows(part)
                    tensors = [ref.at[share.row, here, share.head] for ref in (q_ref, d_out_ref)]
                    stats = stats_ref.at[share.row, share.head, :, here]
                    return [*tensors, ranges_ref.at[share.row, :, here], stats]

                kept.fill(number, sources)
                k_blocks, v_blocks = (share.block_of(ref, keys, kv_head) for ref in (k_ref, v_ref))
                return _copy_all(before, share.loop.steps, (k_ring, k_blocks), (v_ring, v_blocks))

            _, steps = hopper.each_share(shares, visit)
            kept.drain()
            k_ring.drain(steps)
            v_ring.drain(steps)

        def compute(part: Any) -> None:
            def visit(number: Any, index: Any, before: Any) -> Any:
                share = _Share.read(schedule_ref, index, heads)
                loop = share.loop
                kept.await_full(part)
                bounds = _load_pair(seen_shared.at[part], BY_ROW)
                lse, delta = _load_pair(stats_shared.at[part], BY_ROW)
                pl.when(loop.steps == 0)(lambda: kept.release(part))

                def step(here: Any, sums: jax.Array, *, is_masked: bool) -> jax.Array:
                    (k_block,), (v_block,) = k_ring.refs(here), v_ring.refs(here)

                    def gradient(scores_sum: Ref, d_probs_sum: Ref) -> jax.Array:
                        k_ring.await_full(here)
                        plgpu.wgmma(scores_sum, q_shared.at[part], k_block.T)
                        v_ring.await_full(here)
                        plgpu.wgmma(d_probs_sum, d_out_shared.at[part], v_block.T)
                        scores = plgpu.wgmma_accumulator_load(scores_sum, wait_n=1)
                        if is_masked:
                            scores = _hide(scores, loop.block(here - before) * keys, bounds, axis=0)
                        probs = probs_again(scores, lse, scale=scale, axis=0)
                        return score_gradient(probs, d_probs_sum[...], delta, axis=0)

                    d_scores = hopper.accumulate(gradient, (PART, keys), 2).astype(dtype)
                    v_ring.release(here)
                    pl.when(here + 1 == before + loop.steps)(lambda: kept.release(part))
                    (sums,) = hopper.add(
                        lambda accumulator: plgpu.wgmma(accumulator, d_scores, k_block), sums
                    )
                    k_ring.release(here)
                    return sums

                carry = hopper.zeros((PART, dim))
                after, sums = _run(before, loop.masked_steps, loop.steps, step, carry)
                to = dq_ref.at[share.row, share.rows(part), share.head]
                hopper.write((sums * scale, dq_shared.at[part], to))
                return after

            hopper.each_share(shares, visit)
            hopper.await_written()

        hopper.roles(copy, compute)

    return hopper.launch(
        flash_dq,
        (schedule(loops_BX4), ranges_B2T, stats_BN2T, q_BTNH, d_out_BTNH, k_BSKH, v_BSKH),
        out=jax.ShapeDtypeStruct(q_BTNH.shape, dtype),
        scratch=(
            hopper.Kept.of(*[((PART, dim), dtype)] * 2, ((2, PART), jnp.int32), ((2, PART), jnp.float32)),
            hopper.shared((COMPUTE, PART, dim), dtype),
            hopper.Ring.of(blocks.dq_slots, ((keys, dim), dtype)),
            hopper.Ring.of(blocks.dq_slots, ((keys, dim), dtype)),
        ),
        shares=shares,
    )


def gradient_kv(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, d_out_BTNH: jax.Array, ranges_B2T: jax.Array,
    stats_BN2T: jax.Array, loops_BX4: jax.Array, *, scale: float, blocks: Blocks,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The gradients of keys and values.

    Scores have keys as rows here: so they are, without being turned, an operand of the products over queries.
    The loop goes over blocks of queries and, for each, over the heads of the group.
    """
    batch, length, kv_heads, dim = k_BSKH.shape
    groups, queries, dtype = q_BTNH.shape[2] // kv_heads, blocks.dkv_queries, q_BTNH.dtype
    shares = batch * kv_heads * (length // TILE)

    def flash_dkv(
        schedule_ref: Ref, ranges_ref: Ref, stats_ref: Ref,
        q_ref: Ref, d_out_ref: Ref, k_ref: Ref, v_ref: Ref,
        dk_ref: Ref, dv_ref: Ref,
        kept: hopper.Kept, dk_shared: Ref, dv_shared: Ref, q_ring: hopper.Ring, d_out_ring: hopper.Ring,
    ) -> None:  # fmt: skip
        k_shared, v_shared = kept.arrays

        def copy() -> None:
            def visit(number: Any, index: Any, before: Any) -> Any:
                share = _Share.read(schedule_ref, index, kv_heads)
                row, kv_head = share.row, share.head

                def of_query(step: Any) -> tuple[Any, Any]:
                    block = share.loop.block(lax.div(step, jnp.int32(groups)))
                    head = kv_head * groups + lax.rem(step, jnp.int32(groups))
                    return pl.ds(block * queries, queries), head

                def q_block(step: Any) -> list[Ref]:
                    here, head = of_query(step)
                    return [
                        q_ref.at[row, here, head],
                        stats_ref.at[row, head, :, here],
                        ranges_ref.at[row, :, here],
                    ]

                def d_out_block(step: Any) -> list[Ref]:
                    here, head = of_query(step)
                    return [d_out_ref.at[row, here, head]]

                kept.fill(
                    number, lambda part: [ref.at[row, share.rows(part), kv_head] for ref in (k_ref, v_ref)]
                )
                return _copy_all(
                    before, share.loop.steps * groups, (q_ring, q_block), (d_out_ring, d_out_block)
                )

            _, steps = hopper.each_share(shares, visit)
            kept.drain()
            q_ring.drain(steps)
            d_out_ring.drain(steps)

        def compute(part: Any) -> None:
            def visit(number: Any, index: Any, before: Any) -> Any:
                share = _Share.read(schedule_ref, index, kv_heads)
                rows = share.rows(part)
                kept.await_full(part)

                def step(
                    here: Any, carry: tuple[jax.Array, jax.Array], *, is_masked: bool
                ) -> tuple[jax.Array, ...]:
                    (q_block, stats, seen), (d_out_block,) = q_ring.refs(here), d_out_ring.refs(here)

                    def products(scores_sum: Ref, d_probs_sum: Ref) -> tuple[jax.Array, ...]:
                        q_ring.await_full(here)
                        plgpu.wgmma(scores_sum, k_shared.at[part], q_block.T)
                        d_out_ring.await_full(here)
                        plgpu.wgmma(d_probs_sum, v_shared.at[part], d_out_block.T)
                        # while d_probs are computed: probs
                        scores = plgpu.wgmma_accumulator_load(scores_sum, wait_n=1)
                        if is_masked:
                            scores = _hide(scores, rows.start, _load_pair(seen, BY_COLUMN), axis=1)
                        lse = plgpu.load(stats.at[0], layout=BY_COLUMN)
                        probs = probs_again(scores, lse, scale=scale, axis=1)

                        def add(dk_sum: Ref, dv_sum: Ref) -> None:
                            plgpu.wgmma(dv_sum, probs.astype(dtype), d_out_block)
                            # while dv is computed: the gradient of the scores
                            delta = plgpu.load(stats.at[1], layout=BY_COLUMN)
                            d_probs = plgpu.wgmma_accumulator_load(d_probs_sum, wait_n=1)
                            d_scores = score_gradient(probs, d_probs, delta, axis=1)
                            plgpu.wgmma(dk_sum, d_scores.astype(dtype), q_block)

                        return hopper.add(add, *carry)

                    sums = hopper.accumulate(products, (PART, queries), 2)
                    d_out_ring.release(here)
                    q_ring.release(here)
                    return sums

                carry = hopper.zeros((PART, dim)), hopper.zeros((PART, dim))
                masked, steps = share.loop.masked_steps * groups, share.loop.steps * groups
                after, (dk, dv) = _run(before, masked, steps, step, carry)
                kept.release(part)
                hopper.write(
                    (dk * scale, dk_shared.at[part], dk_ref.at[share.row, rows, share.head]),
                    (dv, dv_shared.at[part], dv_ref.at[share.row, rows, share.head]),
                )
                return after

            hopper.each_share(shares, visit)
            hopper.await_written()

        hopper.roles(copy, compute)

    query_block = ((queries, dim), dtype), ((2, queries), jnp.float32), ((2, queries), jnp.int32)
    return hopper.launch(
        flash_dkv,
        (schedule(loops_BX4), ranges_B2T, stats_BN2T, q_BTNH, d_out_BTNH, k_BSKH, v_BSKH),
        out=(jax.ShapeDtypeStruct(k_BSKH.shape, dtype),) * 2,
        scratch=(
            hopper.Kept.of(*[((PART, dim), dtype)] * 2),
            *[hopper.shared((COMPUTE, PART, dim), dtype)] * 2,
            hopper.Ring.of(blocks.dkv_slots, *query_block),
            hopper.Ring.of(blocks.dkv_slots, ((queries, dim), dtype)),
        ),
        shares=shares,
    )
