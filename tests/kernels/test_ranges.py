"""Ranges of keys and visits of tiles, against loops over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.kernels import ranges
from llama2_jax.kernels.tiles import Tiles
from tests.kernels import exact


def seen_pairs(segments, causal=True):
    length = segments.shape[1]
    same = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] != 0)
    return same & np.tri(length, dtype=bool) if causal else same


def test_document_ranges_by_hand():
    found = ranges.document_ranges(np.array([[1, 1, 4, 4, 4, 0]]))
    np.testing.assert_array_equal(found.first_BT, [[0, 0, 2, 2, 2, 0]])
    np.testing.assert_array_equal(found.end_BT, [[1, 2, 3, 4, 5, 0]])
    found = ranges.document_ranges(np.array([[1, 1, 4, 4, 4, 0]]), causal=False)
    np.testing.assert_array_equal(found.end_BT, [[2, 2, 5, 5, 5, 0]])


def test_prefix_ranges_by_hand():
    segments = np.array([[3, 3, 5, 5, 7, 8, 0]])
    found = ranges.prefix_ranges(segments, np.array([[0, 0, 3, 3, 3, 5, 0]]))
    np.testing.assert_array_equal(found.first_BT, [[0, 0, 0, 0, 0, 2, 0]])
    np.testing.assert_array_equal(found.end_BT, [[0, 0, 2, 2, 2, 4, 0]])


def test_padding_beside_a_prefix_is_no_part_of_it():
    segments = np.array([[0, 0, 3, 3, 0, 5, 0, 7, 0]])
    found = ranges.prefix_ranges(segments, np.array([[0, 0, 0, 0, 0, 3, 0, 5, 0]]))
    np.testing.assert_array_equal(found.first_BT, [[0, 0, 0, 0, 0, 2, 0, 5, 0]])
    np.testing.assert_array_equal(found.end_BT, [[0, 0, 0, 0, 0, 4, 0, 6, 0]])


def test_prefixes_of_all_tokens_are_not_looked_for_at_once():
    rows, length = 4, 16384
    ids = jax.ShapeDtypeStruct((rows, length), np.int32)
    compiled = jax.jit(ranges.prefix_ranges).lower(ids, ids).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * rows * length**2 / 64


@pytest.mark.parametrize(
    ("prefixes", "words"),
    [
        ([0, 0, 2], "token 2 of row 1 is of segment 2 and has the prefix 2; a prefix is an earlier segment"),
        ([3, 0, 0], "token 0 of row 1 is of segment 1 and has the prefix 3"),
        ([0, 0, 0, 5], "token 3 of row 1 is of segment 8 and has the prefix 5"),
    ],
)
def test_a_prefix_is_an_earlier_segment(prefixes, words):
    segments = np.array([[1, 1, 2, 2], [1, 1, 2, 8]])
    prefixes = np.array([[0, 0, 1, 1], prefixes + [0] * (4 - len(prefixes))])
    ranges.check_prefix_ids(segments[:1], prefixes[:1])
    with pytest.raises(ConfigError, match=words):
        ranges.check_prefix_ids(segments, prefixes)


def test_a_shorter_row_of_queries_ends_with_the_keys():
    found = ranges.row_ranges(1, 2, 5)
    np.testing.assert_array_equal(found.end_BT, [[4, 5]])
    np.testing.assert_array_equal(ranges.row_ranges(1, 2, 5, causal=False).end_BT, [[5, 5]])


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_is_that_of_all_pairs(causal):
    segments = exact.random_segments(np.random.default_rng(1), 3, 37)
    mask = ranges.range_mask(ranges.document_ranges(segments, causal=causal), 37)
    np.testing.assert_array_equal(mask, seen_pairs(segments, causal))


@pytest.mark.parametrize("tiles", [(4, 4), (8, 4), (4, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_visited_tiles_are_those_with_a_pair_that_is_seen(seed, tiles):
    query_tile, key_tile = tiles
    segments = exact.random_segments(np.random.default_rng(seed), 3, 32)
    pairs = seen_pairs(segments).reshape(3, 32 // query_tile, query_tile, 32 // key_tile, key_tile)
    some, all_ = pairs.any((2, 4)), pairs.all((2, 4))
    work = ranges.tile_work(ranges.document_ranges(segments), 32, query_tile=query_tile, key_tile=key_tile)
    np.testing.assert_array_equal(work != ranges.NOTHING, some)
    np.testing.assert_array_equal(work == ranges.WHOLE, all_)

    for visits, outputs in (
        (ranges.visits_by_query(work), some.any(2)),
        (ranges.visits_by_key(work), some.any(1)),
    ):
        count = int(visits.total)
        code = ranges.VisitCode.of(*work.shape[1:])
        rows, queries, keys, kinds = code.decode(np.asarray(visits.code_I)[:count])
        doing = kinds != ranges.NOTHING
        visited = np.zeros_like(work)
        np.add.at(visited, (rows[doing], queries[doing], keys[doing]), 1)
        np.testing.assert_array_equal(visited, some)  # each once
        np.testing.assert_array_equal(kinds, work[rows, queries, keys])
        assert (~doing).sum() == (~outputs).sum()  # outputs to which nothing contributes are written too


def test_visits_of_one_output_stand_in_a_run():
    segments = exact.random_segments(np.random.default_rng(5), 3, 64)
    work = ranges.tile_work(ranges.document_ranges(segments), 64, query_tile=8, key_tile=8)
    for visits, output in ((ranges.visits_by_query(work), "query"), (ranges.visits_by_key(work), "key")):
        places = [ranges.VisitCode.of(8, 8).decode(int(code)) for code in visits.code_I[: int(visits.total)]]
        outputs = [(place.row, getattr(place, output)) for place in places]
        changes = [a for a, b in zip(outputs, [*outputs[1:], None], strict=True) if a != b]
        assert len(changes) == len(set(changes)) == 3 * 8


@pytest.mark.parametrize("tiles", [(1, 1), (5, 3), (8, 8), (33, 9)])
def test_a_visit_is_read_as_it_was_written(tiles):
    code = ranges.VisitCode.of(*tiles)
    for query in range(tiles[0]):
        for key in range(tiles[1]):
            visit = ranges.Visit(row=7, query=query, key=key, work=ranges.PARTIAL)
            assert code.decode(code.encode(visit)) == visit


@pytest.mark.parametrize("length", [1, 100, 128, 300, 1000])
@pytest.mark.parametrize("tiles", [(64, 32), (32, 64), (48, 80)])
def test_the_bound_on_visits_is_reached_by_a_causal_row_and_never_exceeded(length, tiles):
    q = jax.ShapeDtypeStruct((2, length, 2, 8), jnp.float32)
    layout = Tiles(rows=2 * tiles[0], keys=tiles[1]).layout(
        q, jax.ShapeDtypeStruct((2, length, 1, 8), jnp.float32)
    )
    bound = layout.most_visits(causal=True)
    for segments in (
        np.ones((2, length), np.int32),
        *(exact.random_segments(np.random.default_rng(i), 2, length) for i in range(4)),
    ):
        work = layout.work(ranges.document_ranges(segments))
        totals = [int(ranges.visits_by_query(work).total), int(ranges.visits_by_key(work).total)]
        assert max(totals) <= bound
        if segments.all() and segments.max() == 1:
            assert totals == [bound, bound]
    assert layout.most_visits(causal=False) == 2 * layout.query_tiles * layout.key_tiles
