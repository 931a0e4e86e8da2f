"""A policy that has learned nothing: random weights, a tokenizer of 340 pieces; ready in a second."""

import functools
from pathlib import Path

import jax

from llama2_jax.data.chat import LLAMA2, Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.data.tokenizer import train_sentencepiece
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.pretrained import LoadedModel, for_decoding
from llama2_jax.sharding.rules import single_device
from tests.experiments import runs


@functools.cache
def policy(seed: int = 0) -> LoadedModel:
    texts = [runs.sentences(8, seed=number) for number in range(24)]
    tokenizer = train_sentencepiece(texts, _folder() / "tokenizer.model", vocab_size=runs.VOCABULARY)
    config = ModelConfig(
        vocab_size=runs.VOCABULARY, model_width=32, num_layers=1, num_heads=2, num_kv_heads=2,
        feed_forward_width=48, max_context=128,
    )  # fmt: skip
    model = Transformer(config, single_device())
    params = init_params(model, jax.random.key(seed))
    return for_decoding(LoadedModel(config, params, tokenizer, LLAMA2, model, "a random model"))


def _folder() -> Path:
    folder = runs.scratch() / "small_policy"
    folder.mkdir(exist_ok=True)
    return folder


def prompt(number: int, text: str = "", *, is_safety: bool = False) -> Prompt:
    return Prompt(f"p{number}", (Message("user", text or f"Question {number}?"),), "facts", is_safety)
