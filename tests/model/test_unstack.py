"""The layout for decoding is the same model."""

import jax
import numpy as np
import pytest

from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score
from llama2_jax.model.transformer import attention_probabilities, unstack
from tests.model import tiny

ROWS = [tiny.tokens(n, seed=n).tolist() for n in (9, 4, 20)]


def both_layouts(policy="none"):
    model, params = tiny.with_config(remat_policy=policy), jax.tree.map(jax.numpy.asarray, tiny.params())
    return (model, params), unstack(model, params)


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
    np.testing.assert_allclose(unstacked, stacked, atol=1e-6)


def test_unstacking_twice_changes_nothing_and_remat_is_gone():
    model, params = both_layouts("full")[1]
    again, same = unstack(model, params)
    assert again is model
    assert same is params
    assert (model.stacked, model.config.remat_policy) == (False, "none")
