"""Ablations: equal budgets, counts and differences by hand, a run that is stopped, mistakes."""

import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.ablations import get_config
from experiments import ablation_results, ablations, ablations_report, pretrain
from experiments.ablation_readings import Losses, Reading, read_heldout, readings, stretch_sizes
from llama2_jax.config import ConfigError
from llama2_jax.data.corpus import TokenisedCorpus
from llama2_jax.generate.score import score
from llama2_jax.model.config import PAPER_SIZES, ModelConfig, parameter_count
from llama2_jax.pretrained import load
from tests.experiments import runs


def config_of(kind: str = "context", **changes: Any) -> ConfigDict:
    """Two variants of contexts 16 and 32, of a few updates."""
    folder = runs.scratch() / "ablation_texts"
    folder.mkdir(exist_ok=True)
    rows = [{"text": runs.sentences(count, seed=count)} for count in (1, 6, 7)]
    defaults = {
        "pretrain.data.sources.main.path": str(runs.texts() / "plain.jsonl"),
        "pretrain.data.heldout": str(runs.write_lines(folder / "heldout.jsonl", rows)),
        "pretrain.model.vocab_size": runs.VOCABULARY,
        "pretrain.model.model_width": 16,
        "pretrain.model.num_layers": 1,
        "pretrain.train.num_steps": 4,
        "pretrain.train.peak_flops": 1e12,
        "pretrain.train.log_every_steps": 1,
        "pretrain.eval.batch_size": 4,
        "batch_size": 4,
    }
    config = get_config(f"{kind},size=tiny")
    with config.unlocked():
        if kind == "context":
            config.baseline = "context_16"
            config.variants = ConfigDict(
                {
                    f"context_{length}": {
                        "model": {"max_context": length},
                        "data": {"sequence_length": length, "batch_size": 64 // length},
                    }
                    for length in (16, 32)
                }
            )
    return runs.changed(
        config, defaults | {name.replace("__", "."): value for name, value in changes.items()}
    )


@functools.cache
def finished() -> Path:
    workdir = runs.scratch() / "ablation"
    ablations.run(config_of(), workdir)
    return workdir


@pytest.mark.parametrize("kind", ["attention", "context"])
@pytest.mark.parametrize("size", [*PAPER_SIZES, "tiny"])
def test_all_variants_see_equally_many_tokens(kind: str, size: str) -> None:
    config = get_config(f"{kind},size={size}")
    variants = ablations.variant_configs(config)
    budgets = {ablation_results.num_tokens(variant) for variant in variants.values()}
    assert len(budgets) == 1
    if size != "tiny":
        assert budgets.pop() == pytest.approx(150e9, rel=1e-4)
        assert list(variants) == (
            ["MHA", "GQA", "MQA"] if kind == "attention" else ["context_2048", "context_4096"]
        )
    if kind == "context":
        whole, rows = config.pretrain.data.sequence_length, config.pretrain.data.batch_size
        half = variants.pop(f"context_{whole // 2}").data
        assert (half.sequence_length, half.batch_size) == (whole // 2, 2 * rows)
        assert variants.pop(f"context_{whole}").to_json() == config.pretrain.to_json()


def test_variants_differ_in_nothing_but_what_the_config_says() -> None:
    config = get_config("attention,size=34b")
    mha, mqa, gqa = (ablations.variant_config(config, name) for name in ("MHA", "MQA", "GQA"))
    shapes = [(one.model.num_kv_heads, one.model.feed_forward_width) for one in (mha, mqa, gqa)]
    assert shapes == [(64, 22_016), (1, 29_184), (8, 28_416)]
    mqa.unlock().model.update(num_kv_heads=64, feed_forward_width=22_016)
    assert mqa.to_json() == mha.to_json()


def test_tiny_attention_variants_are_of_like_size() -> None:
    config = get_config("attention,size=tiny")
    counts = {
        name: parameter_count(ModelConfig(**ablations.variant_config(config, name).model))
        for name in config.variants
    }
    # per layer 128 * 16 * 2 * (8 + kv) + 3 * 128 * F + 256; 4 of them, 128, and twice 2048 * 128
    assert counts["MHA"] == 4 * (65_536 + 132_096 + 256) + 128 + 524_288 == counts["MHA_again"]
    assert counts["MQA"] == 4 * (36_864 + 175_104 + 256) + 128 + 524_288
    assert counts["GQA"] == 4 * (40_960 + 172_032 + 256) + 128 + 524_288


def test_losses_are_those_of_single_documents() -> None:
    corpus = TokenisedCorpus.open(finished() / "corpus/heldout")
    assert len(corpus) == 3
    assert sum(corpus.lengths >= 32) == 2
    loaded = load(finished() / "variants/context_32")
    for name, window in (("context_32", 32), ("context_32_read_by_16", 16)):
        rows = runs.read_lines(finished() / f"heldout/{name}.jsonl")
        assert [row["tokens"] for row in rows] == [len(corpus[i]) - 1 for i in range(3)]
        beginnings = [corpus[index].tolist()[:window] for index in range(3)]
        scores = score(loaded.model, loaded.params, beginnings, batch_size=4)
        for tokens, whole, row in zip(
            [corpus[i] for i in range(3)], map(np.negative, scores), rows, strict=True
        ):
            assert len(tokens) > window or row["nats"] == pytest.approx(float(whole.sum()), rel=1e-5)
            if row["nats_by_position"] is None:
                assert len(tokens) < 32
            else:
                # 8 stretches of 4 positions; the first has no token without a token before it
                expected = [whole[:3].sum(), *(whole[low - 1 : low + 3].sum() for low in range(4, window, 4))]
                assert row["nats_by_position"][: window // 4] == pytest.approx(expected, rel=1e-5)


def test_results_are_differences_in_the_same_tokens() -> None:
    results = json.loads((finished() / "results.json").read_text())
    rows = {name: runs.read_lines(finished() / f"heldout/{name}.jsonl") for name in results["readings"]}
    assert list(rows) == ["context_16", "context_32", "context_32_read_by_16"]
    tokens = sum(row["tokens"] for row in rows["context_16"])
    means = {name: sum(row["nats"] for row in own) / tokens for name, own in rows.items()}
    for name, own in results["readings"].items():
        assert own["loss"]["value"] == pytest.approx(means[name])
        if own["difference"] is not None:
            assert own["difference"]["value"] == pytest.approx(means[name] - means["context_16"])
    long = {
        name: np.array([row["nats_by_position"] for row in own if row["nats_by_position"]])
        for name, own in rows.items()
    }
    positions = results["positions"]
    assert positions["edges"] == list(range(0, 33, 4))
    assert positions["loss"]["context_32"][0]["value"] == pytest.approx(long["context_32"][:, 0].sum() / 6)
    lost = (long["context_32_read_by_16"] - long["context_32"])[:, 4:].sum() / 32
    assert positions["farther"]["context_32_read_by_16"]["lost"]["value"] == pytest.approx(lost)


def test_report_shows_every_number() -> None:
    report = (finished() / "report.md").read_text()
    assert (finished() / "loss_by_position.png").stat().st_size > 10_000
    results = json.loads((finished() / "results.json").read_text())
    assert "trained on 256 tokens" in report
    for name, own in results["readings"].items():
        value = own["loss"]["value"]
        assert f"| {name} | {own['window']} | {value:.4f} [" in report
        assert f"| {math.exp(value):.2f} |" in report
    assert "model.max_context 16" in report
    assert "| 2k | 0.21 | 0.71 |" in report


def test_a_stopped_run_trains_and_reads_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    read = []

    def note(path: Path, *given: Any, **how: Any) -> None:
        read.append(path.stem)
        read_heldout(path, *given, **how)

    copy = shutil.copytree(finished(), tmp_path / "run")
    for name in ("DONE", "report.md", "results.json", "heldout/context_32.jsonl"):
        (copy / name).unlink()
    monkeypatch.setattr(pretrain, "run", never)
    monkeypatch.setattr(ablations, "read_heldout", note)
    ablations.run(config_of(), copy)
    assert read == ["context_32"]
    for name in ("report.md", "results.json", "heldout/context_32.jsonl", "stages.jsonl"):
        assert (copy / name).read_text() == (finished() / name).read_text()


def test_readings_by_hand() -> None:
    assert readings({"a": 8, "b": 8}) == {"a": Reading("a", 8), "b": Reading("b", 8)}
    assert readings({"a": 8, "b": 16}) == {
        "a": Reading("a", 8), "b": Reading("b", 16), "b_read_by_8": Reading("b", 8),
    }  # fmt: skip
    assert list(stretch_sizes(32)) == [3, 4, 4, 4, 4, 4, 4, 4]


def test_a_difference_is_told_from_its_interval() -> None:
    tokens = np.array([10, 10, 20])
    none = np.empty((0, 8))
    base = Losses(tokens, np.array([20.0, 24.0, 44.0]), none)
    better = Losses(tokens, base.nats_D - np.array([1.0, 1.2, 1.8]), none)
    unclear = Losses(tokens, base.nats_D + np.array([-3.0, 3.0, 0.4]), none)
    losses = {"a": base, "b": better, "c": unclear}
    found = ablation_results.compare(losses, {name: Reading(name, 8) for name in losses})
    # paired: -4 nats over 40 tokens, though the losses of documents differ by far more
    assert found["b"]["difference"].value == pytest.approx(-0.1)
    verdicts = [ablations_report._verdict(own["difference"], 0.05) for own in found.values()]
    assert verdicts == ["", "lower", "not told apart"]
    assert ablations_report._verdict(found["b"]["difference"], 0.2) == "no more than seeds"
    assert ablation_results.seed_repeats(get_config("attention,size=tiny")) == ["MHA_again"]
    assert ablation_results.seed_repeats(get_config("attention")) == []
    assert ablation_results.by_position(losses, {}, 16) is None


def test_what_farther_context_gave_is_of_whole_stretches_beyond_the_window() -> None:
    counts, nats = np.array([15, 15]), np.array([3.0, 3.0])
    whole = Losses(counts, nats, np.zeros((2, 8)))
    cut = Losses(counts, nats, np.array([np.arange(8.0), np.arange(8.0) + 2]))  # stretches of two tokens
    for window, beyond, lost in ((8, 8, (22 + 30) / 16), (9, 10, (18 + 24) / 12), (15, None, 0)):
        losses = {"b": whole, "b_read": cut}
        found = ablation_results.by_position(
            losses, {"b": Reading("b", 16), "b_read": Reading("b", window)}, 16
        )
        assert found is not None
        if beyond is None:
            assert found["farther"] == {}
        else:
            assert found["farther"]["b_read"]["beyond"] == beyond
            assert found["farther"]["b_read"]["lost"].value == pytest.approx(lost)


def test_fields_that_differ_may_be_of_any_type() -> None:
    shown = [ablations_report._shown(value) for value in (22_016, 3e-4, "bfloat16", True, None)]
    assert shown == ["22,016", "0.0003", "bfloat16", "True", "None"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain__data__heldout": ""}, "config.pretrain.data.heldout is empty"),
        ({"variants__context_16__data__batch_size": 3}, "equally many tokens, .* 192 of context_16, 256 of"),
        ({"variants__context_16__model__max_context": 8}, "data.sequence_length = 16 is beyond"),
        ({"variants__context_16__data": ConfigDict({"heldout": "x"})}, "variants share text and vocabulary"),
        ({"variants__context_16__model": ConfigDict({"heads": 2})}, "changes model.heads, which config"),
        (
            {"variants": ConfigDict({"context_16": {"model": {"num_layers": 1}}})},
            "has 1 variant",
        ),
        (
            {"baseline": "context_8"},
            "config.baseline is 'context_8'; choose one of 'context_16', 'context_32'",
        ),
        ({"batch_size": 0}, "config.batch_size = 0 must be positive"),
        ({"tasks": ("gsm8k",)}, "'gsm8k'; each must be TASK=SHOTS"),
        ({"tasks": ("gsm8k=8", "gsm8k=0")}, "names 'gsm8k' twice"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = config_of()
    with config.unlocked():
        for path, value in changes.items():
            *sections, field = path.split("__")
            functools.reduce(lambda one, name: one[name], sections, config)[field] = value
    with pytest.raises(ConfigError, match=message):
        ablations.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_of_which_nothing_could_be_said_is_refused_before_training(tmp_path: Path) -> None:
    config = config_of(pretrain__data__heldout=str(runs.texts() / "heldout.txt"))
    with pytest.raises(ConfigError, match="has 1 document"):
        ablations.run(config, tmp_path / "run")
    assert not (tmp_path / "run/variants").exists()


def test_unknown_kinds_and_sizes_are_listed() -> None:
    with pytest.raises(ConfigError, match="'norm'; choose one of 'attention', 'context'"):
        get_config("norm")
    with pytest.raises(ConfigError, match="'8b'; choose one of"):
        get_config("context,size=8b")


def test_results_of_tasks_stand_side_by_side(tmp_path: Path) -> None:
    for name, value in (("MHA", 0.25), ("GQA", 0.5)):
        folder = tmp_path / "benchmarks" / name / "piqa"
        folder.mkdir(parents=True)
        found = {
            "results": {"piqa": {"acc,none": value, "acc_stderr,none": 0.125}},
            "n-shot": {"piqa": 0},
            "n-metric": {"piqa": {"acc,none": 12}},
        }
        (folder / "results.json").write_text(json.dumps(found))
    lines = ablations_report._tasks(tmp_path, ["MHA", "GQA"], ["piqa"])
    assert "| task | shots | questions | metric | MHA | GQA |" in lines
    assert "| piqa | 0 | 12 | acc | 0.2500 ± 0.1250 | 0.5000 ± 0.1250 |" in lines
