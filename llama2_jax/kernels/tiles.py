"""How queries, keys and values are cut into tiles, the same for every kernel that works tile by tile."""

import dataclasses

import jax
import jax.numpy as jnp

from llama2_jax.kernels.ranges import KeyRanges, VisitCode, pad_ranges, tile_work


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sizes of a tile of scores; ``rows`` are tokens times the G heads that share a key/value head."""

    rows: int
    keys: int
    multiple: int = 1  # of tokens and of keys

    def layout(self, q_BTNH: jax.Array, k_BSKH: jax.Array) -> "Layout":
        """For arrays of these shapes; tiles are not larger than the arrays need."""
        batch, length, heads, head_dim = q_BTNH.shape
        keys, kv_heads = k_BSKH.shape[1:3]
        groups = heads // kv_heads
        tokens = max(self.multiple, self.rows // groups // self.multiple * self.multiple)
        # with so many heads that a tile has more rows than wanted it has fewer keys
        fewer = self.keys * self.rows // max(self.rows, tokens * groups)
        key_tile = max(self.multiple, fewer // self.multiple * self.multiple)
        return Layout(
            batch=batch,
            length=length,
            num_keys=keys,
            kv_heads=kv_heads,
            groups=groups,
            head_dim=head_dim,
            query_tile=min(tokens, _round_up(length, self.multiple)),
            key_tile=min(key_tile, _round_up(keys, self.multiple)),
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of one call, and how arrays are laid out for tiles.

    Queries become rows (B, K, M, H): tile by tile, in a tile head by head, then token by token. A tile of
    them multiplies a tile of keys in one matrix product for all G heads.
    """

    batch: int
    length: int
    num_keys: int
    kv_heads: int
    groups: int
    head_dim: int
    query_tile: int  # tokens
    key_tile: int

    @property
    def tile_rows(self) -> int:
        """Rows of a tile of queries."""
        return self.groups * self.query_tile

    @property
    def query_tiles(self) -> int:
        """Tiles of queries in a row of the batch."""
        return -(-self.length // self.query_tile)

    @property
    def key_tiles(self) -> int:
        """Tiles of keys in a row of the batch."""
        return -(-self.num_keys // self.key_tile)

    @property
    def code(self) -> VisitCode:
        """How a visit of a tile is written."""
        return VisitCode.of(self.query_tiles, self.key_tiles)

    def most_visits(self, *, causal: bool) -> int:
        """A bound on the tiles in which something is seen.

        ``causal`` says that no range ends beyond its query, where queries and keys are the same tokens.
        """
        if not causal or self.length != self.num_keys:
            return self.batch * self.query_tiles * self.key_tiles
        ends = (-(-(tile + 1) * self.query_tile // self.key_tile) for tile in range(self.query_tiles))
        return self.batch * sum(min(end, self.key_tiles) for end in ends)

    def rows(self, x_BTNH: jax.Array) -> jax.Array:
        """Queries as rows (B, K, M, H), padded to whole tiles."""
        padding = self.query_tiles * self.query_tile - self.length
        x = jnp.pad(x_BTNH, ((0, 0), (0, padding), (0, 0), (0, 0)))
        x = x.reshape(self.batch, self.query_tiles, self.query_tile, self.kv_heads, self.groups, -1)
        return x.transpose(0, 3, 1, 4, 2, 5).reshape(self.batch, self.kv_heads, -1, x.shape[-1])

    def tokens(self, x_BKMH: jax.Array) -> jax.Array:
        """The inverse of ``rows``."""
        shape = (self.batch, self.kv_heads, self.query_tiles, self.groups, self.query_tile, -1)
        x = x_BKMH.reshape(shape).transpose(0, 2, 4, 1, 3, 5)
        return x.reshape(self.batch, -1, self.kv_heads * self.groups, x.shape[-1])[:, : self.length]

    def keys(self, x_BSKH: jax.Array) -> jax.Array:
        """Keys or values with heads first, (B, K, S, H), padded to whole tiles."""
        padding = self.key_tiles * self.key_tile - self.num_keys
        return jnp.pad(x_BSKH.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

    def row_ranges(self, ranges: KeyRanges) -> KeyRanges:
        """The ranges of every row, int32 (B, M)."""
        shape = (self.batch, self.query_tiles, self.groups, self.query_tile)

        def repeat(array: jax.Array) -> jax.Array:
            tiled = array.reshape(self.batch, self.query_tiles, 1, self.query_tile)
            return jnp.broadcast_to(tiled, shape).reshape(self.batch, -1)

        first, end = pad_ranges(ranges, self.query_tiles * self.query_tile)
        return KeyRanges(repeat(first), repeat(end))

    def work(self, ranges: KeyRanges) -> jax.Array:
        """What there is to do in every tile, see ``tile_work``."""
        padded = pad_ranges(ranges, self.query_tiles * self.query_tile)
        keys = self.key_tiles * self.key_tile
        return tile_work(padded, keys, query_tile=self.query_tile, key_tile=self.key_tile)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
