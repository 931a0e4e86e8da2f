import jax
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.model.config import (
    SIZES,
    ModelConfig,
    feed_forward_width,
    kv_cache_bytes_per_token,
    model_config,
    parameter_count,
)
from llama2_jax.model.transformer import abstract_params

# ARCH-8, and the toy sizes
PARAMETERS = {
    "nano": 164_160,
    "micro": 967_808,
    "mini": 5_278_976,
    "small": 110_119_680,
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
    "34b": 33_743_970_304,
    "70b": 68_976_648_192,
}
VALID = {
    "vocab_size": 16,
    "model_width": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "feed_forward_width": 8,
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_abstract_shapes_hold_the_parameters_of_the_paper(size):
    leaves = jax.tree.leaves(abstract_params(model_config(size)))
    assert sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in leaves) == PARAMETERS[size]
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    assert parameter_count(model_config(size)) == PARAMETERS[size]


def test_every_size_has_a_golden_count():
    assert set(SIZES) == set(PARAMETERS)


def test_tied_embeddings_are_counted_once():
    config = model_config("nano", tie_embeddings=True, head_dim=10)
    leaves = jax.tree.leaves(abstract_params(config))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == parameter_count(config)


@pytest.mark.parametrize(
    ("width", "multiple_of", "multiplier", "wanted"),
    [
        (4096, 256, None, 11_008),
        (5120, 256, None, 13_824),
        (8192, 4096, 1.3, 28_672),
        (8192, 256, None, 22_016),
        (8192, 256, 1.0, 22_016),
        (6656, 256, None, 17_920),
        (64, 32, None, 192),
        (128, 32, None, 352),
        (256, 32, None, 704),
        (768, 32, None, 2048),
    ],
)
def test_feed_forward_width_follows_the_reference_formula(width, multiple_of, multiplier, wanted):
    assert feed_forward_width(width, multiple_of=multiple_of, multiplier=multiplier) == wanted


@pytest.mark.parametrize(
    ("size", "wanted"), [("7b", 524_288), ("13b", 819_200), ("70b", 327_680), ("34b", 196_608)]
)
def test_kv_bytes_per_token(size, wanted):
    assert kv_cache_bytes_per_token(model_config(size)) == wanted


@pytest.mark.parametrize(("size", "heads"), [("7b", 32), ("13b", 40), ("34b", 64), ("70b", 64)])
def test_released_sizes_have_heads_of_128_and_context_4096(size, heads):
    config = model_config(size)
    assert (config.head_dim, config.num_heads, config.max_context) == (128, heads, 4096)
    assert (config.norm_epsilon, config.rope_base, config.vocab_size) == (1e-5, 10_000.0, 32_000)
    assert config.init_stddev == 0.02


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_base": 0.0}, ["model.rope_base = 0.0 must be positive"]),
        ({"norm_epsilon": -1e-5}, ["model.norm_epsilon = -1e-05 must be positive"]),
        ({"num_heads": 4, "num_kv_heads": 3}, ["num_heads = 4", "num_kv_heads = 3"]),
        ({"num_heads": 3, "num_kv_heads": 3}, ["model_width = 8", "num_heads = 3"]),
        ({"head_dim": 3}, ["head_dim = 3", "even"]),
        ({"remat_policy": "some"}, ["remat_policy", "'some'", "none", "full", "dots", "attention"]),
        ({"compute_dtype": "float16"}, ["compute_dtype", "'float16'", "float32", "bfloat16"]),
        ({"num_kv_heads": 0}, ["num_kv_heads = 0", "positive"]),
        ({"num_layers": 0}, ["num_layers = 0", "positive"]),
        ({"vocab_size": -1}, ["vocab_size = -1", "positive"]),
        ({"max_context": 0}, ["max_context = 0", "positive"]),
        ({"init_stddev": -1.0}, ["init_stddev = -1.0", "negative"]),
        ({"head_dim": -2}, ["head_dim = -2", "negative"]),
        ({"vocab_size": 512.0}, ["vocab_size = 512.0", "integer"]),
        ({"num_layers": True}, ["num_layers = True", "integer"]),
        ({"max_context": float("inf")}, ["max_context = inf", "integer"]),
    ],
)
def test_a_wrong_field_is_named_with_its_value(changes, words):
    with pytest.raises(ConfigError) as error:
        ModelConfig(**{**VALID, **changes})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_size_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'8b'.*'7b'.*'70b'"):
        model_config("8b")
