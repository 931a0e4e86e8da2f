"""Who sees whom as ranges of keys, and which tiles of the score matrix that leaves to compute.

Query t sees the keys ``first <= s < end``. A causal row has (0, t + 1), a token of a packed document
(start of its document, t + 1), padding (0, 0). Every kernel takes these two numbers per query: bounds of
its loops and its mask both follow from them, so what is outside a document is never loaded.

Documents of a row must be contiguous and in order; their numbers are compared, never their positions.
"""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import ConfigError


class KeyRanges(NamedTuple):
    """Keys that each query sees, as indices into the row of keys."""

    first_BT: jax.Array  # int32
    end_BT: jax.Array  # int32, one after the last; <= first where nothing is seen


Seen = tuple[KeyRanges, ...]
"""All that queries see: their own document, and their prefix if they have one. No key is in two of them."""


class Visit(NamedTuple):
    """A tile of the score matrix, and what there is to do in it."""

    row: Any  # of the batch
    query: Any  # tile of queries
    key: Any  # tile of keys
    work: Any  # NOTHING, WHOLE or PARTIAL


@dataclasses.dataclass(frozen=True)
class VisitCode:
    """How a visit is written as one int32: row, tile of queries, tile of keys and two bits of work."""

    query_bits: int
    key_bits: int

    @classmethod
    def of(cls, query_tiles: int, key_tiles: int) -> "VisitCode":
        """For so many tiles in a row of the batch."""
        return cls((query_tiles - 1).bit_length(), (key_tiles - 1).bit_length())

    def encode(self, visit: Visit) -> Any:
        """The code; integers or arrays of them."""
        return (((visit.row << self.query_bits | visit.query) << self.key_bits | visit.key) << 2) | visit.work

    def decode(self, code: Any) -> Visit:
        """The inverse of ``encode``."""
        key, query = code >> 2, code >> 2 + self.key_bits
        return Visit(
            row=query >> self.query_bits,
            query=query & (1 << self.query_bits) - 1,
            key=key & (1 << self.key_bits) - 1,
            work=code & 3,
        )


class Visits(NamedTuple):
    """Tiles of the score matrix in the order in which a kernel computes them, those of one output in a run.

    The first ``total`` entries count, the rest are zeros. An output to which nothing contributes has one
    visit without work, so that it is written all the same.
    """

    code_I: jax.Array  # int32, see ``VisitCode``
    total: jax.Array  # int32 scalar


NOTHING, WHOLE, PARTIAL = 0, 1, 2
"""Nothing to compute; all pairs of the tile are seen; some are, so it needs the mask."""


def document_ranges(segment_ids_BT: jax.Array, *, causal: bool = True) -> KeyRanges:
    """Ranges of tokens that attend within their own document; segment 0 is padding and sees nothing."""
    length = segment_ids_BT.shape[1]
    index_T = jnp.arange(length, dtype=jnp.int32)
    is_new_BT = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
    first_BT = jax.lax.cummax(jnp.where(is_new_BT, index_T, 0), axis=1)
    if causal:
        end_BT = jnp.broadcast_to(index_T + 1, segment_ids_BT.shape)
    else:
        is_last_BT = jnp.pad(is_new_BT[:, 1:], ((0, 0), (0, 1)), constant_values=True)
        end_BT = jax.lax.cummin(jnp.where(is_last_BT, index_T + 1, length), axis=1, reverse=True)
    is_token_BT = segment_ids_BT != 0
    return KeyRanges(jnp.where(is_token_BT, first_BT, 0), jnp.where(is_token_BT, end_BT, 0))


def prefix_ranges(segment_ids_BT: jax.Array, prefix_ids_BT: jax.Array) -> KeyRanges:
    """Ranges of the segment that each token sees besides its own; none for prefix 0."""
    # ids ascend where padding has the one before it, so the first token of a segment is found by bisection
    ascending_BT = jax.lax.cummax(segment_ids_BT, axis=1)
    find = functools.partial(jnp.searchsorted, method="scan_unrolled")
    first_BT = jax.vmap(find)(ascending_BT, prefix_ids_BT).astype(jnp.int32)
    ends_BT = document_ranges(segment_ids_BT, causal=False).end_BT
    end_BT = jnp.take_along_axis(ends_BT, first_BT, axis=1, mode="clip")
    has_prefix_BT = prefix_ids_BT != 0
    return KeyRanges(jnp.where(has_prefix_BT, first_BT, 0), jnp.where(has_prefix_BT, end_BT, 0))


def row_ranges(batch: int, length: int, keys: int, *, causal: bool = True) -> KeyRanges:
    """Ranges of rows that are one document each; with ``causal`` the last query sees the last key."""
    end_T = jnp.arange(length, dtype=jnp.int32) + 1 + keys - length if causal else jnp.full(length, keys)
    end_BT = jnp.broadcast_to(end_T.astype(jnp.int32), (batch, length))
    return KeyRanges(jnp.zeros_like(end_BT), end_BT)


def range_mask(ranges: KeyRanges, keys: int) -> jax.Array:
    """mask_BTS, True where the query sees the key."""
    index_S = jnp.arange(keys)
    return (index_S >= ranges.first_BT[..., None]) & (index_S < ranges.end_BT[..., None])


def seen_mask(seen: Seen, keys: int) -> jax.Array:
    """mask_BTS, True where the query sees the key by one of its ranges."""
    return functools.reduce(operator.or_, (range_mask(ranges, keys) for ranges in seen))


def pad_ranges(ranges: KeyRanges, length: int) -> KeyRanges:
    """Up to ``length`` queries; the new ones see nothing."""
    pad = ((0, 0), (0, length - ranges.first_BT.shape[1]))
    return KeyRanges(*(jnp.pad(array, pad) for array in ranges))


def tile_work(ranges: KeyRanges, keys: int, *, query_tile: int, key_tile: int) -> jax.Array:
    """int32 (B, query tiles, key tiles): is what is seen of a tile ``NOTHING``, the ``WHOLE`` or ``PARTIAL``?

    Queries must be a multiple of ``query_tile``. Between the first and the last key that a tile of queries
    sees every tile counts as seen: only padding between documents could be unseen there.
    """
    batch = ranges.first_BT.shape[0]
    first, end = (array.reshape(batch, -1, query_tile) for array in ranges)
    is_seeing = end > first
    lowest, highest = jnp.where(is_seeing, first, keys).min(-1), jnp.where(is_seeing, end, 0).max(-1)
    start = jnp.arange(0, keys, key_tile)
    stop = start + key_tile
    seen = (start < highest[..., None]) & (stop > lowest[..., None])
    # a query that sees nothing has end 0, so no tile with one in it is whole
    whole = (start >= first.max(-1)[..., None]) & (stop <= jnp.where(is_seeing, end, 0).min(-1)[..., None])
    return jnp.where(seen, jnp.where(whole, WHOLE, PARTIAL), NOTHING).astype(jnp.int32)


def visits_by_query(work: jax.Array, size: int | None = None) -> Visits:
    """Visits of the tiles of ``tile_work``, all keys of one tile of queries in a run.

    ``size`` is a bound on their number known to the caller; default all tiles.
    """
    return _visits(work, size, is_by_key=False)


def visits_by_key(work: jax.Array, size: int | None = None) -> Visits:
    """Visits of the tiles of ``tile_work``, all queries of one tile of keys in a run."""
    return _visits(work.swapaxes(1, 2), size, is_by_key=True)


def _visits(work: jax.Array, size: int | None, *, is_by_key: bool) -> Visits:
    is_visited = work != NOTHING
    # an output that nothing contributes to is visited once
    is_visited = is_visited.at[:, :, 0].set(is_visited[:, :, 0] | ~is_visited.any(-1))
    row, outer, inner = jnp.nonzero(is_visited, size=size or work.size, fill_value=0)
    query, key = (inner, outer) if is_by_key else (outer, inner)
    query_tiles, key_tiles = work.shape[:0:-1] if is_by_key else work.shape[1:]
    code = VisitCode.of(query_tiles, key_tiles).encode(Visit(row, query, key, work[row, outer, inner]))
    return Visits(code.astype(jnp.int32), is_visited.sum(dtype=jnp.int32))


def check_segment_ids(segment_ids_BT: np.ndarray) -> None:
    """Raise ``ConfigError`` if a document of a row is not contiguous (inside ``jit`` nobody can look)."""
    for row, ids in enumerate(segment_ids_BT.astype(np.int64)):  # differences of unsigned ids would wrap
        runs = ids[np.flatnonzero(np.diff(ids, prepend=0))]
        documents = runs[runs != 0]
        wrong = np.flatnonzero(np.diff(documents) <= 0)
        if len(wrong):
            before, after = documents[wrong[0] : wrong[0] + 2]
            raise ConfigError(
                f"attention: in the segment ids of row {row} document {after} begins after document {before}"
                "; number the documents of a row in ascending order, each in one piece, 0 for padding"
            )


def check_prefix_ids(segment_ids_BT: np.ndarray, prefix_ids_BT: np.ndarray) -> None:
    """Raise ``ConfigError`` if a token's prefix is not an earlier segment of its row."""
    for row, (own, prefixes) in enumerate(zip(segment_ids_BT, prefix_ids_BT, strict=True)):
        is_wrong = (prefixes != 0) & ((prefixes >= own) | ~np.isin(prefixes, own))
        if is_wrong.any():
            place = int(is_wrong.argmax())
            raise ConfigError(
                f"attention: token {place} of row {row} is of segment {own[place]} and has the prefix "
                f"{prefixes[place]}; a prefix is an earlier segment of the row, or 0 for none"
            )
