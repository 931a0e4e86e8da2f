"""The Hopper kernels for rows of tokens; what they share with decoding is in ``hopper.py``.

What each step computes is in ``flash_hopper_steps.py``.
"""

import functools
from collections.abc import Callable
from typing import Any

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
    probs_again,
    score_gradient,
    softmax_start,
    softmax_step,
)
from llama2_jax.kernels.hopper import BY_COLUMN, BY_ROW, COMPUTE, PART, Ref
from llama2_jax.kernels.softmax import finish

TILE = COMPUTE * PART  # rows that a block of threads keeps: queries, for dk and dv keys


def _copy_all(steps: Any, *rings: tuple[hopper.Ring, Callable[[Any], list[Ref]]]) -> None:
    """Fill rings step by step, each with what its function says, and see them emptied."""

    @pl.loop(0, steps)
    def _fill(step: Any) -> None:
        for ring, sources in rings:
            ring.put(step, *sources(step))

    for ring, _ in rings:
        ring.drain(steps)


def _read_loop(loops_ref: Ref, tile: Any) -> Loop:
    # each role reads it for itself: read before they part, the numbers would take registers in both
    return Loop(*(loops_ref[lax.axis_index("row"), tile, field] for field in range(4)))


def _rows(tile: Any, part: Any) -> Any:
    return pl.ds(tile * TILE + part * PART, PART)


def _block_of(ref: Ref, loop: Loop, size: int, head: Any) -> Callable[[Any], list[Ref]]:
    """The block of keys or values of each step."""
    return lambda step: [ref.at[lax.axis_index("row"), pl.ds(loop.block(step) * size, size), head]]


def _run(steps: tuple[Any, Any], step: Callable[..., Any], carry: Any) -> Any:
    """``step(i, carry, is_masked=)`` for the first steps with, for the rest of all steps without a mask."""
    masked, total = steps
    carry = lax.fori_loop(0, masked, functools.partial(step, is_masked=True), carry)
    return lax.fori_loop(masked, total, functools.partial(step, is_masked=False), carry)


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
    groups, tiles, keys = heads // k_BSKH.shape[2], length // TILE, blocks.forward_keys
    dtype = q_BTNH.dtype

    def flash_forward(
        loops_ref: Ref, ranges_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
        out_ref: Ref, lse_ref: Ref,
        kept: hopper.Kept, lse_shared: Ref, k_ring: hopper.Ring, v_ring: hopper.Ring, turn: Ref,
    ) -> None:  # fmt: skip
        row, head = lax.axis_index("row"), lax.axis_index("head")
        # late queries see most: of each head the longest loops begin first
        tile = tiles - 1 - lax.axis_index("tile")
        q_shared, seen_shared = kept.arrays

        def copy() -> None:
            loop, kv_head = _read_loop(loops_ref, tile), lax.div(head, jnp.int32(groups))

            def sources(part: int) -> list[Ref]:
                here = _rows(tile, part)
                return [q_ref.at[row, here, head], ranges_ref.at[row, :, here]]

            kept.fill(sources)
            k_blocks, v_blocks = (_block_of(ref, loop, keys, kv_head) for ref in (k_ref, v_ref))
            _copy_all(loop.steps, (k_ring, k_blocks), (v_ring, v_blocks))

        def compute(part: Any) -> None:
            loop = _read_loop(loops_ref, tile)

            def take_turns() -> None:
                plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(turn)

            plgpu.barrier_wait(kept.full.at[part])
            bounds = _load_pair(seen_shared.at[part], BY_ROW)
            peak, total = (plgpu.layout_cast(x, BY_ROW) for x in softmax_start(PART))
            pl.when(loop.steps > 0)(lambda: k_ring.await_full(jnp.int32(0)))
            pl.when(part == 1)(take_turns)

            def step(i: Any, carry: Any, *, is_masked: bool) -> Any:
                sums, peak, total = carry
                (k_block,), (v_block,) = k_ring.refs(i), v_ring.refs(i)

                def score(accumulator: Ref) -> jax.Array:
                    plgpu.wgmma(accumulator, q_shared.at[part], k_block.T)
                    take_turns()
                    return accumulator[...]

                scores = hopper.accumulate(score, (PART, keys), 1)
                k_ring.release(i)
                if is_masked:
                    scores = _hide(scores, loop.block(i) * keys, bounds, axis=0)
                probs, shrink, peak, total = softmax_step(scores, peak, total, scale=scale)
                sums *= along(shrink, sums.shape, 0)
                # all of the softmax comes before the turn is given away
                sums, peak, total, probs = lax.optimization_barrier((sums, peak, total, probs.astype(dtype)))
                plgpu.barrier_arrive(turn)
                v_ring.await_full(i)
                plgpu.barrier_wait(turn)

                def weigh(accumulator: Ref) -> None:
                    plgpu.wgmma(accumulator, probs, v_block)
                    pl.when(i + 1 < loop.steps)(lambda: k_ring.await_full(i + 1))

                (sums,) = hopper.add(weigh, sums)
                v_ring.release(i)
                return sums, peak, total

            carry = hopper.zeros((PART, dim)), peak, total
            sums, peak, total = _run((loop.masked_steps, loop.steps), step, carry)
            pl.when(part == 0)(take_turns)
            inverse, lse = finish(1.0, total, peak * scale)
            here = _rows(tile, part)
            hopper.write(
                (sums * along(inverse, sums.shape, 0), q_shared.at[part], out_ref.at[row, here, head]),
                (lse, lse_shared.at[part], lse_ref.at[row, head, here]),
            )

        hopper.roles(copy, compute)

    return hopper.launch(
        flash_forward,
        (loops_BX4, ranges_B2T, q_BTNH, k_BSKH, v_BSKH),
        out=(
            jax.ShapeDtypeStruct(q_BTNH.shape, dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        scratch=(
            hopper.Kept.of(((PART, dim), dtype), ((2, PART), jnp.int32)),
            hopper.shared((COMPUTE, PART), jnp.float32),
            hopper.Ring.of(blocks.forward_slots, ((keys, dim), dtype)),
            hopper.Ring.of(blocks.forward_slots, ((keys, dim), dtype)),
            plgpu.Barrier(num_arrivals=COMPUTE),
        ),
        grid={"head": heads, "tile": tiles, "row": batch},
    )


def gradient_q(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, d_out_BTNH: jax.Array, ranges_B2T: jax.Array,
    stats_BN2T: jax.Array, loops_BX4: jax.Array, *, scale: float, blocks: Blocks,
) -> jax.Array:  # fmt: skip
    """The gradient of the queries; ``stats`` are the log-sum-exp in base 2 and delta of every query."""
    batch, length, heads, dim = q_BTNH.shape
    groups, tiles, keys = heads // k_BSKH.shape[2], length // TILE, blocks.dq_keys
    dtype = q_BTNH.dtype

    def flash_dq(
        loops_ref: Ref, ranges_ref: Ref, stats_ref: Ref, q_ref: Ref, d_out_ref: Ref, k_ref: Ref, v_ref: Ref,
        dq_ref: Ref,
        kept: hopper.Kept, k_ring: hopper.Ring, v_ring: hopper.Ring,
    ) -> None:  # fmt: skip
        row, head = lax.axis_index("row"), lax.axis_index("head")
        tile = tiles - 1 - lax.axis_index("tile")
        q_shared, d_out_shared, seen_shared, stats_shared = kept.arrays

        def copy() -> None:
            loop, kv_head = _read_loop(loops_ref, tile), lax.div(head, jnp.int32(groups))

            def sources(part: int) -> list[Ref]:
                here = _rows(tile, part)
                tensors = [ref.at[row, here, head] for ref in (q_ref, d_out_ref)]
                return [*tensors, ranges_ref.at[row, :, here], stats_ref.at[row, head, :, here]]

            kept.fill(sources)
            k_blocks, v_blocks = (_block_of(ref, loop, keys, kv_head) for ref in (k_ref, v_ref))
            _copy_all(loop.steps, (k_ring, k_blocks), (v_ring, v_blocks))

        def compute(part: Any) -> None:
            loop = _read_loop(loops_ref, tile)
            plgpu.barrier_wait(kept.full.at[part])
            bounds = _load_pair(seen_shared.at[part], BY_ROW)
            lse, delta = _load_pair(stats_shared.at[part], BY_ROW)

            def step(i: Any, sums: jax.Array, *, is_masked: bool) -> jax.Array:
                (k_block,), (v_block,) = k_ring.refs(i), v_ring.refs(i)

                def gradient(scores_sum: Ref, d_probs_sum: Ref) -> jax.Array:
                    k_ring.await_full(i)
                    plgpu.wgmma(scores_sum, q_shared.at[part], k_block.T)
                    v_ring.await_full(i)
                    plgpu.wgmma(d_probs_sum, d_out_shared.at[part], v_block.T)
                    scores = plgpu.wgmma_accumulator_load(scores_sum, wait_n=1)
                    if is_masked:
                        scores = _hide(scores, loop.block(i) * keys, bounds, axis=0)
                    probs = probs_again(scores, lse, scale=scale, axis=0)
                    return score_gradient(probs, d_probs_sum[...], delta, axis=0)

                d_scores = hopper.accumulate(gradient, (PART, keys), 2).astype(dtype)
                v_ring.release(i)
                (sums,) = hopper.add(lambda accumulator: plgpu.wgmma(accumulator, d_scores, k_block), sums)
                k_ring.release(i)
                return sums

            sums = _run((loop.masked_steps, loop.steps), step, hopper.zeros((PART, dim)))
            hopper.write((sums * scale, q_shared.at[part], dq_ref.at[row, _rows(tile, part), head]))

        hopper.roles(copy, compute)

    return hopper.launch(
        flash_dq,
        (loops_BX4, ranges_B2T, stats_BN2T, q_BTNH, d_out_BTNH, k_BSKH, v_BSKH),
        out=jax.ShapeDtypeStruct(q_BTNH.shape, dtype),
        scratch=(
            hopper.Kept.of(*[((PART, dim), dtype)] * 2, ((2, PART), jnp.int32), ((2, PART), jnp.float32)),
            hopper.Ring.of(blocks.dq_slots, ((keys, dim), dtype)),
            hopper.Ring.of(blocks.dq_slots, ((keys, dim), dtype)),
        ),
        grid={"head": heads, "tile": tiles, "row": batch},
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
    groups, tiles, queries = q_BTNH.shape[2] // kv_heads, length // TILE, blocks.dkv_queries
    dtype = q_BTNH.dtype

    def flash_dkv(
        loops_ref: Ref, ranges_ref: Ref, stats_ref: Ref, q_ref: Ref, d_out_ref: Ref, k_ref: Ref, v_ref: Ref,
        dk_ref: Ref, dv_ref: Ref,
        kept: hopper.Kept, q_ring: hopper.Ring, d_out_ring: hopper.Ring,
    ) -> None:  # fmt: skip
        row, kv_head = lax.axis_index("row"), lax.axis_index("head")
        tile = lax.axis_index("tile")  # early keys are seen most
        k_shared, v_shared = kept.arrays

        def copy() -> None:
            loop = _read_loop(loops_ref, tile)

            def place(step: Any) -> tuple[Any, Any]:
                block = loop.block(lax.div(step, jnp.int32(groups)))
                return pl.ds(block * queries, queries), kv_head * groups + lax.rem(step, jnp.int32(groups))

            def q_block(step: Any) -> list[Ref]:
                here, head = place(step)
                return [
                    q_ref.at[row, here, head],
                    stats_ref.at[row, head, :, here],
                    ranges_ref.at[row, :, here],
                ]

            def d_out_block(step: Any) -> list[Ref]:
                here, head = place(step)
                return [d_out_ref.at[row, here, head]]

            kept.fill(lambda part: [ref.at[row, _rows(tile, part), kv_head] for ref in (k_ref, v_ref)])
            _copy_all(loop.steps * groups, (q_ring, q_block), (d_out_ring, d_out_block))

        def compute(part: Any) -> None:
            loop = _read_loop(loops_ref, tile)
            plgpu.barrier_wait(kept.full.at[part])

            def step(i: Any, carry: tuple[jax.Array, jax.Array], *, is_masked: bool) -> tuple[jax.Array, ...]:
                (q_block, stats, seen), (d_out_block,) = q_ring.refs(i), d_out_ring.refs(i)

                def products(scores_sum: Ref, d_probs_sum: Ref) -> tuple[jax.Array, ...]:
                    q_ring.await_full(i)
                    plgpu.wgmma(scores_sum, k_shared.at[part], q_block.T)
                    d_out_ring.await_full(i)
                    plgpu.wgmma(d_probs_sum, v_shared.at[part], d_out_block.T)
                    # while d_probs are computed: probs
                    scores = plgpu.wgmma_accumulator_load(scores_sum, wait_n=1)
                    if is_masked:
                        start = tile * TILE + part * PART
                        scores = _hide(scores, start, _load_pair(seen, BY_COLUMN), axis=1)
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
                d_out_ring.release(i)
                q_ring.release(i)
                return sums

            steps = loop.masked_steps * groups, loop.steps * groups
            dk, dv = _run(steps, step, (hopper.zeros((PART, dim)), hopper.zeros((PART, dim))))
            here = _rows(tile, part)
            hopper.write(
                (dk * scale, k_shared.at[part], dk_ref.at[row, here, kv_head]),
                (dv, v_shared.at[part], dv_ref.at[row, here, kv_head]),
            )

        hopper.roles(copy, compute)

    of_query = ((queries, dim), dtype), ((2, queries), jnp.float32), ((2, queries), jnp.int32)
    return hopper.launch(
        flash_dkv,
        (loops_BX4, ranges_B2T, stats_BN2T, q_BTNH, d_out_BTNH, k_BSKH, v_BSKH),
        out=(jax.ShapeDtypeStruct(k_BSKH.shape, dtype),) * 2,
        scratch=(
            hopper.Kept.of(*[((PART, dim), dtype)] * 2),
            hopper.Ring.of(blocks.dkv_slots, *of_query),
            hopper.Ring.of(blocks.dkv_slots, ((queries, dim), dtype)),
        ),
        grid={"head": kv_heads, "tile": tiles, "row": batch},
    )
