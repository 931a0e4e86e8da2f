import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.losses.next_token import chunked_next_token_sums, next_token_sums, token_logprobs
from llama2_jax.sharding.rules import single_device
from tests.model import numpy_llama, tiny

B, T, D, V = 3, 12, 5, 7
GENERATOR = np.random.default_rng(0)
HIDDEN = GENERATOR.standard_normal((B, T, D)).astype(np.float32)
UNEMBEDDING = GENERATOR.standard_normal((D, V)).astype(np.float32)
TARGETS = GENERATOR.integers(0, V, (B, T)).astype(np.int32)
MASK = (GENERATOR.random((B, T)) < 0.6).astype(np.float32)


def whole(weight, hidden):
    return next_token_sums(hidden @ weight, TARGETS, MASK)


def chunked(weight, hidden, chunk_size):
    return chunked_next_token_sums(
        lambda head, _, h: h @ head, weight, "DV", hidden, TARGETS, MASK,
        vocab_size=V, chunk_size=chunk_size, map_shards=single_device().map_shards,
    )  # fmt: skip


def test_the_sum_is_the_negative_log_likelihood_of_counted_targets():
    sums = whole(UNEMBEDDING, HIDDEN)
    logprobs = numpy_llama.log_softmax(HIDDEN.astype(np.float64) @ UNEMBEDDING)
    wanted = 0.0
    for b, t in np.ndindex(B, T):
        if MASK[b, t]:
            wanted -= logprobs[b, t, TARGETS[b, t]]
    np.testing.assert_allclose(sums.loss_sum, wanted, rtol=1e-6)
    assert float(sums.weight) == MASK.sum()


def test_uniform_logits_cost_log_v_per_token():
    sums = next_token_sums(jnp.zeros((1, 4, V)), np.zeros((1, 4), np.int32), np.ones((1, 4), np.float32))
    assert float(sums.loss_sum) == pytest.approx(4 * np.log(V), rel=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(HIDDEN @ UNEMBEDDING, jnp.bfloat16)
    found = token_logprobs(logits, TARGETS)
    wanted = np.take_along_axis(
        numpy_llama.log_softmax(np.asarray(logits, np.float64)), TARGETS[..., None], axis=-1
    )[..., 0]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("garbage", [np.inf, -np.inf, np.nan])
def test_masked_positions_may_hold_anything(garbage):
    logits = HIDDEN @ UNEMBEDDING
    dirty = np.where(MASK[..., None] > 0, logits, np.float32(garbage))

    def loss(x):
        return next_token_sums(x, np.where(MASK > 0, TARGETS, -1), MASK).loss_sum

    value, gradient = jax.value_and_grad(loss)(dirty)
    wanted_value, wanted_gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-6)
    assert (np.asarray(gradient)[MASK == 0] == 0).all()


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 12])
def test_chunked_equals_whole_in_value_and_gradient(chunk_size):
    grad = jax.value_and_grad(lambda w, h: whole(w, h).loss_sum, argnums=(0, 1))
    chunk_grad = jax.value_and_grad(lambda w, h: chunked(w, h, chunk_size).loss_sum, argnums=(0, 1))
    wanted, wanted_grads = grad(UNEMBEDDING, HIDDEN)
    found, found_grads = chunk_grad(UNEMBEDDING, HIDDEN)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    tiny.assert_trees_close(found_grads, wanted_grads)
    assert float(chunked(UNEMBEDDING, HIDDEN, chunk_size).weight) == MASK.sum()


def test_a_chunk_that_does_not_divide_the_length_is_refused():
    with pytest.raises(ConfigError, match=r"loss_chunk = 5 .* 12"):
        chunked(UNEMBEDDING, HIDDEN, 5)


def array_sizes(jaxpr):
    """Element counts of every value in a jaxpr and all jaxprs inside it."""
    sizes = set()
    for equation in jaxpr.eqns:
        sizes |= {int(np.prod(v.aval.shape)) for v in equation.outvars if hasattr(v.aval, "shape")}
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else [parameter]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    sizes |= array_sizes(inner)
    return sizes


def test_only_the_whole_loss_ever_holds_all_logits():
    whole_jaxpr = jax.make_jaxpr(jax.grad(lambda w: whole(w, HIDDEN).loss_sum))(UNEMBEDDING)
    chunked_jaxpr = jax.make_jaxpr(jax.grad(lambda w: chunked(w, HIDDEN, 4).loss_sum))(UNEMBEDDING)
    assert B * T * V in array_sizes(whole_jaxpr.jaxpr)
    assert B * 4 * V in array_sizes(chunked_jaxpr.jaxpr)
    assert max(array_sizes(chunked_jaxpr.jaxpr)) < B * T * V


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"next_token_sums.*12.*logits_BTV.*11.*targets_BT"):
        next_token_sums(HIDDEN @ UNEMBEDDING, TARGETS[:, :11], MASK[:, :11])
