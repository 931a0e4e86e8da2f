"""Attention on Hopper GPUs: Pallas kernels (Mosaic GPU) that load only the blocks in which something is seen.

A block of threads keeps a tile of 128 queries and loops over blocks of keys; for dk and dv it is the other
way round. Loops go over the blocks that ``ranges.py`` counts as seen, first those that need the mask, then
those that do not: two loops, and no branch in either. A row of packed documents costs what its documents
cost.

Arrays stay as they are, (B, T, N, H): a copy takes the rows of one head. Keys of a group of heads are never
repeated, and dk and dv of a group are summed where they are computed. Nothing is added across blocks of
threads: two runs are bitwise equal.

Softmax in base 2 with the scale folded in; scores, sums and accumulators in float32; probabilities in the
dtype of the values for the second product.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.config import require
from llama2_jax.kernels import flash_hopper_kernels as kernels
from llama2_jax.kernels.flash_hopper_kernels import TILE
from llama2_jax.kernels.flash_hopper_steps import Blocks, loops
from llama2_jax.kernels.ranges import KeyRanges, pad_ranges, tile_work
from llama2_jax.kernels.softmax import LOG2_E, start_backward

VARIANTS = {
    64: (Blocks(128, 2, 128, 2, 64, 2), Blocks(128, 4, 128, 4, 64, 4), Blocks(64, 4, 64, 4, 64, 2)),
    128: (Blocks(128, 2, 128, 2, 64, 2), Blocks(128, 3, 64, 4, 64, 2), Blocks(64, 4, 64, 2, 64, 2)),
}
"""By head dim what may be chosen from, kernel by kernel; the first is the default.

All pass ``tools/hopper_gates.py``: no register is spilled and no product waits for want of registers. The
defaults are measured (``benchmarks/hopper.md``), the others not yet (``benchmarks/hopper_tiles.py``).
"""


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    ranges: KeyRanges,
    *,
    scale: float,
    blocks: Blocks | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Output (B, T, N, H) in the dtype of ``q`` and log-sum-exp (B, T, N) float32, both differentiable.

    Where a query sees nothing the output is 0 and the log-sum-exp -inf. Takes bfloat16 and float16, and the
    head dims of ``VARIANTS``.

    Raises:
      ConfigError: the scale is not positive (the largest score would not be the largest scaled one).
    """
    require(
        scale > 0, f"attention_impl 'hopper': the scale must be positive, it is {scale}; 'chunked' takes any"
    )
    return _attention(scale, blocks or VARIANTS[q_BTNH.shape[-1]][0], q_BTNH, k_BSKH, v_BSKH, ranges)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    scale: float, blocks: Blocks, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, ranges: KeyRanges
) -> tuple[jax.Array, jax.Array]:
    return _forward(scale, blocks, q_BTNH, k_BSKH, v_BSKH, ranges)[0]


def _forward(scale: float, blocks: Blocks, q: Any, k: Any, v: Any, ranges: KeyRanges) -> tuple[Any, Any]:
    length, size = q.shape[1], blocks.forward_keys
    queries, keys, values = _whole(q, TILE), _whole(k, size), _whole(v, size)
    padded = pad_ranges(ranges, queries.shape[1])
    work = tile_work(padded, keys.shape[1], query_tile=TILE, key_tile=size)
    out, lse_BNT = kernels.forward(
        queries, keys, values, jnp.stack(padded, axis=1), loops(work), scale=scale, blocks=blocks
    )
    # by these names a remat policy keeps what the backward pass needs, and the kernel does not run again
    out = checkpoint_name(out[:, :length], "attention_out")
    lse = checkpoint_name(lse_BNT.swapaxes(1, 2)[:, :length], "attention_lse")
    return (out, lse), (q, k, v, ranges, out, lse)


def _backward(scale: float, blocks: Blocks, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    q, k, v, ranges, out, lse = residuals
    d_out, d_lse = cotangents
    (length, keys), size = (q.shape[1], k.shape[1]), math.lcm(TILE, blocks.dq_keys)
    stats = jnp.stack(start_backward(out, lse, d_out, d_lse), axis=-1) * jnp.array([LOG2_E, 1.0], jnp.float32)
    stats_BN2T = _whole(stats, TILE).transpose(0, 2, 3, 1)
    q, d_out, k, v = _whole(q, TILE), _whole(d_out, TILE), _whole(k, size), _whole(v, size)
    padded = pad_ranges(ranges, q.shape[1])
    arrays = (q, k, v, d_out, jnp.stack(padded, axis=1), stats_BN2T)
    work = tile_work(padded, k.shape[1], query_tile=TILE, key_tile=blocks.dq_keys)
    dq = kernels.gradient_q(*arrays, loops(work), scale=scale, blocks=blocks)
    work = tile_work(padded, k.shape[1], query_tile=blocks.dkv_queries, key_tile=TILE)
    dk, dv = kernels.gradient_kv(*arrays, loops(work.swapaxes(1, 2)), scale=scale, blocks=blocks)
    return dq[:, :length], dk[:, :keys], dv[:, :keys], None


_attention.defvjp(_forward, _backward)


def _whole(x: jax.Array, multiple: int) -> jax.Array:
    """The array with axis 1 padded to a multiple."""
    padding = -x.shape[1] % multiple
    return jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2))) if padding else x
