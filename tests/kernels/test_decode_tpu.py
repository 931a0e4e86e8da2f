"""The decoding kernel against the plain form."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from llama2_jax.config import ConfigError
from llama2_jax.kernels import cached, decode_tpu
from llama2_jax.kernels.decode_tpu import Split, decode_attention
from llama2_jax.kernels.softmax import combine
from tests.kernels import exact

INTERPRET = {
    "plain": True,
    "strict": pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    ),
}


def inputs(groups, slots, *, kv_heads=2, head_dim=64, dtype=np.float32):
    """Row 0: a prompt, a gap and new tokens; row 1: the first tokens alone; row 2: nothing."""
    rng = np.random.default_rng([groups, slots])
    q = rng.standard_normal((3, kv_heads * groups, head_dim)).astype(dtype)
    k, v = (rng.standard_normal((3, kv_heads, slots, head_dim)).astype(dtype) for _ in range(2))
    visible = np.zeros((3, slots), bool)
    visible[0, : slots // 3] = visible[0, slots // 2 : slots - 2] = visible[1, :5] = True
    return q, k, v, visible


def plain(q, k, v, visible):
    return np.asarray(cached.attention(q[:, None], k, v, visible[:, None]))[:, 0]


@pytest.mark.parametrize("interpret", INTERPRET)
@pytest.mark.parametrize(
    ("groups", "slots", "split"),
    [(1, 300, Split(128)), (8, 130, Split()), (3, 700, Split(128, parts=3)), (2, 7, Split(128, parts=2))],
)
def test_it_equals_the_plain_form(groups, slots, split, interpret):
    q, k, v, visible = inputs(groups, slots)
    found = decode_attention(q, k, v, visible, scale=0.125, split=split, interpret=INTERPRET[interpret])
    np.testing.assert_allclose(found, plain(q, k, v, visible), rtol=2e-5, atol=2e-6)
    exact.assert_no_race()
    assert (np.asarray(found)[2] == 0).all()


def test_blocks_without_a_visible_slot_are_not_read():
    q, k, v, visible = inputs(2, 600)
    visible[:, 128:256] = False
    clean = decode_attention(q, k, v, visible, scale=0.125, split=Split(128), interpret=True)
    k[:, :, 128:256], v[:, :, 128:256] = np.nan, np.nan
    k[1, :, 128:], v[1, :, 128:] = np.nan, np.nan
    found = decode_attention(q, k, v, visible, scale=0.125, split=Split(128), interpret=True)
    np.testing.assert_array_equal(found, clean)


def test_two_runs_are_bitwise_equal():
    given = inputs(2, 700)
    runs = [
        decode_attention(*given, scale=0.125, split=Split(128, parts=3), interpret=True) for _ in range(2)
    ]
    np.testing.assert_array_equal(*runs)


def test_bfloat16_is_about_as_exact_as_the_plain_form():
    q, k, v, visible = inputs(4, 500, head_dim=128, dtype=jnp.bfloat16)
    wanted = plain(*(array.astype(np.float32) for array in (q, k, v)), visible)[:2]

    def error(out):
        assert out.dtype == jnp.bfloat16
        return np.linalg.norm(np.asarray(out, np.float32)[:2] - wanted) / np.linalg.norm(wanted)

    found = decode_attention(q, k, v, visible, scale=128**-0.5, interpret=True)
    assert error(found) <= 2 * error(plain(q, k, v, visible))


def test_parts_are_combined_by_their_log_sum_exps():
    scores = np.array([[0.5, 2.0, -1.0], [3.0, 0.0, 1.0]])
    values = np.arange(6.0).reshape(2, 3)
    weights = np.exp(scores)
    outputs = (weights * values).sum(1) / weights.sum(1)
    out, lse = combine(outputs[None, :, None, None], np.log(weights.sum(1))[None, :, None, None])
    np.testing.assert_allclose(out, [[[(weights * values).sum() / weights.sum()]]], rtol=1e-6)
    np.testing.assert_allclose(lse, [[[np.log(weights.sum())]]], rtol=1e-6)
    out, lse = combine(np.zeros((1, 2, 1, 4)), np.full((1, 2, 1, 1), -np.inf))
    np.testing.assert_array_equal(out, np.zeros((1, 1, 4)))
    np.testing.assert_array_equal(lse, [[[-np.inf]]])


def test_a_block_holds_as_many_heads_as_fit_and_divides_them():
    assert decode_tpu.heads_per_block(32, 128 * 1024) == 8
    assert decode_tpu.heads_per_block(12, 100 * 1024) == 6
    assert decode_tpu.heads_per_block(4, 2**22) == 1


def test_one_block_of_heads_is_split_in_two_parts():
    assert decode_tpu.choose_split(8, 4096, 128, 2) == Split(512, 2)
    assert decode_tpu.choose_split(32, 4096, 128, 2) == Split(512, 1)  # four blocks of heads
    assert decode_tpu.choose_split(8, 600, 128, 2) == Split(512, 1)


def test_lists_that_do_not_fit_scalar_memory_are_refused():
    k = np.zeros((1024, 1, 8192, 1), np.float32)
    with pytest.raises(ConfigError, match=r"1024 rows of 8192 slots"):
        decode_attention(
            np.zeros((1024, 1, 1)), k, k, np.zeros((1024, 8192), bool), scale=1.0, split=Split(64)
        )
