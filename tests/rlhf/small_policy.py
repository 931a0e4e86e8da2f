"""A policy and reward models that have learned nothing: random weights, ready in a second."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from llama2_jax.config import write_json
from llama2_jax.data.chat import LLAMA2, Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.data.tokenizer import train_sentencepiece
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.pretrained import LoadedModel, for_decoding, save_native
from llama2_jax.rlhf.reward_checkpoint import reward_model_meta
from llama2_jax.sharding.rules import single_device
from llama2_jax.train.checkpoint import write_params
from tests.experiments import runs


@functools.cache
def policy(seed: int = 0) -> LoadedModel:
    """As for decoding."""
    return for_decoding(stacked_policy(seed))


@functools.cache
def saved_policy(seed: int = 0) -> Path:
    """A checkpoint of it."""
    save_native(_folder() / f"policy_{seed}", stacked_policy(seed))
    return _folder() / f"policy_{seed}"


@functools.cache
def saved_reward_model(kind: str, seed: int = 0, *, template: str = "llama2", max_context: int = 128) -> Path:
    """A checkpoint whose scores depend on the row and are spread around 0."""
    base = stacked_policy()
    folder, tokenizer = _folder() / f"{kind}_{seed}_{template}_{max_context}", base.require_tokenizer()
    config = dataclasses.replace(base.config, max_context=max_context)
    model = ScoreModel(config, single_device())
    params = model.init(jax.random.key(seed), np.zeros((1, 1), np.int32))["params"]
    meta = reward_model_meta(config, tokenizer, template, kind=kind, margin="none", data=[f"seed {seed}"])
    write_params(folder, params, meta)
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "config.json", {})
    return folder


@functools.cache
def stacked_policy(seed: int = 0) -> LoadedModel:
    """As loaded."""
    texts = [runs.sentences(8, seed=number) for number in range(24)]
    tokenizer = train_sentencepiece(texts, _folder() / "tokenizer.model", vocab_size=runs.VOCABULARY)
    config = ModelConfig(
        vocab_size=runs.VOCABULARY, model_width=32, num_layers=1, num_heads=2, num_kv_heads=2,
        feed_forward_width=48, max_context=128,
    )  # fmt: skip
    model = Transformer(config, single_device())
    params = init_params(model, jax.random.key(seed))
    return LoadedModel(config, params, tokenizer, LLAMA2, model, "a random model")


def _folder() -> Path:
    folder = runs.scratch() / "small_policy"
    folder.mkdir(exist_ok=True)
    return folder


def prompt(number: int, text: str = "", *, is_safety: bool = False) -> Prompt:
    return Prompt(f"p{number}", (Message("user", text or f"Question {number}?"),), "facts", is_safety)
