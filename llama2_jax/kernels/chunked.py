"""Self-attention tile by tile in a loop: memory linear in T, and tiles that no query sees are not computed.

The algorithm of the kernels in plain jnp. The loop goes over the visits of ``ranges.py``, so a row of packed
documents costs what its documents cost. Only the output and the log-sum-exp are kept for the backward pass,
which makes the probabilities again and takes all three gradients in one pass over the same visits. Rows so
short that a turn of the loop outweighs a tile go to ``short.py``.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.kernels import short
from llama2_jax.kernels.ranges import NOTHING, KeyRanges, Seen, Visit, visits_by_query
from llama2_jax.kernels.reference import NEGATIVE
from llama2_jax.kernels.softmax import finish, joined, start_backward
from llama2_jax.kernels.tiles import Layout, Tiles
from llama2_jax.precision import float32_dot

SHORT = 256  # rows below this length are not worth a loop
SHORT_WITH_PREFIXES = 1024  # nor below this two loops
# measured on two CPU cores, see docs/kernels.md
SMALL_TILES, TILES = Tiles(rows=128, keys=64), Tiles(rows=512, keys=256)
SMALL = 1024  # rows below this length take small tiles


class _Call(NamedTuple):
    layout: Layout
    scale: float
    causal: bool


class _Sums(NamedTuple):
    """Of every row over the keys visited so far, float32."""

    peak_BKM: jax.Array
    total_BKM: jax.Array
    out_BKMH: jax.Array


class _Gradients(NamedTuple):
    """What the visits so far add up to, float32, before the scale of the scores."""

    q_BKMH: jax.Array
    k_BKSH: jax.Array
    v_BKSH: jax.Array


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    seen: Seen,
    *,
    scale: float,
    causal: bool,
) -> tuple[jax.Array, jax.Array]:
    """Output (B, T, N, H) in the dtype of ``q`` and log-sum-exp (B, T, N) float32, both differentiable.

    Where a query sees nothing the output is 0 and the log-sum-exp -inf. ``causal`` says that no range ends
    beyond its query, where queries and keys are the same tokens.
    """
    keys = k_BSKH.shape[1]
    if keys < (SHORT if len(seen) == 1 else SHORT_WITH_PREFIXES):
        return short.attention(q_BTNH, k_BSKH, v_BSKH, seen, scale=scale, causal=causal)
    layout = (SMALL_TILES if keys < SMALL else TILES).layout(q_BTNH, k_BSKH)
    inputs = layout.rows(q_BTNH), layout.keys(k_BSKH), layout.keys(v_BSKH)

    def attend(ranges: KeyRanges) -> tuple[jax.Array, jax.Array]:
        out_BKMH, lse_BKM = _attention(_Call(layout, scale, causal), *inputs, ranges)
        return layout.tokens(out_BKMH), layout.tokens(lse_BKM[..., None])[..., 0]

    return joined(attend, seen)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    call: _Call, q_BKMH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, ranges: KeyRanges
) -> tuple[jax.Array, jax.Array]:
    return _forward(call, q_BKMH, k_BKSH, v_BKSH, ranges)[0]


def _forward(call: _Call, q_BKMH: Any, k_BKSH: Any, v_BKSH: Any, ranges: KeyRanges) -> tuple[Any, Any]:
    def visit(tile: "_Tile", sums: _Sums) -> _Sums:
        part = _Sums(*(tile.rows(array) for array in sums))
        scores_KMS = tile.scores(q_BKMH, k_BKSH)
        peak_KM = jnp.maximum(part.peak_BKM, scores_KMS.max(axis=-1))
        probs_KMS, shrink_KM = jnp.exp(scores_KMS - peak_KM[..., None]), jnp.exp(part.peak_BKM - peak_KM)
        values_KSH = tile.keys(v_BKSH)
        out_KMH = float32_dot("KMS,KSH->KMH", probs_KMS.astype(values_KSH.dtype), values_KSH)
        new = _Sums(
            peak_KM,
            part.total_BKM * shrink_KM + probs_KMS.sum(axis=-1),
            part.out_BKMH * shrink_KM[..., None] + out_KMH,
        )
        return _Sums(*(tile.put_rows(array, value) for array, value in zip(sums, new, strict=True)))

    vector = q_BKMH.shape[:3]
    # the peak above NEGATIVE, so that a row of masked scores has probabilities exp(NEGATIVE - peak) = 0
    start = _Sums(
        jnp.full(vector, NEGATIVE / 2, jnp.float32),
        jnp.zeros(vector, jnp.float32),
        jnp.zeros(q_BKMH.shape, jnp.float32),
    )
    sums = _loop(call, ranges, visit, start)
    out_BKMH, lse_BKM1 = finish(sums.out_BKMH, sums.total_BKM[..., None], sums.peak_BKM[..., None])
    # by these names a remat policy keeps what the backward pass needs, and the loop does not run again
    out_BKMH = checkpoint_name(out_BKMH.astype(q_BKMH.dtype), "attention_out")
    lse_BKM = checkpoint_name(lse_BKM1[..., 0], "attention_lse")
    return (out_BKMH, lse_BKM), (q_BKMH, k_BKSH, v_BKSH, ranges, out_BKMH, lse_BKM)


def _backward(call: _Call, residuals: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    q_BKMH, k_BKSH, v_BKSH, ranges, out_BKMH, lse_BKM = residuals
    d_out_BKMH, d_lse_BKM = cotangents
    lse_BKM, delta_BKM = start_backward(out_BKMH, lse_BKM, d_out_BKMH, d_lse_BKM)

    def visit(tile: "_Tile", sums: _Gradients) -> _Gradients:
        keys_KSH, values_KSH = tile.keys(k_BKSH), tile.keys(v_BKSH)
        rows_KMH, d_rows_KMH = tile.rows(q_BKMH), tile.rows(d_out_BKMH)
        probs_KMS = jnp.exp(tile.scores(q_BKMH, k_BKSH) - tile.rows(lse_BKM)[..., None])
        d_probs_KMS = float32_dot("KMH,KSH->KMS", d_rows_KMH, values_KSH)
        d_scores_KMS = probs_KMS * (d_probs_KMS - tile.rows(delta_BKM)[..., None])
        d_scores_KMS = d_scores_KMS.astype(values_KSH.dtype)
        dv_KSH = float32_dot("KMS,KMH->KSH", probs_KMS.astype(values_KSH.dtype), d_rows_KMH)
        return _Gradients(
            tile.put_rows(
                sums.q_BKMH, tile.rows(sums.q_BKMH) + float32_dot("KMS,KSH->KMH", d_scores_KMS, keys_KSH)
            ),
            tile.put_keys(
                sums.k_BKSH, tile.keys(sums.k_BKSH) + float32_dot("KMS,KMH->KSH", d_scores_KMS, rows_KMH)
            ),
            tile.put_keys(sums.v_BKSH, tile.keys(sums.v_BKSH) + dv_KSH),
        )

    start = _Gradients(*(jnp.zeros(array.shape, jnp.float32) for array in (q_BKMH, k_BKSH, v_BKSH)))
    sums = _loop(call, ranges, visit, start)
    # in float32: a scaled query in bfloat16 would be rounded a second time
    dq, dk = (sums.q_BKMH * call.scale).astype(q_BKMH.dtype), (sums.k_BKSH * call.scale).astype(k_BKSH.dtype)
    return dq, dk, sums.v_BKSH.astype(v_BKSH.dtype), None


_attention.defvjp(_forward, _backward)


def _loop(call: _Call, ranges: KeyRanges, visit: Any, start: Any) -> Any:
    """Carry sums through all visits."""
    layout = call.layout
    visits = visits_by_query(layout.work(ranges), layout.most_visits(causal=call.causal))
    row_ranges = layout.row_ranges(ranges)

    def turn(index: jax.Array, sums: Any) -> Any:
        where = layout.code.decode(visits.code_I[index])
        tile = _Tile(call, row_ranges, where)
        return jax.lax.cond(where.work == NOTHING, lambda sums: sums, lambda sums: visit(tile, sums), sums)

    return jax.lax.fori_loop(0, visits.total, turn, start)


class _Tile:
    """The parts of arrays that belong to one visit."""

    def __init__(self, call: _Call, row_ranges: KeyRanges, where: Visit) -> None:
        self.call, self.row_ranges = call, row_ranges
        self.row, self.query, self.key, _ = where

    def rows(self, array_BKM: jax.Array) -> jax.Array:
        """(B, K, M, ...) -> the tile's (K, rows, ...)."""
        return self._part(array_BKM, self.query, self.call.layout.tile_rows)

    def keys(self, array_BKSH: jax.Array) -> jax.Array:
        """(B, K, S, H) -> the tile's (K, keys, H)."""
        return self._part(array_BKSH, self.key, self.call.layout.key_tile)

    def put_rows(self, array_BKM: jax.Array, value: jax.Array) -> jax.Array:
        """The array with the tile's rows replaced."""
        return self._put(array_BKM, value, self.query * self.call.layout.tile_rows)

    def put_keys(self, array_BKSH: jax.Array, value: jax.Array) -> jax.Array:
        """The array with the tile's keys replaced."""
        return self._put(array_BKSH, value, self.key * self.call.layout.key_tile)

    def scores(self, q_BKMH: jax.Array, k_BKSH: jax.Array) -> jax.Array:
        """Scaled scores (K, rows, keys); what must not be seen is ``NEGATIVE``."""
        rows, size = self.call.layout.tile_rows, self.call.layout.key_tile
        first_M, end_M = (
            jax.lax.dynamic_slice(array, (self.row, self.query * rows), (1, rows))[0]
            for array in self.row_ranges
        )
        index_S = self.key * size + jnp.arange(size)
        is_seen_MS = (index_S >= first_M[:, None]) & (index_S < end_M[:, None])
        scores_KMS = float32_dot("KMH,KSH->KMS", self.rows(q_BKMH), self.keys(k_BKSH)) * self.call.scale
        return jnp.where(is_seen_MS, scores_KMS, NEGATIVE)

    def _part(self, array: jax.Array, tile: jax.Array, size: int) -> jax.Array:
        sizes = (1, array.shape[1], size, *array.shape[3:])
        return jax.lax.dynamic_slice(array, self._start(array, tile * size), sizes)[0]

    def _put(self, array: jax.Array, value: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(array, value[None], self._start(array, start))

    def _start(self, array: jax.Array, start: jax.Array) -> tuple[jax.Array, ...]:
        zero = jnp.zeros_like(self.row)  # a Python 0 has another dtype where 64 bits are enabled
        return self.row, zero, start, *[zero] * (array.ndim - 3)
