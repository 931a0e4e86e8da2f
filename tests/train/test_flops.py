from types import SimpleNamespace

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.model.config import model_config
from llama2_jax.train import flops
from llama2_jax.train.flops import flops_per_token, mfu, peak_flops

# GFLOP per token at 4096 tokens of context, from published logs and papers, to two decimals
GOLDENS = {
    "7b": {"full_no_embed": 46.09, "causal_no_embed": 42.87, "full": 46.87},
    "13b": {"full_no_embed": 87.18, "causal_no_embed": 82.15, "full": 88.16},
    "34b": {"full_no_embed": 220.22, "causal_no_embed": 210.55, "full": 221.79},
    "70b": {"full_no_embed": 444.50, "causal_no_embed": 428.39, "full": 446.07},
}


@pytest.mark.parametrize("size", GOLDENS)
def test_flops_per_token_of_the_papers_sizes(size):
    for convention, wanted in GOLDENS[size].items():
        found = flops_per_token(model_config(size), 4096, convention=convention) / 1e9
        assert found == pytest.approx(wanted, abs=0.0051), convention


def test_a_score_costs_no_product_with_the_vocabulary():
    config = model_config("7b")
    for convention in GOLDENS["7b"]:
        logits = flops_per_token(config, 4096, convention=convention)
        score = flops_per_token(config, 4096, convention=convention, num_outputs=1)
        assert logits - score == 6 * (32_000 - 1) * 4096


@pytest.mark.parametrize(
    ("size", "flops_per_sec", "tokens_per_sec", "convention"),
    [
        ("7b", 503.384e12, 10_922.973, "full_no_embed"),  # MaxText, H100
        ("70b", 460.480e12, 1_035.970, "full_no_embed"),  # MaxText, H100
        ("70b", 402.274e12, 905.021, "full_no_embed"),  # MaxText, Trillium
        ("7b", 46.06e9, 1, "full_no_embed"),  # NeMo
        ("13b", 87.21e9, 1, "full_no_embed"),
        ("70b", 444.44e9, 1, "full_no_embed"),
        ("13b", 88.17e9, 1, "full"),  # torchtitan
        ("70b", 446.35e9, 1, "full"),
    ],
)
def test_published_log_lines_are_met_within_a_thousandth(size, flops_per_sec, tokens_per_sec, convention):
    found = flops_per_token(model_config(size), 4096, convention=convention)
    assert found == pytest.approx(flops_per_sec / tokens_per_sec, rel=1e-3)


def test_nano_by_hand():
    # N = 164,160; V D = 512 * 64; attention 12 * 2 layers * 100 tokens * 64
    config = model_config("nano")
    assert flops_per_token(config, 100, convention="full") == 6 * 164_160 + 153_600
    assert flops_per_token(config, 100, convention="full_no_embed") == 6 * (164_160 - 32_768) + 153_600
    assert flops_per_token(config, 100, convention="causal_no_embed") == 6 * (164_160 - 32_768) + 76_800


def test_a_tied_table_counts_as_the_output_projection():
    tied = model_config("nano", tie_embeddings=True)
    assert flops_per_token(tied, 100, convention="full_no_embed") == 6 * (164_160 - 32_768) + 153_600


def test_a_tied_table_of_a_score_model_is_looked_up_and_the_head_is_one_column():
    tied = model_config("nano", tie_embeddings=True)
    head = 64 - 32_768  # one column instead of the vocabulary
    found = flops_per_token(tied, 100, convention="full", num_outputs=1)
    assert found == 6 * (164_160 + head) + 153_600  # as untied: V D of the look-up, and the head
    found = flops_per_token(tied, 100, convention="full_no_embed", num_outputs=1)
    assert found == 6 * (164_160 - 32_768 + head) + 153_600


def test_unknown_convention_lists_the_known():
    with pytest.raises(ConfigError, match=r"'half'.*full_no_embed.*causal_no_embed"):
        flops_per_token(model_config("nano"), 8, convention="half")


def test_mfu_is_the_share_of_the_peak():
    # MaxText 7B on one H100: 10,922.973 tokens/s, 50.9 % full and 47.3 % causal
    config = model_config("7b")
    full = flops_per_token(config, 4096, convention="full_no_embed")
    causal = flops_per_token(config, 4096, convention="causal_no_embed")
    assert mfu(10_922.973, full, num_devices=1, peak_flops=989e12) == pytest.approx(0.509, abs=5e-4)
    assert mfu(10_922.973, causal, num_devices=1, peak_flops=989e12) == pytest.approx(0.4735, abs=5e-4)
    assert mfu(8 * 10_922.973, full, num_devices=8, peak_flops=989e12) == pytest.approx(0.509, abs=5e-4)


def test_an_accelerator_without_a_data_sheet_is_measured_in_bfloat16(monkeypatch):
    asked = []
    monkeypatch.setattr(flops.jax, "devices", lambda: [SimpleNamespace(device_kind="New", platform="gpu")])
    monkeypatch.setattr(flops, "measured_matrix_rate", lambda **given: asked.append(given) or 1.0)
    assert peak_flops() == (1.0, "measured bfloat16 matrix product, New")
    assert asked == [{"size": 8192, "dtype": "bfloat16"}]


def test_a_given_peak_wins_and_a_cpu_is_measured():
    assert peak_flops(1e12) == (1e12, "config")
    rate, source = peak_flops()
    assert "measured" in source
    assert 1e8 < rate < 1e15
