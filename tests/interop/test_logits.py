"""Our logits against those of ``transformers``: stored ones everywhere, live ones where it is installed."""

import dataclasses

import jax
import numpy as np
import pytest

from llama2_jax.interop.huggingface import load_huggingface, save_huggingface
from llama2_jax.model.transformer import Transformer
from tests.interop.make_goldens import GOLDEN, SEED, sample_tokens, transformers_logits
from tests.interop.models import SHAPES, assert_same_params, random_params, read_whole

TOLERANCE = 1e-4


def our_logits(config, params, tokens_BT) -> np.ndarray:
    apply = jax.jit(lambda params, tokens: Transformer(config).apply({"params": params}, tokens).logits_BTV)
    return np.asarray(apply(params, np.asarray(tokens_BT, np.int32)))


@pytest.mark.parametrize("shape", SHAPES)
def test_stored_logits(shape):
    config = SHAPES[shape]
    with np.load(GOLDEN) as golden:
        tokens, wanted = golden[f"{shape}/tokens"], golden[f"{shape}/logits"]
    assert wanted.std() > 0.5  # else the tolerance would prove nothing
    found = our_logits(config, random_params(config, seed=SEED), tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_ours_saved_and_loaded_by_transformers(tmp_path, shape):
    pytest.importorskip("transformers")
    config, tokens = SHAPES[shape], sample_tokens(SHAPES[shape])
    params = random_params(config, seed=SEED)
    save_huggingface(tmp_path / "m", config, params, tokenizer=None, max_shard_bytes=20_000)
    wanted = transformers_logits(tmp_path / "m", tokens)
    np.testing.assert_allclose(our_logits(config, params, tokens), wanted, rtol=0, atol=TOLERANCE)


def _foreign_model(folder, config, dtype):
    """A model that transformers makes, initialises (wider than its default) and saves itself."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.model_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.feed_forward_width,
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=0.2,
    )
    LlamaForCausalLM(settings).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="20KB")


@pytest.mark.parametrize("shape", SHAPES)
def test_theirs_loaded_by_us(tmp_path, shape):
    pytest.importorskip("transformers")
    config, tokens = SHAPES[shape], sample_tokens(SHAPES[shape])
    _foreign_model(tmp_path / "m", config, "float32")
    loaded = load_huggingface(tmp_path / "m")
    assert loaded.config == dataclasses.replace(config, init_stddev=0.2)
    wanted = transformers_logits(tmp_path / "m", tokens)
    assert wanted.std() > 0.5
    found = our_logits(loaded.config, read_whole(loaded.params), tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_theirs_through_us_and_back_is_bitwise(tmp_path, dtype):
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    _foreign_model(tmp_path / "theirs", SHAPES["gqa"], dtype)
    loaded = load_huggingface(tmp_path / "theirs")
    save_huggingface(tmp_path / "ours", loaded.config, read_whole(loaded.params), tokenizer=None)
    assert_same_params(load_huggingface(tmp_path / "ours").params, loaded.params, loaded.config)
    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("theirs", "ours")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert (tensor == after[name]).all(), name
