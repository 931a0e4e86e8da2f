"""The layout for decoding is the same model."""

import functools

import jax
import numpy as np
import pytest

from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score
from llama2_jax.model.layers import project
from llama2_jax.model.transformer import attention_probabilities, decoding_model, unstack
from llama2_jax.sharding.rules import single_device
from tests.model import tiny

ROWS = [tiny.tokens(n, seed=n).tolist() for n in (9, 4, 20)]


def both_layouts(policy="none"):
    model, params = tiny.with_config(remat_policy=policy), jax.tree.map(jax.numpy.asarray, tiny.params())
    return (model, params), (decoding_model(model), unstack(params))


def logits(model, params):
    return jax.jit(lambda p: model.apply({"params": p}, tiny.tokens(2, 11)).logits_BTV)(params)


@pytest.mark.parametrize("policy", ["none", "full"])
def test_logits_are_the_same(policy):
    # up to the last bit: XLA fuses neighbouring layers only where it sees both
    stacked, unstacked = (logits(*layout) for layout in both_layouts(policy))
    np.testing.assert_allclose(unstacked, stacked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["none", "full", "dots", "attention"])
def test_greedy_completions_are_the_same(policy):
    stacked, unstacked = (
        generate(*layout, ROWS, SamplingConfig(max_new_tokens=6, temperature=0))
        for layout in both_layouts(policy)
    )
    for name in ("tokens_BC", "lengths_B", "stopped_B"):
        np.testing.assert_array_equal(getattr(unstacked, name), getattr(stacked, name))
    np.testing.assert_allclose(unstacked.raw_logprobs_BC, stacked.raw_logprobs_BC, rtol=0, atol=1e-5)


def test_scores_are_the_same():
    stacked, unstacked = (score(*layout, ROWS, batch_size=3) for layout in both_layouts("full"))
    for found, wanted in zip(unstacked, stacked, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_attention_probabilities_are_the_same():
    stacked, unstacked = (
        attention_probabilities(*layout, tiny.tokens(2, 9)) for layout in both_layouts("full")
    )
    assert unstacked.shape == (2, 2, 4, 9, 9)
    np.testing.assert_allclose(unstacked, stacked, atol=5e-6)


def test_unstacking_twice_changes_nothing_and_remat_is_gone():
    model, params = both_layouts("full")[1]
    assert decoding_model(model) == model
    assert unstack(params) is params
    assert (model.stacked, model.config.remat_policy) == (False, "none")


def test_weights_have_their_outputs_first_and_names_that_say_so():
    (_, stacked), (model, params) = both_layouts()
    names = {"w_q_DNH": "w_q_NHD", "w_k_DKH": "w_k_KHD", "w_v_DKH": "w_v_KHD", "w_o_NHD": "w_o_DNH"}
    assert set(params["layer_1"]["attention"]) == set(names.values())
    before, after = stacked["layers"]["attention"], params["layer_1"]["attention"]
    for old, new in names.items():
        letters = old[-3:]
        axes = [letters.index(letter) for letter in new[-3:]]
        np.testing.assert_array_equal(after[new], before[old][1].transpose(axes))
    assert params["layer_0"]["feed_forward"]["w_down_DF"].shape[0] == model.config.model_width
    assert params["unembedding_VD"].shape[0] == model.config.vocab_size


@pytest.mark.parametrize("rows", [(3, 1), (2, 5)])
@pytest.mark.parametrize(("inputs", "shape"), [(1, (6, 2, 4)), (2, (2, 4, 6))])
def test_products_do_not_depend_on_the_layout(rows, inputs, shape):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=shape), rng.normal(size=(*rows, *shape[:inputs]))
    wanted = np.tensordot(x, weight, inputs)
    multiply = functools.partial(project, partitioner=single_device(), contract=inputs)
    np.testing.assert_allclose(jax.jit(multiply)(x, weight), wanted, atol=1e-5)
    moved = np.moveaxis(weight, range(inputs), range(-inputs, 0))
    turned = jax.jit(functools.partial(multiply, outputs_first=True))
    np.testing.assert_allclose(turned(x, moved), wanted, atol=1e-5)
