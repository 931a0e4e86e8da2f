"""The Hopper kernels without a GPU: the same steps over the same blocks, on whole tiles.

What differs is where numbers lie: no shared memory, no barriers, and a matrix product of jnp. Tests put these
functions in the place of the kernels of ``flash_hopper`` and run all else that it does.
"""

import contextlib

import jax
import jax.numpy as jnp
from jax import lax

from llama2_jax.kernels import hopper
from llama2_jax.kernels.flash_hopper_kernels import TILE
from llama2_jax.kernels.flash_hopper_steps import (
    Loop,
    along,
    hide,
    probs_again,
    score_gradient,
    softmax_start,
    softmax_step,
)
from llama2_jax.kernels.softmax import finish


def _dot(a, b):
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)


def _heads_first(x_BTNH):
    return x_BTNH.swapaxes(1, 2)


def _every(function, arguments, axes):
    """The function for every row of the batch, head and tile; axes say which of the three an argument has."""
    for level in reversed(range(3)):
        in_axes = [0 if level in has else None for has in axes]
        function = jax.vmap(function, in_axes=in_axes)
    return function(*arguments)


def _tiles(x, axis):
    """A long axis cut into tiles, the number of the tile before the rows of it."""
    return x.reshape(*x.shape[:axis], -1, TILE, *x.shape[axis + 1 :])


def _block(array, number, size, axis=0):
    return lax.dynamic_slice_in_dim(array, number * size, size, axis)


def _run(loop, step, carry, repeats=1):
    masked, total = loop.masked_steps * repeats, loop.steps * repeats
    carry = lax.fori_loop(0, masked, lambda i, carry: step(i, carry, True), carry)
    return lax.fori_loop(masked, total, lambda i, carry: step(i, carry, False), carry)


def forward(q_BTNH, k_BSKH, v_BSKH, ranges_B2T, loops_BX4, *, scale, blocks):
    size, groups = blocks.forward_keys, q_BTNH.shape[2] // k_BSKH.shape[2]

    def tile(loop, seen, q, k, v):
        loop = Loop(*loop)

        def step(i, carry, is_masked):
            sums, peak, total = carry
            number = loop.block(i)
            scores = _dot(q, _block(k, number, size).T)
            if is_masked:
                index = number * size + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
                scores = hide(scores, index, *seen, axis=0)
            probs, shrink, peak, total = softmax_step(scores, peak, total, scale=scale)
            sums = sums * along(shrink, sums.shape, 0)
            return sums + _dot(probs.astype(v.dtype), _block(v, number, size)), peak, total

        carry = jnp.zeros(q.shape, jnp.float32), *softmax_start(TILE)
        sums, peak, total = _run(loop, step, carry)
        inverse, lse = finish(1.0, total, peak * scale)
        return (sums * along(inverse, sums.shape, 0)).astype(q.dtype), lse

    k, v = (jnp.repeat(_heads_first(x), groups, axis=1) for x in (k_BSKH, v_BSKH))
    seen = _tiles(ranges_B2T, 2).swapaxes(1, 2)
    arguments = loops_BX4, seen, _tiles(_heads_first(q_BTNH), 2), k, v
    out, lse = _every(tile, arguments, [(0, 2), (0, 2), (0, 1, 2), (0, 1), (0, 1)])
    return _heads_first(out.reshape(*out.shape[:2], -1, out.shape[-1])), lse.reshape(*lse.shape[:2], -1)


def gradient_q(q_BTNH, k_BSKH, v_BSKH, d_out_BTNH, ranges_B2T, stats_BN2T, loops_BX4, *, scale, blocks):
    size, groups = blocks.dq_keys, q_BTNH.shape[2] // k_BSKH.shape[2]

    def tile(loop, seen, stats, q, d_out, k, v):
        loop = Loop(*loop)
        lse, delta = stats

        def step(i, sums, is_masked):
            number = loop.block(i)
            k_block, v_block = (_block(x, number, size) for x in (k, v))
            scores = _dot(q, k_block.T)
            if is_masked:
                index = number * size + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
                scores = hide(scores, index, *seen, axis=0)
            probs = probs_again(scores, lse, scale=scale, axis=0)
            d_scores = score_gradient(probs, _dot(d_out, v_block.T), delta, axis=0)
            return sums + _dot(d_scores.astype(k.dtype), k_block)

        return (_run(loop, step, jnp.zeros(q.shape, jnp.float32)) * scale).astype(q.dtype)

    k, v = (jnp.repeat(_heads_first(x), groups, axis=1) for x in (k_BSKH, v_BSKH))
    seen, stats = _tiles(ranges_B2T, 2).swapaxes(1, 2), _tiles(stats_BN2T, 3).swapaxes(2, 3)
    q, d_out = (_tiles(_heads_first(x), 2) for x in (q_BTNH, d_out_BTNH))
    arguments = loops_BX4, seen, stats, q, d_out, k, v
    dq = _every(tile, arguments, [(0, 2), (0, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1), (0, 1)])
    return _heads_first(dq.reshape(*dq.shape[:2], -1, dq.shape[-1]))


def gradient_kv(q_BTNH, k_BSKH, v_BSKH, d_out_BTNH, ranges_B2T, stats_BN2T, loops_BX4, *, scale, blocks):
    size, groups = blocks.dkv_queries, q_BTNH.shape[2] // k_BSKH.shape[2]

    def tile(loop, here, k, v, q, d_out, stats, seen):
        loop = Loop(*loop)

        def step(i, carry, is_masked):
            dk, dv = carry
            number, head = loop.block(i // groups), i % groups
            q_block, d_out_block = (_block(x[head], number, size) for x in (q, d_out))
            lse, delta = _block(stats[head], number, size, 1)
            scores = _dot(k, q_block.T)
            if is_masked:
                index = here * TILE + lax.broadcasted_iota(jnp.int32, scores.shape, 0)
                scores = hide(scores, index, *_block(seen, number, size, 1), axis=1)
            probs = probs_again(scores, lse, scale=scale, axis=1)
            d_scores = score_gradient(probs, _dot(v, d_out_block.T), delta, axis=1)
            dv += _dot(probs.astype(v.dtype), d_out_block)
            return dk + _dot(d_scores.astype(q.dtype), q_block), dv

        dk, dv = _run(loop, step, (jnp.zeros(k.shape, jnp.float32),) * 2, groups)
        return (dk * scale).astype(k.dtype), dv.astype(v.dtype)

    k, v = (_tiles(_heads_first(x), 2) for x in (k_BSKH, v_BSKH))
    batch, kv_heads, tiles = k.shape[:3]
    q, d_out, stats = (
        x.reshape(batch, kv_heads, groups, *x.shape[2:])
        for x in (_heads_first(q_BTNH), _heads_first(d_out_BTNH), stats_BN2T)
    )
    arguments = loops_BX4, jnp.arange(tiles), k, v, q, d_out, stats, ranges_B2T
    axes = [(0, 2), (2,), (0, 1, 2), (0, 1, 2), (0, 1), (0, 1), (0, 1), (0,)]
    return tuple(
        _heads_first(x.reshape(*x.shape[:2], -1, x.shape[-1])) for x in _every(tile, arguments, axes)
    )


class _Sums:
    """In the place of an accumulator that starts from a sum; the interpreter knows those that start at 0."""

    def __init__(self, value):
        self.value = value


@contextlib.contextmanager
def interpreted(monkeypatch, **params):
    """The kernels themselves in Pallas' interpreter: every copy, barrier and index of theirs, on the CPU.

    After a read of shared memory comes a fence (``commit_smem``): the interpreter wants one between the read
    and the copy that fills the slot again, where the hardware does with the barrier.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    load, wgmma = plgpu.load, plgpu.wgmma

    def add(products, *sums):
        sums = [_Sums(value) for value in sums]
        products(*sums)
        return tuple(one.value for one in sums)

    def multiply(sums, a, b):
        if not isinstance(sums, _Sums):
            return wgmma(sums, a, b)
        sums.value += _dot(a, b[...])
        plgpu.commit_smem()

    def read(*args, **kwargs):
        found = load(*args, **kwargs)
        plgpu.commit_smem()
        return found

    monkeypatch.setattr(hopper, "add", add)
    monkeypatch.setattr(plgpu, "wgmma", multiply)
    monkeypatch.setattr(plgpu, "load", read)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**params)):
        yield
