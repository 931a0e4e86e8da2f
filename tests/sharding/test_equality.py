"""Every preset on eight devices computes what one device computes, and really splits its memory."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import place_batch, place_tree
from llama2_jax.sharding.rules import make_partitioner
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import compile_step, loss_sums, make_update, next_token_loss, state_from_params
from tests.model import numpy_llama, tiny

LAYOUTS = {
    "single": MeshConfig(preset="single"),
    "fsdp8": MeshConfig(preset="fsdp"),
    "data2_fsdp2_sequence2": MeshConfig(preset="fsdp", data=2, fsdp=2, sequence=2),
    "fsdp2_tensor4": MeshConfig(preset="fsdp_tensor", fsdp=2, tensor=4),
    "fsdp2_tensor2_sequence2": MeshConfig(preset="fsdp_tensor", fsdp=2, tensor=2, sequence=2),
}
SHARDED = [name for name in LAYOUTS if name != "single"]
TRAINED = ["fsdp8", "fsdp2_tensor4", "fsdp2_tensor2_sequence2"]
DOCUMENTS = [
    [tiny.tokens(n, seed=n).tolist() for n in lengths] for lengths in [(9, 7), (16,), (3,), (5, 4, 2)] * 2
]
BATCH = tiny.pack(DOCUMENTS, 16)
PROMPTS = [tiny.tokens(n, seed=10 + n).tolist() for n in range(1, 9)]
# sums of squares make the updated weights a smooth function of the gradients
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=0, epsilon=1.0), num_steps=10)


@functools.cache
def partitioner(layout):
    config = LAYOUTS[layout]
    return make_partitioner(config)


@functools.cache
def model(layout):
    return Transformer(tiny.CONFIG, partitioner(layout))


@functools.cache
def loss_and_grads(layout):
    params = place_tree(partitioner(layout), tiny.params())

    def loss(params, batch):
        return loss_sums(model(layout), params, batch).loss_sum

    return jax.jit(jax.value_and_grad(loss))(params, place_batch(partitioner(layout), BATCH))


@functools.cache
def trained_state(layout):
    part = partitioner(layout)
    state = state_from_params(place_tree(part, tiny.params()), OPTIMIZER, part)
    accumulation_steps = 2 if layout == "fsdp2_tensor4" else 1
    loss = next_token_loss(model(layout), loss_chunk=4)
    step = make_update(loss, OPTIMIZER, accumulation_steps=accumulation_steps)
    return compile_step(step, state, part)(state, place_batch(part, BATCH))


@pytest.mark.parametrize("layout", SHARDED)
def test_loss_and_gradients_equal_one_device(layout):
    loss, grads = loss_and_grads(layout)
    wanted, wanted_grads = loss_and_grads("single")
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    tiny.assert_gradients_close(grads, wanted_grads, 1e-5)


@pytest.mark.parametrize("layout", ["data2_fsdp2_sequence2", "fsdp2_tensor2_sequence2"])
def test_in_bfloat16_a_loss_in_chunks_is_the_whole_one_where_devices_share_a_row(layout):
    part = partitioner(layout)
    own = Transformer(dataclasses.replace(tiny.CONFIG, compute_dtype="bfloat16"), part)
    params, batch = place_tree(part, tiny.params()), place_batch(part, BATCH)

    def loss_and_grads_by(chunk):
        def loss(params):
            return loss_sums(own, params, batch, loss_chunk=chunk).loss_sum

        return jax.jit(jax.value_and_grad(loss))(params)

    (loss, grads), (wanted, wanted_grads) = loss_and_grads_by(8), loss_and_grads_by(0)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    tiny.assert_gradients_close(grads, wanted_grads, 1e-4)


def test_the_loss_on_one_device_is_that_of_numpy():
    loss, _ = loss_and_grads("single")
    wanted = -sum(
        numpy_llama.next_logprobs(tiny.params(), document, tiny.CONFIG).sum()
        for row in DOCUMENTS
        for document in row
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


@pytest.mark.parametrize("layout", TRAINED)
def test_one_update_equals_one_device(layout):
    state, metrics = trained_state(layout)
    wanted, wanted_metrics = trained_state("single")
    tiny.assert_trees_close(state.params, wanted.params, rtol=1e-5, atol=1e-6)
    for name in ("loss", "tokens", "grad_norm"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5)


@pytest.mark.parametrize("layout", SHARDED)
def test_greedy_samples_equal_one_device(layout):
    greedy = SamplingConfig(max_new_tokens=6, temperature=0.0)
    params = place_tree(partitioner(layout), tiny.params())
    found = generate(model(layout), params, PROMPTS, greedy)
    for row, prompt in enumerate(PROMPTS):
        wanted = numpy_llama.greedy(tiny.params(), prompt, tiny.CONFIG, 6)
        assert found.tokens_BC[row].tolist() == wanted


@pytest.mark.parametrize("layout", SHARDED)
def test_drawn_samples_equal_one_device(layout):
    nucleus = SamplingConfig(max_new_tokens=6, temperature=1.0, top_p=0.8, top_k=20)
    found, wanted = (
        generate(model(name), place_tree(partitioner(name), tiny.params()), PROMPTS, nucleus)
        for name in (layout, "single")
    )
    np.testing.assert_array_equal(found.tokens_BC, wanted.tokens_BC)
    np.testing.assert_allclose(found.sample_logprobs_BC, wanted.sample_logprobs_BC, atol=1e-4)


# devices that hold different parts of a weight, by its dims
SPLITS = {
    "single": {"D": 1, "N": 1, "K": 1, "F": 1, "V": 1},
    "fsdp8": {"D": 8, "N": 1, "K": 1, "F": 1, "V": 1},
    "data2_fsdp2_sequence2": {"D": 2, "N": 1, "K": 1, "F": 1, "V": 1},
    "fsdp2_tensor4": {"D": 2, "N": 4, "K": 1, "F": 4, "V": 4},
    "fsdp2_tensor2_sequence2": {"D": 2, "N": 2, "K": 2, "F": 2, "V": 2},
}


def assert_is_split(tree, layout):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [(path[-1].key, leaf) for path, leaf in leaves if isinstance(path[-1], jax.tree_util.DictKey)]
    for name, leaf in named:
        dims = name.rsplit("_", 1)[1].rjust(leaf.ndim, "L")
        wanted = tuple(
            size // SPLITS[layout].get(letter, 1) for letter, size in zip(dims, leaf.shape, strict=True)
        )
        assert {shard.data.shape for shard in leaf.addressable_shards} == {wanted}, name
    assert named


@pytest.mark.parametrize("layout", TRAINED)
def test_parameters_and_optimiser_state_are_split_and_stay_so(layout):
    part = partitioner(layout)
    fresh = state_from_params(place_tree(part, tiny.params()), OPTIMIZER, part)
    after, _ = trained_state(layout)
    for state in (fresh, after):
        assert_is_split(state.params, layout)
        assert_is_split(state.opt_state, layout)
        assert len(jax.tree.leaves(state.opt_state)) >= 2 * 12  # both moments of twelve weights


@pytest.mark.parametrize("layout", ["fsdp8", "fsdp2_tensor4"])
def test_init_makes_every_leaf_where_it_lives_with_the_values_of_one_device(layout):
    params = init_params(model(layout), jax.random.key(3))
    assert_is_split(params, layout)
    tiny.assert_trees_close(params, one_device_init(), rtol=1e-6, atol=1e-7)


@functools.cache
def one_device_init():
    return init_params(model("single"), jax.random.key(3))


@pytest.mark.parametrize("layout", ["fsdp8", "fsdp2_tensor2_sequence2"])
def test_a_placed_batch_is_split_by_rows_and_sequence(layout):
    placed = place_batch(partitioner(layout), BATCH)
    rows, length = {"fsdp8": (1, 16), "fsdp2_tensor2_sequence2": (4, 8)}[layout]
    for name, array in placed._asdict().items():
        wanted = (rows,) if name.endswith("_B") else (rows, length)
        assert {shard.data.shape for shard in array.addressable_shards} == {wanted}
        np.testing.assert_array_equal(array, getattr(BATCH, name))
