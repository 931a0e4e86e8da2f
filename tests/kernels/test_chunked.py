"""Attention in blocks against the plain one, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.kernels import chunked, reference


def inputs(length, *, batch=2, heads=4, kv_heads=2, head_dim=8):
    generator = np.random.default_rng(length)
    q, k, v = (
        generator.standard_normal((batch, length, n, head_dim)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    # row 0: documents and padding whose ends fall inside and on the edges of blocks; row 1: one document
    starts = [0, length // 3, length // 2]
    segments, positions = (
        np.ones((batch, length), np.int32),
        np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
    )
    for number, (first, last) in enumerate(
        zip(starts, [*starts[1:], length - length // 8], strict=True), start=1
    ):
        segments[0, first:last] = number
        positions[0, first:last] = np.arange(last - first)
    segments[0, length - length // 8 :] = 0
    positions[0, length - length // 8 :] = 0
    return q, k, v, segments, positions


def plain(q, k, v, segments, positions):
    mask = reference.attention_mask(
        query_segment_ids_BT=segments,
        query_positions_BT=positions,
        key_segment_ids_BS=segments,
        key_positions_BS=positions,
    )
    return reference.attention(q, k, v, mask)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(attention, q, k, v, segments, positions):
    weights = jnp.cos(jnp.arange(q.size)).reshape(q.shape)

    def total(q, k, v):
        out = attention(q, k, v, segments, positions)
        return (out * weights).sum(), out

    (_, out), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


@pytest.mark.parametrize("length", [5, 64, 150], ids=["part_of_a_block", "one_block", "blocks_and_a_rest"])
def test_blocks_equal_the_reference_in_value_and_gradients(length):
    found = value_and_grads(chunked.attention, *inputs(length))
    wanted = value_and_grads(plain, *inputs(length))
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_padding_is_zero_and_has_no_gradient():
    q, k, v, segments, positions = inputs(80)
    out, *grads = value_and_grads(chunked.attention, q, k, v, segments, positions)
    for array in (out, *grads):
        assert np.isfinite(array).all()
        assert (np.asarray(array)[segments == 0] == 0).all()


def test_bfloat16_stays_close_and_keeps_its_dtype():
    q, k, v, segments, positions = inputs(150)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    found = value_and_grads(chunked.attention, *low, segments, positions)
    wanted = value_and_grads(plain, *(np.asarray(x, np.float32) for x in low), segments, positions)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
        assert error < 0.02


def exact_value_and_grads(q, k, v, segments, positions):
    """Attention and its gradients in numpy float64, for one key/value head per query head."""
    q, k, v = (np.asarray(x).astype(np.float64).swapaxes(1, 2) for x in (q, k, v))
    weights = np.cos(np.arange(q.size, dtype=np.float32)).reshape(q.swapaxes(1, 2).shape)
    d_out = np.asarray(jnp.asarray(weights, jnp.bfloat16)).astype(np.float64).swapaxes(1, 2)
    scale = q.shape[-1] ** -0.5
    mask = reference.attention_mask(
        query_segment_ids_BT=segments,
        query_positions_BT=positions,
        key_segment_ids_BS=segments,
        key_positions_BS=positions,
    )
    scores = np.where(np.asarray(mask)[:, None], q @ k.swapaxes(2, 3) * scale, -np.inf)
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    d_probs = d_out @ v.swapaxes(2, 3)
    d_scores = probs * (d_probs - (d_probs * probs).sum(axis=-1, keepdims=True)) * scale
    results = probs @ v, d_scores @ k, d_scores.swapaxes(2, 3) @ q, probs.swapaxes(2, 3) @ d_out
    return [x.swapaxes(1, 2) for x in results]


# at larger scores the stored bfloat16 output, from which the backward pass starts, costs dq and dk a little
@pytest.mark.parametrize(("size", "compared"), [(1, 4), (2, 1)], ids=["value_and_gradients", "large_scores"])
def test_bfloat16_is_as_exact_as_the_reference_where_the_scale_is_no_power_of_two(size, compared):
    q, k, v, segments, positions = inputs(200, heads=2, kv_heads=2, head_dim=128)
    segments, positions = np.ones_like(segments), np.tile(np.arange(200, dtype=np.int32), (2, 1))
    low = [jnp.asarray(x, jnp.bfloat16) for x in (size * q, size * k, v)]
    exact = exact_value_and_grads(*low, segments, positions)

    def errors(attention):
        @jax.jit
        def value_and_grads_low(q, k, v):
            out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, segments, positions), q, k, v)
            return out, *pull(jnp.cos(jnp.arange(q.size)).reshape(q.shape).astype(out.dtype))

        return [
            np.linalg.norm(np.asarray(a).astype(np.float64) - b) / np.linalg.norm(b)
            for a, b in zip(value_and_grads_low(*low), exact, strict=True)
        ]

    found, wanted = errors(chunked.attention)[:compared], errors(plain)[:compared]
    assert all(a <= 1.2 * b for a, b in zip(found, wanted, strict=True)), (found, wanted)
