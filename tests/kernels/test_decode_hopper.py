"""The Hopper kernel that decodes, in Pallas' interpreter, against the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.kernels import cached
from tests.kernels import exact

if jax.version.__version_info__ < (0, 11):
    pytest.skip("the Hopper kernels need jax 0.11", allow_module_level=True)
from llama2_jax.kernels import decode_hopper
from llama2_jax.kernels.decode_hopper import Split, decode_attention
from tests.kernels import emulate_hopper


def inputs(groups, slots, *, head_dim=64, kv_heads=2):
    """Row 0: a prompt, a gap and new tokens; row 1: the first tokens alone; row 2: nothing."""
    rng = np.random.default_rng([groups, slots])
    q = rng.standard_normal((3, kv_heads * groups, head_dim))
    k, v = (rng.standard_normal((3, kv_heads, slots, head_dim)) for _ in range(2))
    visible = np.zeros((3, slots), bool)
    visible[0, : slots // 3] = visible[0, slots // 2 : slots - 2] = visible[1, :5] = True
    return *(jnp.asarray(array, jnp.bfloat16) for array in (q, k, v)), visible


def plain(q, k, v, visible):
    return cached.attention(q[:, None], k, v, visible[:, None])[:, 0]


# fewer processors than shares, so that each has several and slots of a ring are used again
@pytest.mark.parametrize("processors", [2, 132])
@pytest.mark.parametrize(
    ("groups", "slots", "head_dim", "split"),
    [
        (1, 304, 64, Split(128, 2)),
        (8, 704, 64, Split(256, 2, shares=1)),
        (3, 520, 128, Split(128, 2, shares=4)),
    ],
)
def test_it_equals_the_plain_form_without_a_race(monkeypatch, processors, groups, slots, head_dim, split):
    monkeypatch.setattr(decode_hopper, "PROCESSORS", processors)
    given = inputs(groups, slots, head_dim=head_dim)
    with emulate_hopper.interpreted(monkeypatch, detect_races=True):
        found = decode_attention(*given, scale=head_dim**-0.5, split=split)
    assert found.dtype == jnp.bfloat16
    assert (np.asarray(found)[2] == 0).all()
    best = plain(*(array.astype(jnp.float32) for array in given[:3]), given[3])[:2]
    assert exact.error(found[:2], best) <= 2 * exact.error(plain(*given)[:2], best)


def test_blocks_without_a_visible_slot_are_not_read(monkeypatch):
    q, k, v, visible = inputs(2, 600)
    visible[:, 128:384] = False
    poisoned = [array.at[:, :, 128:384].set(jnp.nan).at[1, :, 128:].set(jnp.nan) for array in (k, v)]
    with emulate_hopper.interpreted(monkeypatch):
        clean, found = (
            decode_attention(q, *cache, visible, scale=0.125, split=Split(128, 2))
            for cache in ((k, v), poisoned)
        )
    np.testing.assert_array_equal(found, clean)


def test_the_split_makes_shares_for_every_processor():
    split = Split(128, 2, shares=8)
    assert split.parts(programs=32 * 32, blocks=32) == 2  # 7B, 32 rows: 1,024 shares per part
    assert split.parts(programs=32 * 8, blocks=32) == 5
    assert split.parts(programs=32, blocks=32) == 32  # one row: no more parts than blocks
    assert split.parts(programs=10_000, blocks=32) == 1


def test_a_cache_that_cannot_be_copied_in_whole_tiles_is_refused():
    q, k = jnp.zeros((1, 1, 64), jnp.bfloat16), jnp.zeros((1, 1, 300, 64), jnp.bfloat16)
    with pytest.raises(ConfigError, match="the cache has 300 slots, .* 8 at a time; make it with 304"):
        decode_attention(q, k, k, np.ones((1, 300), bool), scale=1.0)


def test_more_heads_than_rows_of_a_product_are_refused():
    q, k = jnp.zeros((1, 65, 64), jnp.bfloat16), jnp.zeros((1, 1, 128, 64), jnp.bfloat16)
    with pytest.raises(
        ConfigError, match="65 query heads share a key/value head, .* takes 64; use 'chunked'"
    ):
        decode_attention(q, k, k, np.ones((1, 128), bool), scale=1.0)
