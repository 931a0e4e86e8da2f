"""The layout for decoding on many devices: whole weights in the compute dtype, the same answers."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.data.chat import LLAMA2
from llama2_jax.generate import decode, sampler
from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampler import decoding_params, make_sampler
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.transformer import decoding_model, unstack
from llama2_jax.pretrained import LoadedModel, for_decoding
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import place_tree
from llama2_jax.sharding.rules import Partitioner, single_device
from tests.model import tiny

PROMPTS = [tiny.tokens(n, seed=n).tolist() for n in (9, 4, 20, 1, 2, 3, 5, 6)]
SAMPLING = SamplingConfig(max_new_tokens=6, temperature=0.8)


def loaded_on(partitioner, **changes):
    """As ``load`` gives it, split as for training."""
    model = tiny.with_config(**changes).clone(partitioner=partitioner)
    params = place_tree(partitioner, tiny.params())
    return LoadedModel(model.config, params, None, LLAMA2, model, "tiny")


def mesh_of(**axes):
    return Partitioner(make_mesh(MeshConfig(**axes)), "fsdp_tensor")


def answers(loaded):
    return generate(loaded.model, loaded.params, PROMPTS, SAMPLING)


@pytest.mark.parametrize(
    "axes",
    [
        {"fsdp": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 1, "tensor": 4, "data": 2},
        {"fsdp": 2, "tensor": 2, "sequence": 2},
    ],
    ids=str,
)
def test_weights_are_whole_but_for_tensor_and_answers_the_same(axes):
    loaded = for_decoding(loaded_on(mesh_of(**axes)))
    parts = {name: axes.get(name, 1) for name in ("data", "fsdp", "tensor", "sequence")}
    assert dict(loaded.model.partitioner.mesh.shape) == {
        "data": parts["data"] * parts["fsdp"], "fsdp": 1,
        "tensor": parts["tensor"], "sequence": parts["sequence"],
    }  # fmt: skip
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        held = leaf.size // np.prod(leaf.sharding.shard_shape(leaf.shape))
        assert held in (1, parts["tensor"]), jax.tree_util.keystr(path)
    alone = answers(for_decoding(loaded_on(single_device())))
    found = answers(loaded)
    np.testing.assert_array_equal(found.tokens_BC, alone.tokens_BC)
    np.testing.assert_allclose(found.raw_logprobs_BC, alone.raw_logprobs_BC, atol=1e-5)


def gathers(loaded):
    """How often the compiled loop asks other devices for a part of something."""
    state = decode.start(loaded.model, loaded.params, PROMPTS, max_new_tokens=6, seeds=range(8))
    step = decode.advance.lower(
        loaded.model, loaded.params, state, SAMPLING.numbers, stop_ids=(2,), num_tokens=6
    )
    return step.compile().as_text().count("all-gather")


def test_no_weight_travels_for_a_token():
    split = loaded_on(Partitioner(make_mesh(MeshConfig(fsdp=8)), "fsdp"))
    unstacked = split._replace(model=decoding_model(split.model), params=unstack(split.params))
    assert gathers(unstacked) > 0, "else this test would see nothing"
    assert gathers(for_decoding(split)) == 0


def test_rounding_weights_before_their_use_changes_no_bit():
    model = tiny.with_config(compute_dtype="bfloat16")
    params = jax.tree.map(jnp.asarray, tiny.params())
    rounded = decoding_params(model, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("bfloat16")}
    decoder, exact = decoding_model(model), unstack(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(exact)} == {jnp.dtype("float32")}
    found, wanted = (generate(decoder, weights, PROMPTS, SAMPLING) for weights in (rounded, exact))
    for name in found._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def test_weights_in_a_narrower_dtype_than_they_are_computed_in_stay():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tiny.params())
    kept = decoding_params(tiny.MODEL, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}


def test_a_model_that_is_laid_out_already_stays():
    once = for_decoding(loaded_on(single_device()))
    twice = for_decoding(once)
    assert twice.model == once.model
    jax.tree.map(np.testing.assert_array_equal, twice.params, once.params)


def test_opening_takes_one_model_and_its_largest_leaf_if_nobody_holds_the_other(monkeypatch):
    def live():
        return sum(array.nbytes for array in jax.live_arrays())

    def watched(model, params):
        made = decoding_params(model, params)
        seen.append(live() - before)
        return made

    monkeypatch.setattr(sampler, "decoding_params", watched)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(tiny.params())]
    for is_held, most in ((False, sum(sizes) + max(sizes)), (True, 2 * sum(sizes))):
        gc.collect()
        before, seen = live(), []
        loaded = [loaded_on(single_device())]
        decoder = for_decoding(loaded[0] if is_held else loaded.pop())
        assert max(seen) == most
        wanted = decoding_params(tiny.MODEL, tiny.params())
        jax.tree.map(np.testing.assert_array_equal, decoder.params, wanted)


def test_a_sampler_has_nothing_to_recompute():
    config = dataclasses.replace(tiny.CONFIG, remat_policy="full")
    sampler = make_sampler(tiny.MODEL.clone(config=config), single_device())
    assert sampler.model.config.remat_policy == "none"
