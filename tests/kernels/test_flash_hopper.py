"""The Hopper kernels without a GPU: their mathematics, and the kernels themselves in Pallas' interpreter.

That they compile for the chip, and how, is in ``tools/hopper_gates.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.kernels import dispatch, reference
from llama2_jax.kernels.flash_hopper_steps import Loop, loops
from llama2_jax.kernels.ranges import KeyRanges, document_ranges, range_mask, row_ranges, tile_work
from tests.kernels import exact

if jax.version.__version_info__ < (0, 11):
    pytest.skip("the Hopper kernels need jax 0.11", allow_module_level=True)
from llama2_jax.kernels import flash_hopper
from tests.kernels import emulate_hopper

LENGTHS = (1, 7, 64, 127, 128, 129, 513)


@pytest.fixture
def emulated(monkeypatch):
    for name in ("forward", "gradient_q", "gradient_kv"):
        monkeypatch.setattr(flash_hopper.kernels, name, getattr(emulate_hopper, name))


def plain(q, k, v, ranges, *, scale):
    return reference.attention(q, k, v, range_mask(ranges, k.shape[1]), scale=scale)


def attend(given, *, causal=True, attention=flash_hopper.attention, **kwargs):
    found, scale = document_ranges(given.segments, causal=causal), given.q.shape[-1] ** -0.5
    return exact.results(lambda q, k, v, segments: attention(q, k, v, found, scale=scale, **kwargs), given)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("length", LENGTHS)
def test_float32_against_the_exact_result(length, groups):
    given = exact.inputs(length, groups=groups, kv_heads=1, poison=False)
    for found, wanted in zip(attend(given), exact.attention(given), strict=True):
        assert exact.error(found, wanted) < 2e-6


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("length", [129, 513])
def test_not_causal(length):
    given = exact.inputs(length, groups=2, kv_heads=1, poison=False)
    for found, wanted in zip(attend(given, causal=False), exact.attention(given, causal=False), strict=True):
        assert exact.error(found, wanted) < 2e-6


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("head_dim", "blocks"), [(dim, one) for dim, all_ in flash_hopper.VARIANTS.items() for one in all_]
)
def test_every_variant_in_bfloat16_is_as_good_as_the_plain_form(head_dim, blocks):
    given = exact.inputs(513, groups=2, kv_heads=1, head_dim=head_dim, dtype=jnp.bfloat16, poison=False)
    wanted = exact.attention(given)
    in_bfloat16 = attend(given, attention=plain)
    for found, naive, best in zip(attend(given, blocks=blocks), in_bfloat16, wanted, strict=True):
        assert exact.error(found, best) <= 2 * exact.error(naive, best) + 1e-3


@pytest.mark.usefixtures("emulated")
def test_fewer_queries_than_keys():
    given = exact.inputs(300, batch=1, poison=False)
    ranges = row_ranges(1, 40, 300)
    found, lse = flash_hopper.attention(given.q[:, -40:], *given[1:3], ranges, scale=0.125)
    wanted, wanted_lse = plain(given.q[:, -40:], *given[1:3], ranges, scale=0.125)
    assert exact.error(found, wanted) < 2e-6
    assert exact.error(lse, wanted_lse) < 2e-6


def is_zero_in_padding(found, given):
    """Output and gradients; the log-sum-exp is -inf there."""
    is_padding = given.segments == 0
    out, lse, *gradients = (np.asarray(array).astype(np.float32) for array in found)
    assert np.isneginf(lse[is_padding]).all()
    return all((array[is_padding] == 0).all() for array in (out, *gradients))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_nan_in_padding_reaches_nothing_and_padding_is_zero(monkeypatch, dtype):
    monkeypatch.setattr(dispatch, "_gradient_cleared", spy := Spy(dispatch._gradient_cleared))
    given = exact.inputs(300, groups=2, kv_heads=1, dtype=dtype)
    assert all(np.isnan(array).any() for array in given[:5])
    hopper = dispatch.unsharded("gpu", "9.0")

    def attend(q, k, v, segments):
        return dispatch.attention(
            q, k, v, segment_ids_BT=segments, impl="hopper", needs_lse=True, placement=hopper
        )

    found = exact.results(attend, given)
    assert spy.calls == 1  # output and gradients are not masked after the kernels
    assert is_zero_in_padding(found, given)
    for one, best in zip(found, exact.attention(given), strict=True):
        assert exact.error(one, best) < 0.02


@pytest.mark.usefixtures("emulated")
def test_a_segment_sees_its_prefix_as_well():
    given, prefixes = exact.inputs_with_prefixes(300, kv_heads=1, batch=2, dtype=jnp.bfloat16)
    hopper = dispatch.unsharded("gpu", "9.0")

    def attend(q, k, v, segments):
        how = {"impl": "hopper", "needs_lse": True, "placement": hopper}
        return dispatch.attention(q, k, v, segment_ids_BT=segments, prefix_ids_BT=prefixes, **how)

    found = exact.results(attend, given)
    assert is_zero_in_padding(found, given)
    for one, best in zip(found, exact.attention(given, prefixes=prefixes), strict=True):
        assert exact.error(one, best) < 0.02


class Spy:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


def test_loops_hold_what_is_seen_and_no_mask_where_all_is():
    rng = np.random.default_rng(0)
    for _ in range(50):
        first = rng.integers(0, 513, (2, 512))
        end = np.where(rng.random((2, 512)) < 0.2, 0, first + rng.integers(0, 513, (2, 512))).clip(max=512)
        if rng.random() < 0.5:
            segments = np.stack([exact.random_segments(rng, 2, 512)[0], np.zeros(512, np.int32)])
            first, end = (np.asarray(x) for x in document_ranges(segments))
        ranges = KeyRanges(jnp.asarray(first, jnp.int32), jnp.asarray(end, jnp.int32))
        work = tile_work(ranges, 512, query_tile=128, key_tile=64)
        for axes, turned in (("queries", work), ("keys", work.swapaxes(1, 2))):
            found = np.asarray(loops(turned))
            for (row, tile), _ in np.ndenumerate(found[..., 0]):
                loop = Loop(*(int(x) for x in found[row, tile]))
                order = [int(loop.block(i)) for i in range(loop.steps)]
                assert sorted(order) == list(range(loop.begin, loop.end)), axes
                kinds = np.asarray(turned)[row, tile]
                assert set(np.flatnonzero(kinds)) <= set(order)
                assert (kinds[order[loop.masked_steps :]] == 1).all()
                if not kinds.any():
                    assert order == []


def test_a_causal_row_masks_the_diagonal_alone():
    work = tile_work(row_ranges(1, 512, 512), 512, query_tile=128, key_tile=128)
    found = [Loop(*bounds) for bounds in loops(work)[0].tolist()]
    assert [loop.masked_steps for loop in found] == [1, 1, 1, 1]
    assert [[int(loop.block(i)) for i in range(loop.steps)] for loop in found] == [
        [0],
        [1, 0],
        [2, 0, 1],
        [3, 0, 1, 2],
    ]


def test_a_scale_that_is_not_positive_is_refused():
    given = exact.inputs(64, batch=1, poison=False)
    with pytest.raises(ConfigError, match="scale must be positive"):
        flash_hopper.attention(*given[:3], row_ranges(1, 64, 64), scale=0.0)


@pytest.mark.usefixtures("emulated")
def test_one_document_and_a_row_are_bitwise_equal():
    given = exact.inputs(200, batch=1, poison=False)
    by_row = flash_hopper.attention(*given[:3], row_ranges(1, 200, 200), scale=0.125)
    by_document = flash_hopper.attention(
        *given[:3], document_ranges(jnp.ones((1, 200), jnp.int32)), scale=0.125
    )
    jax.tree.map(np.testing.assert_array_equal, by_row, by_document)


@pytest.mark.parametrize(
    ("length", "groups", "head_dim"),
    # every slot is used again; a tile of queries is padded; copies of more than one swizzled tile
    [(512, 1, 64), (300, 2, 64), (129, 1, 128)],
)
def test_the_kernels_themselves_without_a_race(monkeypatch, length, groups, head_dim):
    given = exact.inputs(
        length, groups=groups, kv_heads=1, head_dim=head_dim, batch=1, dtype=jnp.bfloat16, poison=False
    )
    with emulate_hopper.interpreted(monkeypatch, detect_races=True):
        interpreted = attend(given)
    assert is_zero_in_padding(interpreted, given)
    in_bfloat16 = attend(given, attention=plain)
    for found, naive, best in zip(interpreted, in_bfloat16, exact.attention(given), strict=True):
        assert exact.error(found, best) <= 2 * exact.error(naive, best) + 1e-3
