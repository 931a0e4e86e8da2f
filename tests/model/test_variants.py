import pytest

from llama2_jax.config import ConfigError
from llama2_jax.model.config import model_config, parameter_count
from llama2_jax.model.transformer import abstract_params
from llama2_jax.model.variants import attention_variants


def test_variants_of_the_34b_shape_by_hand() -> None:
    found = attention_variants(model_width=8192, num_heads=64)
    # int(8 * 8192 / 3) = 21845; times 1.33 and 1.3: 29053 and 28398; then up to multiples of 256
    assert found == {
        "MHA": {"num_kv_heads": 64, "feed_forward_width": 22_016},
        "MQA": {"num_kv_heads": 1, "feed_forward_width": 29_184},
        "GQA": {"num_kv_heads": 8, "feed_forward_width": 28_416},
    }
    # per layer D * 128 * 2 * (64 + kv) + 3 * D * F + 2 D; 48 of them, the last norm, two embeddings of 32,000
    counts = {
        "MHA": 48 * (268_435_456 + 541_065_216 + 16_384) + 8192 + 524_288_000,
        "MQA": 48 * (136_314_880 + 717_225_984 + 16_384) + 8192 + 524_288_000,
        "GQA": 48 * (150_994_944 + 698_351_616 + 16_384) + 8192 + 524_288_000,
    }
    assert {name: parameter_count(model_config("34b", **one)) for name, one in found.items()} == counts
    assert counts["MHA"] == 39_381_114_880
    for name in ("MQA", "GQA"):
        assert 1.04 < counts[name] / counts["MHA"] < 1.06


def test_the_factor_is_that_of_the_released_70b() -> None:
    (gqa,) = [attention_variants(model_width=8192, num_heads=64, multiple_of=4096)["GQA"]]
    assert model_config("70b", **gqa) == model_config("70b")


def test_counts_are_those_of_the_shapes() -> None:
    for changes in attention_variants(
        model_width=64, num_heads=4, grouped_kv_heads=2, multiple_of=8
    ).values():
        config = model_config("nano", **changes)
        leaves = [leaf.size for leaf in _leaves(abstract_params(config))]
        assert sum(leaves) == parameter_count(config)


def _leaves(tree: object) -> list:
    return [tree] if not isinstance(tree, dict) else [leaf for own in tree.values() for leaf in _leaves(own)]


@pytest.mark.parametrize("kv_heads", [1, 3, 64, 128])
def test_groups_that_are_none_are_refused(kv_heads: int) -> None:
    with pytest.raises(ConfigError, match=f"GQA with {kv_heads} key/value heads of 64 heads"):
        attention_variants(model_width=8192, num_heads=64, grouped_kv_heads=kv_heads)
