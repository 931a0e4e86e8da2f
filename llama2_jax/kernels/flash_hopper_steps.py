"""What one step of the Hopper kernels computes, and which steps there are, as functions of arrays.

Kernels call them on the part of a tile that a warpgroup has in its registers, tests on the CPU on whole
tiles: what is left to the kernels is the moving of data.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from llama2_jax.kernels.ranges import NOTHING, WHOLE
from llama2_jax.kernels.reference import NEGATIVE
from llama2_jax.kernels.softmax import LOG2_E


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What each loop loads at a time, keys or for dk and dv queries, and how many slots it has for them."""

    forward_keys: int
    forward_slots: int
    dq_keys: int
    dq_slots: int
    dkv_queries: int
    dkv_slots: int


class Loop(NamedTuple):
    """The blocks of one tile: [begin, end), of which [whole_begin, whole_end) need no mask."""

    begin: Any
    whole_begin: Any
    whole_end: Any
    end: Any

    @property
    def steps(self) -> Any:
        """How many blocks there are."""
        return self.end - self.begin

    @property
    def masked_steps(self) -> Any:
        """How many of them, the first ones, need the mask."""
        return self.steps - (self.whole_end - self.whole_begin)

    def block(self, step: Any) -> Any:
        """Visited at a step: masked ones on both sides of the whole ones, then these."""
        before = self.whole_begin - self.begin
        masked = jnp.where(step < before, self.begin + step, self.whole_end + step - before)
        return jnp.where(step < self.masked_steps, masked, self.whole_begin + step - self.masked_steps)


def loops(work: jax.Array) -> jax.Array:
    """``Loop`` of every tile, int32 (B, tiles, 4), from work (B, tiles, blocks) as ``tile_work`` gives it.

    Of several runs of whole blocks the first is taken, the others get a mask.
    """
    blocks = work.shape[-1]
    index = jnp.arange(blocks, dtype=jnp.int32)

    def first(is_found: jax.Array) -> jax.Array:
        return jnp.where(is_found, index, blocks).min(-1)

    end = jnp.where(work != NOTHING, index + 1, 0).max(-1)
    begin = jnp.minimum(first(work != NOTHING), end)
    whole_begin = jnp.minimum(first(work == WHOLE), end)
    whole_end = jnp.minimum(first((work != WHOLE) & (index >= whole_begin[..., None])), end)
    return jnp.stack([begin, whole_begin, whole_end, end], axis=-1)


def along(row: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A vector that belongs to an axis of a matrix, over the other one."""
    return lax.broadcast_in_dim(row, shape, (axis,))


def hide(scores: jax.Array, index: jax.Array, first: jax.Array, end: jax.Array, *, axis: int) -> jax.Array:
    """Scores, NEGATIVE where the query (along ``axis``) does not see the key of this index."""
    first, end = (along(bound, scores.shape, axis) for bound in (first, end))
    return jnp.where((index >= first) & (index < end), scores, NEGATIVE)


def softmax_start(rows: int) -> tuple[jax.Array, jax.Array]:
    """Peak and total before the first step.

    The peak is above NEGATIVE, so that rows of hidden scores have probabilities exp2(NEGATIVE - peak) = 0.
    """
    return jnp.full((rows,), NEGATIVE / 2, jnp.float32), jnp.zeros((rows,), jnp.float32)


def softmax_step(
    scores: jax.Array, peak: jax.Array, total: jax.Array, *, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Probabilities, the factor by which earlier sums shrink, the new peak of the scores, the new total."""
    before, peak = peak, jnp.maximum(peak, scores.max(axis=1))
    factor = scale * LOG2_E
    probs = jnp.exp2(scores * factor - along(peak * factor, scores.shape, 0))
    shrink = jnp.exp2((before - peak) * factor)
    return probs, shrink, peak, total * shrink + probs.sum(axis=1)


def probs_again(scores: jax.Array, lse: jax.Array, *, scale: float, axis: int) -> jax.Array:
    """Probabilities from the log-sum-exp (in base 2) of the queries along ``axis``."""
    return jnp.exp2(scores * (scale * LOG2_E) - along(lse, scores.shape, axis))


def score_gradient(probs: jax.Array, d_probs: jax.Array, delta: jax.Array, *, axis: int) -> jax.Array:
    """Gradient of the scores before scaling."""
    return probs * (d_probs - along(delta, probs.shape, axis))
