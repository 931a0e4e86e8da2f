"""float32 products are exact on every device, also where XLA rounds operands by itself: on TPUs and GPUs."""

import dataclasses
import re

import jax
import pytest

from llama2_jax.generate.decode import advance, start
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.heads import ScoreModel, last_token_scores, score_params_from_chat
from llama2_jax.model.transformer import Transformer, decoding_model, unstack
from llama2_jax.train.step import loss_sums
from tests.model import tiny

LONG = 320  # more tokens than ``chunked`` hands on to ``short``


def _config(compute_dtype):
    return dataclasses.replace(tiny.CONFIG, compute_dtype=compute_dtype, max_context=LONG)


def _training(compute_dtype, *, length, loss_chunk):
    batch = tiny.pack([[tiny.tokens(length).tolist()]], length)
    model = Transformer(_config(compute_dtype))

    def loss(params):
        return loss_sums(model, params, batch, loss_chunk=loss_chunk).loss_sum

    return jax.jit(jax.grad(loss)).lower(tiny.params())


def _scoring(compute_dtype):
    model, params = ScoreModel(_config(compute_dtype)), score_params_from_chat(tiny.params(), key=None)
    tokens, lengths = tiny.tokens(2, 9), jax.numpy.array([9, 4])
    return jax.jit(jax.grad(lambda params: last_token_scores(model, params, tokens, lengths).sum())).lower(
        params
    )


def _decoding(compute_dtype):
    model, params = decoding_model(Transformer(_config(compute_dtype))), unstack(tiny.params())
    state = start(model, params, [[1, 2, 3]], max_new_tokens=2, seeds=[0])
    return advance.lower(model, params, state, SamplingConfig(2).numbers, stop_ids=(), num_tokens=2)


PROGRAMS = {
    "training": lambda dtype: _training(dtype, length=LONG, loss_chunk=0),
    "training on short rows, loss in chunks": lambda dtype: _training(dtype, length=64, loss_chunk=32),
    "scoring": _scoring,
    "decoding": _decoding,
}


def _products(program, compute_dtype):
    """Of every product of a program: the dtype of its operands, and how exact it is."""
    lines = [
        line for line in PROGRAMS[program](compute_dtype).as_text().splitlines() if "dot_general" in line
    ]
    found = [
        (re.search(r"x([a-z]+\d+)>, tensor", line)[1], re.search(r"precision = \[(\w+), \1\]", line)[1])
        for line in lines
    ]
    assert len(found) > 10
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_float32_is_multiplied_exactly(program):
    assert set(_products(program, "float32")) == {("f32", "HIGHEST")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_bfloat16_is_multiplied_as_it_is_and_the_score_of_a_token_exactly(program):
    exact = {("f32", "HIGHEST")} if program == "scoring" else set()
    assert set(_products(program, "bfloat16")) == {("bf16", "DEFAULT")} | exact


def test_what_jax_is_told_holds():
    with jax.default_matmul_precision("high"):
        assert set(_products("training", "float32")) == {("f32", "HIGH")}
