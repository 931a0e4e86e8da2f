"""A real instruct model: its header, and an answer that only the right weights can give."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.data.chat import Message, encode_prompt, get_template, stop_ids
from llama2_jax.model.config import ModelConfig, parameter_count
from llama2_jax.model.transformer import Transformer
from tools.fetch_assets import ASSETS

PATH = ASSETS["smollm2"].path
pytestmark = pytest.mark.skipif(not PATH.is_file(), reason=f"{PATH} is missing; fetch it with: make smollm2")


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf")
    from llama2_jax.interop.gguf import load_gguf

    return load_gguf(PATH)


def test_header(smollm2):
    assert smollm2.config == ModelConfig(
        vocab_size=49_152,
        model_width=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        feed_forward_width=1536,
        max_context=8192,
        norm_epsilon=1e-5,
        rope_base=100_000.0,
        tie_embeddings=True,
    )
    assert parameter_count(smollm2.config) == 134_515_008
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(smollm2.params)) == 134_515_008
    assert smollm2.template == "smollm2"
    assert smollm2.tokenizer.vocab_size == 49_152
    assert (smollm2.tokenizer.bos_id, smollm2.tokenizer.eos_id) == (1, 2)


def test_capital_of_france(smollm2):
    """Greedy, without a cache: the loop has nothing that could hide a mistake."""
    template, tokenizer = get_template(smollm2.template), smollm2.tokenizer
    prompt = encode_prompt([Message("user", "What is the capital of France?")], tokenizer, template)
    model = Transformer(smollm2.config)
    params = jax.tree.map(jnp.asarray, smollm2.params)

    @jax.jit
    def next_token(params, tokens_BT, last):
        return model.apply({"params": params}, tokens_BT).logits_BTV[0, last].argmax()

    tokens_BT = np.zeros((1, len(prompt) + 12), np.int32)
    tokens_BT[0, : len(prompt)] = prompt
    for length in range(len(prompt), tokens_BT.shape[1]):
        tokens_BT[0, length] = next_token(params, tokens_BT, length - 1)
        if tokens_BT[0, length] in stop_ids(tokenizer, template):
            break
    answer = tokenizer.decode(tokens_BT[0, len(prompt) : length])
    assert answer == "The capital of France is Paris."
