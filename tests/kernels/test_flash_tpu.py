"""What the TPU kernels do beside giving the right numbers: what they visit, load and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from llama2_jax.config import ConfigError
from llama2_jax.kernels import cost, flash_tpu, ranges
from llama2_jax.kernels.tiles import Tiles
from tests.kernels import exact

TILES = Tiles(rows=256, keys=128, multiple=128)
STRICT = {"detect_races": True, "uninitialized_memory": "nan", "out_of_bounds_reads": "raise"}


def attend(given, interpret=True, tiles=flash_tpu.TILES):
    found = ranges.document_ranges(given.segments)
    return exact.results(
        lambda q, k, v, segments: flash_tpu.attention(
            q, k, v, found, scale=q.shape[-1] ** -0.5, causal=True, interpret=interpret, tiles=tiles
        ),
        given,
    )


def test_no_race_no_uninitialised_memory_and_no_read_out_of_bounds():
    given = exact.inputs(300, groups=2, poison=False)
    strict = attend(given, pltpu.InterpretParams(**STRICT), TILES)
    exact.assert_no_race()
    for a, b in zip(strict, exact.attention(given), strict=True):
        assert exact.error(a, b) < 2e-6


def test_tiles_of_other_documents_are_neither_loaded_nor_computed():
    # documents of one tile each: NaN in the keys of one would reach the others through any product
    given = exact.inputs(512, batch=1, poison=False)
    segments = np.repeat([1, 2, 3, 4], 128)[None].astype(np.int32)
    given = given._replace(segments=segments)
    k, v = given.k.copy(), given.v.copy()
    k[:, 128:256], v[:, 128:256] = np.nan, np.nan
    tiles = Tiles(rows=128, keys=128, multiple=128)
    clean = attend(given, tiles=tiles)
    poisoned = attend(given._replace(k=k, v=v), tiles=tiles)
    others = np.r_[0:128, 256:512]
    for a, b in zip(clean, poisoned, strict=True):
        np.testing.assert_array_equal(a[:, others], b[:, others])
        assert np.isnan(np.asarray(b)[:, 128:256]).any()


@pytest.mark.skipif(
    "grid_point_recorder" not in pltpu.InterpretParams.__dataclass_fields__,
    reason="this jax's interpreter records no grid points",
)
def test_the_grid_visits_what_the_counter_counts():
    given = exact.inputs(700, batch=3, poison=False)
    layout = TILES.layout(given.q, given.k)
    counted = cost.kernel_costs(given.segments, layout)
    points = []

    def record(token, point, _):
        points.append(tuple(int(index) for index in point))
        return token

    found = ranges.document_ranges(given.segments)
    interpret = pltpu.InterpretParams(grid_point_recorder=record)

    def attend(q, k, v):
        return flash_tpu.attention(q, k, v, found, scale=0.1, causal=True, interpret=interpret, tiles=TILES)[
            0
        ]

    out, pull = jax.vjp(attend, *given[:3])
    steps = {name: layout.kv_heads * one.steps for name, one in counted.items()}
    assert len(points) == len(set(points)) == steps["forward"]
    pull(out)
    assert len(points) == sum(steps.values())


def test_the_counter_by_hand():
    # two tiles of queries and keys; in the second layout the second document begins with the second tile
    given = exact.inputs(256, groups=2, kv_heads=3, batch=1)
    layout = TILES.layout(given.q, given.k)
    one = cost.kernel_costs(np.ones((1, 256), np.int32), layout)
    two = cost.kernel_costs(np.repeat([1, 2], 128)[None], layout)
    product = 2 * (2 * 128) * 128 * 64 * 3
    assert [one[name].flops for name in ("forward", "dq", "dkv")] == [6 * product, 9 * product, 12 * product]
    assert [two[name].flops for name in ("forward", "dq", "dkv")] == [4 * product, 6 * product, 8 * product]
    assert (one["forward"].steps, two["forward"].steps) == (3, 2)
    keys, rows = 2 * 128 * 64 * 3 * 2, 2 * 128 * 64 * 3 * 2  # keys and values of a tile; queries of a tile
    # visits (0, 0) (1, 0) (1, 1): the first tile of keys stays for the second tile of queries
    assert one["forward"].loaded_bytes == 2 * rows + 2 * keys
    # key by key (0, 0) (1, 0) (1, 1): queries and their gradients, the second tile stays
    assert one["dkv"].loaded_bytes == 2 * 2 * rows + 2 * keys
    assert two["forward"].loaded_bytes == 2 * rows + 2 * keys


def test_padding_is_visited_once_and_computes_nothing():
    given = exact.inputs(256, batch=1)
    found = cost.kernel_costs(np.zeros((1, 256), np.int32), TILES.layout(given.q, given.k))
    assert (found["forward"].steps, found["forward"].flops) == (1, 0)  # one tile of 256 queries
    assert (found["dkv"].steps, found["dkv"].flops) == (2, 0)


def test_lists_that_do_not_fit_scalar_memory_are_refused():
    q, k = (np.broadcast_to(np.float32(0), (256, 4096, heads, 64)) for heads in (8, 1))
    with pytest.raises(ConfigError, match=r"256 rows of 4096 queries .* 540,672 bytes .* 'chunked'"):
        flash_tpu.attention(q, k, k, ranges.row_ranges(256, 4096, 4096), scale=1.0, causal=True, tiles=TILES)


def test_one_row_of_a_hundred_thousand_tokens_of_the_70b_model_fits():
    q, k = (jax.ShapeDtypeStruct((1, 100_000, heads, 128), jnp.bfloat16) for heads in (64, 8))

    def attend(q, k):
        seen = ranges.row_ranges(1, 100_000, 100_000)
        return flash_tpu.attention(q, k, k, seen, scale=1.0, causal=True)

    assert jax.eval_shape(attend, q, k)[0].shape == q.shape


def test_many_heads_per_key_head_take_tiles_of_fewer_keys():
    q, k = (jax.ShapeDtypeStruct((1, 4096, heads, 128), jnp.bfloat16) for heads in (32, 1))
    layout = flash_tpu.TILES.layout(q, k)
    assert (layout.query_tile, layout.tile_rows, layout.key_tile) == (128, 4096, 128)
