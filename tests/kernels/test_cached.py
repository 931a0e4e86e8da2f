"""Attention to a cache with heads before slots, against the plain one."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.kernels import cached, dispatch, reference

BATCH, SLOTS, KV_HEADS, HEAD_DIM = 3, 11, 2, 8


def inputs(length, *, groups):
    generator = np.random.default_rng(groups)
    q = generator.standard_normal((BATCH, length, KV_HEADS * groups, HEAD_DIM)).astype(np.float32)
    k, v = (
        generator.standard_normal((BATCH, SLOTS, KV_HEADS, HEAD_DIM)).astype(np.float32) for _ in range(2)
    )
    return q, k, v


def ragged_mask(length):
    """Row 0 and 1: prompts of 7 and 4 tokens padded to 7, then the new tokens; row 2: nothing at all."""
    segments, positions = np.zeros((BATCH, SLOTS), np.int32), np.zeros((BATCH, SLOTS), np.int32)
    new_positions = np.zeros((BATCH, length), np.int32)
    for row, prompt in enumerate((7, 4)):
        new_positions[row] = prompt + np.arange(length)
        segments[row, :prompt], positions[row, :prompt] = 1, np.arange(prompt)
        segments[row, 7 : 7 + length], positions[row, 7 : 7 + length] = 1, new_positions[row]
    return reference.attention_mask(
        query_segment_ids_BT=np.array([[1], [1], [0]]) * np.ones((1, length), np.int32),
        query_positions_BT=new_positions,
        key_segment_ids_BS=segments,
        key_positions_BS=positions,
    )


def plain(q, k, v, mask):
    return reference.attention(q, k, v, mask, scale=HEAD_DIM**-0.5)[0]


def attend(q, k, v, mask):
    return cached.attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)


@pytest.mark.parametrize("groups", [1, 3], ids=["mha", "gqa"])
@pytest.mark.parametrize("length", [1, 4], ids=["one_token", "several"])
def test_it_equals_the_reference(length, groups):
    (q, k, v), mask = inputs(length, groups=groups), ragged_mask(length)
    found = attend(q, k, v, mask)
    assert found.shape == q.shape
    np.testing.assert_allclose(found, plain(q, k, v, mask), rtol=1e-5, atol=1e-6)
    assert (np.asarray(found)[2] == 0).all()  # sees no key: zero, not NaN
    assert (np.asarray(found)[:2] != 0).all()


def test_several_tokens_are_not_given_to_a_kernel_for_one():
    (q, k, v), mask = inputs(4, groups=2), ragged_mask(4)
    found = dispatch.decode(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, impl="tpu_interpret")
    np.testing.assert_allclose(found, plain(q, k, v, mask), rtol=1e-5, atol=1e-6)


def test_what_empty_slots_hold_changes_nothing():
    (q, k, v), mask = inputs(1, groups=2), ragged_mask(1)
    seen = np.asarray(mask).any(axis=1)[:, :, None, None]
    garbage = [np.where(seen, x, 1e6).astype(np.float32) for x in (k, v)]
    np.testing.assert_array_equal(attend(q, *garbage, mask), attend(q, k, v, mask))


def test_bfloat16_keeps_its_dtype_and_stays_as_close_as_the_reference():
    (q, k, v), mask = inputs(4, groups=2), ragged_mask(4)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    exact = plain(*(np.asarray(x, np.float32) for x in low), mask)

    def error(out):
        assert out.dtype == jnp.bfloat16
        return np.linalg.norm(np.asarray(out, np.float32) - exact) / np.linalg.norm(exact)

    assert error(attend(*low, mask)) <= 1.2 * error(plain(*low, mask))
