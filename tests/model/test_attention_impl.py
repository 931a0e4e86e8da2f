"""Whatever implementation of attention the config names, a model trains, scores and decodes the same."""

import functools

import jax
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score
from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer, abstract_params, decoding_model, unstack
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import place_batch, place_tree
from llama2_jax.sharding.rules import make_partitioner
from llama2_jax.train.step import loss_sums
from tests.model import numpy_llama, tiny

IMPLEMENTATIONS = ["reference", "chunked", "xla", "tpu_interpret"]
LAYOUTS = {
    "one": MeshConfig(preset="single"),
    # two key/value heads for four shards of query heads
    "fsdp2_tensor4": MeshConfig(preset="fsdp_tensor", fsdp=2, tensor=4),
    "data2_tensor2_sequence2": MeshConfig(preset="fsdp_tensor", data=2, fsdp=1, tensor=2, sequence=2),
}
DOCUMENTS = [
    [tiny.tokens(n, seed=n).tolist() for n in lengths] for lengths in [(9, 7), (16,), (3,), (5, 4, 2)] * 2
]
PROMPTS = [tiny.tokens(n, seed=20 + n).tolist() for n in (3, 9, 1, 5)]


def make(impl, layout="one"):
    partitioner = make_partitioner(LAYOUTS[layout])
    model = Transformer(tiny.with_config(attention_impl=impl).config, partitioner)
    return model, place_tree(partitioner, tiny.params())


@functools.cache
def loss_and_grads(impl, layout="one"):
    model, params = make(impl, layout)
    batch = place_batch(model.partitioner, tiny.pack(DOCUMENTS, 16))
    return jax.jit(jax.value_and_grad(lambda params: loss_sums(model, params, batch).loss_sum))(params)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_loss_and_gradients(impl, layout):
    loss, grads = loss_and_grads(impl, layout)
    wanted, wanted_grads = loss_and_grads("reference")
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    tiny.assert_gradients_close(grads, wanted_grads, 1e-5)


@pytest.mark.parametrize("layout", ["one", "fsdp2_tensor4"])
@pytest.mark.parametrize("impl", ["xla", "tpu_interpret"])
def test_completions(impl, layout):
    stacked, params = make(impl, layout)
    model, params = decoding_model(stacked), unstack(params)
    found = generate(model, params, PROMPTS, SamplingConfig(max_new_tokens=5, temperature=0.0))
    for row, prompt in enumerate(PROMPTS):
        wanted = numpy_llama.greedy(tiny.params(), prompt, tiny.CONFIG, 5)
        assert found.tokens_BC[row].tolist() == wanted


@pytest.mark.parametrize("impl", ["reference", "xla", "tpu_interpret"])
def test_scores(impl):
    rows = [tiny.tokens(n, seed=n).tolist() for n in (7, 20)]
    for row, found in zip(rows, score(*make(impl), rows), strict=True):
        wanted = numpy_llama.next_logprobs(tiny.params(), row, tiny.CONFIG)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_chunked_loop_longer_than_short_rows(impl):
    config = tiny.with_config(attention_impl=impl, max_context=300).config
    documents = [[tiny.tokens(n, seed=n).tolist() for n in lengths] for lengths in [(200, 60), (270,)]]
    batch = tiny.pack(documents, 290)
    found = loss_sums(Transformer(config), tiny.params(), batch).loss_sum
    wanted = -sum(
        numpy_llama.next_logprobs(tiny.params(), document, config).sum()
        for row in documents
        for document in row
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"model.attention_impl.*flash.*tpu_interpret"):
        model_config("nano", attention_impl="flash")


def test_queries_split_over_sequence_are_said_to_be_other_tokens_than_the_keys():
    model, params = make("splash", "data2_tensor2_sequence2")
    with pytest.raises(
        ConfigError, match="queries must be the same tokens as keys, not split over 'sequence'"
    ):
        model.apply({"params": params}, tiny.tokens(4, 16))


def test_shapes_are_the_same_with_a_kernel_of_another_platform():
    assert abstract_params(tiny.with_config(attention_impl="tpu").config) == abstract_params(tiny.CONFIG)


def test_a_kernel_of_another_platform_is_refused_before_anything_is_compiled():
    model = tiny.with_config(attention_impl="tpu")
    with pytest.raises(ConfigError, match="it runs on tpu, this is cpu"):
        model.apply({"params": tiny.params()}, tiny.tokens(1, 4))
