import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments import pretrain
from llama2_jax.config import ConfigError
from llama2_jax.data import shards
from llama2_jax.data.corpus import TokenisedCorpus
from llama2_jax.data.records import DataError
from llama2_jax.data.shards import write_shards
from llama2_jax.data.tokenizer import load_tokenizer
from llama2_jax.evals.samples import read_samples
from llama2_jax.pretrained import load
from llama2_jax.train.checkpoint import read_meta
from llama2_jax.train.metrics import read_metrics
from tests.experiments import runs
from tests.train.tiny_run import assert_bitwise_equal, without_rates

KILLED_AT = 17
TWO_SOURCES = {
    "main": {"path": str(runs.texts() / "plain.jsonl"), "weight": 3.0},
    "facts": {"path": str(runs.texts() / "facts.txt"), "weight": 1.0},
}
# No log line before the kill, so that whatever survives of metrics.jsonl was put on disk for the checkpoint.
SETTINGS = {
    "train__log_every_steps": 1000,
    "train__checkpoint_every_steps": 5,
    "train__eval_every_steps": 0,
    "eval__sample_prompts": (),
}


def two_source_config(**changes: Any) -> Any:
    config = runs.pretrain_config(**SETTINGS, **changes)
    with config.unlocked():
        config.data.sources = TWO_SOURCES
    return config


CHILD = """
import json, os, signal, sys
from pathlib import Path
from experiments import pretrain
from llama2_jax.train.recorder import Recorder
from ml_collections import ConfigDict

config, workdir, name, step = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
add = Recorder.add

def add_and_die(self, number, metrics, **rest):
    add(self, number, metrics, **rest)
    if number == step:
        os.kill(os.getpid(), getattr(signal, name))

Recorder.add = add_and_die
pretrain.run(ConfigDict(config), workdir)
"""


def run_and_signal(config: Any, workdir: Path, name: str, step: int) -> subprocess.CompletedProcess[str]:
    """Pretrain in a process of its own that sends itself a signal during update ``step``."""
    plain = json.dumps(config.to_dict())
    return subprocess.run(
        [sys.executable, "-c", CHILD, plain, str(workdir), name, str(step)],
        cwd=runs.REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("two_sources")
    pretrain.run(two_source_config(), workdir)
    return workdir


def test_kill_9_then_start_again_equals_an_uninterrupted_run(two_sources: Path, tmp_path: Path) -> None:
    killed = run_and_signal(two_source_config(), tmp_path, "SIGKILL", KILLED_AT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "DONE").exists()
    step, _ = read_meta(tmp_path)
    assert 10 <= step < KILLED_AT
    survived = [line["step"] for line in without_rates(tmp_path) if "train/loss" in line]
    assert survived[:step] == list(range(1, step + 1))
    pretrain.run(two_source_config(), tmp_path)
    assert without_rates(tmp_path) == without_rates(two_sources)
    assert_bitwise_equal(load(tmp_path).params, load(two_sources).params)
    tokens = read_meta(tmp_path)[1]["source_tokens"]
    assert tokens == read_meta(two_sources)[1]["source_tokens"]
    assert set(tokens) == {"main", "facts"}


def test_tokens_follow_the_weights(two_sources: Path) -> None:
    tokens = read_meta(two_sources)[1]["source_tokens"]
    assert sum(tokens.values()) == read_metrics(two_sources)[-2]["train/tokens_seen"]
    # 80 rows drawn 3 to 1; the last row of a source is padded, hence the tolerance
    assert tokens["main"] / sum(tokens.values()) == pytest.approx(0.75, abs=0.03)


def test_sigterm_exits_with_75_and_says_how_to_continue(two_sources: Path, tmp_path: Path) -> None:
    stopped = run_and_signal(two_source_config(), tmp_path, "SIGTERM", 7)
    assert stopped.returncode == 75, stopped.stderr
    assert re.search(
        rf"stopped by SIGTERM after step \d+; start again in {tmp_path} to continue", stopped.stderr
    )
    assert read_meta(tmp_path)[0] in (7, 8)
    pretrain.run(two_source_config(), tmp_path)
    assert without_rates(tmp_path) == without_rates(two_sources)


def test_tiny_variant_leaves_every_artefact() -> None:
    workdir = runs.pretrained_workdir()
    for name in (
        "DONE",
        "config.json",
        "metrics.jsonl",
        "samples.jsonl",
        "report.md",
        "loss.png",
        "tokenizer",
    ):
        assert (workdir / name).exists(), name
    assert list((workdir / "tensorboard").iterdir())
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "20"]
    assert sorted(read_samples(workdir)) == [0, 10, 20]
    losses = [line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line]
    assert losses[-1] < losses[0] - 0.5
    evals = [line for line in read_metrics(workdir) if "eval/heldout/loss" in line]
    assert [line["step"] for line in evals] == [0, 10, 20]
    assert evals[-1]["eval/heldout/bits_per_byte"] < evals[0]["eval/heldout/bits_per_byte"]


def test_done_returns_at_once(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = runs.pretrained_workdir()  # made before, also where this test runs alone
    monkeypatch.setattr(pretrain, "open_tokenizer", lambda *_, **__: pytest.fail("it did more"))
    pretrain.run(runs.pretrain_config(), workdir)
    assert f"{workdir} is done" in capsys.readouterr().out


def test_changed_config_is_refused_with_the_list() -> None:
    config = runs.pretrain_config(optimizer__learning_rate=1.0, data__seed=5)
    before = (runs.pretrained_workdir() / "config.json").read_bytes()
    with pytest.raises(ConfigError) as refused:
        pretrain.run(config, runs.pretrained_workdir())
    assert "data.seed: 0 -> 5\n" in str(refused.value)
    assert "optimizer.learning_rate: 0.003 -> 1.0\n" in str(refused.value)
    assert "accept_changed_config" in str(refused.value)
    assert (runs.pretrained_workdir() / "config.json").read_bytes() == before


def test_changed_config_is_accepted_when_said_so(
    two_sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = two_source_config(train__num_steps=5)
    pretrain.run(stopped, tmp_path)
    (tmp_path / "DONE").unlink()
    longer = two_source_config(train__num_steps=8, accept_changed_config=True)
    with caplog.at_level(logging.WARNING):
        pretrain.run(longer, tmp_path)
    assert "continuing with changed config: train.num_steps: 5 -> 8" in caplog.text
    assert read_meta(tmp_path)[0] == 8
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 8


def test_mesh_may_change_in_the_middle(two_sources: Path, tmp_path: Path) -> None:
    assert run_and_signal(two_source_config(), tmp_path, "SIGTERM", 3).returncode == 75
    pretrain.run(two_source_config(mesh__preset="fsdp_tensor", mesh__fsdp=4, mesh__tensor=2), tmp_path)
    assert jax.device_count() == 8
    ours = [line["train/loss"] for line in read_metrics(tmp_path) if "train/loss" in line]
    theirs = [line["train/loss"] for line in read_metrics(two_sources) if "train/loss" in line]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_replaced_tokenizer_is_not_used_to_continue(tmp_path: Path) -> None:
    pretrain.run(two_source_config(train__num_steps=2), tmp_path)
    (tmp_path / "DONE").unlink()
    config = two_source_config(train__num_steps=2)
    other = runs.scratch() / "other_tokenizer"
    pretrain.open_tokenizer(
        runs.pretrain_config(data__sources__main__path=str(runs.texts() / "facts.txt")).data,
        other,
        vocab_size=runs.VOCABULARY,
    )
    model = tmp_path / "tokenizer" / "tokenizer.model"
    model.write_bytes((other / "tokenizer" / "tokenizer.model").read_bytes())
    with pytest.raises(ConfigError, match="from the same text with another tokenizer"):
        pretrain.run(config, tmp_path)
    with pytest.raises(ConfigError, match="is not the one the checkpoint of step 2 was trained with"):
        load(tmp_path)


def test_changed_text_is_not_used_to_continue(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(runs.sentences(60, seed=1), encoding="utf-8")
    tokenizer = str(runs.pretrained_workdir() / "tokenizer")
    config = runs.pretrain_config(
        data__sources__main__path=str(text), data__tokenizer=tokenizer, data__heldout="", train__num_steps=2
    )
    workdir = tmp_path / "run"
    pretrain.run(config, workdir)
    (workdir / "DONE").unlink()
    text.write_text(runs.sentences(61, seed=1), encoding="utf-8")
    before = contents(workdir)
    with pytest.raises(ConfigError, match=r"trained on another text than .*text\.txt holds now"):
        pretrain.run(config, workdir)
    assert contents(workdir) == before


def contents(workdir: Path) -> dict[Path, bytes]:
    """All files but the lock, which names the process that works there."""
    files = (path for path in workdir.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


def test_a_refused_start_leaves_the_workdir_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(**changes: Any) -> Any:
        return runs.pretrain_config(train__num_steps=2, eval__sample_prompts=(), **changes)

    pretrain.run(config(), tmp_path)
    (tmp_path / "DONE").unlink()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="batch_size = 4 is not divisible by 8"):
        pretrain.run(config(mesh__preset="fsdp", mesh__fsdp=8), tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(ConfigError, match="made with 4 rows or pairs per update, the config has 2"):
        pretrain.run(config(data__batch_size=2, accept_changed_config=True), tmp_path)
    assert contents(tmp_path) == before
    monkeypatch.setattr(shards, "FORMAT_VERSION", 0)  # of the shards of another version of this code
    with pytest.raises(ConfigError, match="or another version of this code; undo that change"):
        pretrain.run(config(), tmp_path)
    assert contents(tmp_path) == before


def test_tokenised_folders_behind_a_pattern_are_one_source_that_stays(tmp_path: Path) -> None:
    tokenizer = runs.pretrained_workdir() / "tokenizer"
    for number in (1, 2, 3):
        text = tmp_path / f"{number}.txt"
        text.write_text(runs.sentences(30, seed=number), encoding="utf-8")
        write_shards(text, tmp_path / "corpus" / f"part-{number}", tokenizer)
    (tmp_path / "corpus" / "part-3").rename(tmp_path / "later")
    config = runs.pretrain_config(
        data__sources__main__path=f"{tmp_path}/corpus/part-*", data__heldout="", train__num_steps=2
    )
    with pytest.raises(ConfigError, match=r"part-\* is tokenised already; set config.data.tokenizer"):
        pretrain.run(config, tmp_path / "run")
    config.data.tokenizer = str(tokenizer)
    pretrain.run(config, tmp_path / "run")
    first = read_meta(tmp_path / "run")[1]["corpora"]["main"]
    both = TokenisedCorpus.open(*(tmp_path / "corpus" / f"part-{number}" for number in (1, 2)))
    assert first == both.manifest["recipe"]
    (tmp_path / "run" / "DONE").unlink()
    (tmp_path / "later").rename(tmp_path / "corpus" / "part-3")
    config.train.num_steps = 3
    config.accept_changed_config = True
    pretrain.run(config, tmp_path / "run")  # asked for, it goes on with the third
    assert read_meta(tmp_path / "run")[1]["corpora"]["main"] != first
    config.accept_changed_config = False
    (tmp_path / "run" / "DONE").unlink()
    (tmp_path / "corpus" / "part-3").rename(tmp_path / "later")
    with pytest.raises(ConfigError, match=r"made with something else:\n  corpora\.main"):
        pretrain.run(config, tmp_path / "run")


def test_the_config_file_of_the_docs_mixes_sources(tmp_path: Path) -> None:
    page = (runs.REPOSITORY / "docs" / "pretraining.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_mixture.py").write_text(block, encoding="utf-8")
    given = [f"--config={tmp_path}/my_mixture.py:tiny", f"--workdir={tmp_path}/run"]
    result = runs.run_program("experiments.pretrain", *given, "--config.data.tokenizer=")
    assert "no file matches corpora/code;" in result.stderr
    text = str(runs.texts() / "plain.jsonl")
    names = ("web", "code", "encyclopaedia")
    paths = [f"--config.data.sources.{name}.path={text}" for name in names]
    settings = ("data.tokenizer=", f"data.heldout={text}", "train.num_steps=8", "model.vocab_size=300")
    settings_given = [f"--config.{setting}" for setting in settings]
    result = runs.run_program("experiments.pretrain", *given, *paths, *settings_given)
    assert "config.data.sources.code and config.data.heldout share plain.jsonl: " in result.stderr
    other = runs.write_lines(tmp_path / "heldout.jsonl", [{"text": "Held out."}])
    settings_given.append(f"--config.data.heldout={other}")
    result = runs.run_program("experiments.pretrain", *given, *paths, *settings_given)
    assert result.returncode == 0, result.stderr
    tokens = read_meta(tmp_path / "run")[1]["source_tokens"]
    assert tokens["web"] > tokens["code"] > tokens["encyclopaedia"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh__preset": "fsdp", "mesh__fsdp": 8}, "batch_size = 4 is not divisible by 8"),
        ({"train__accumulation_steps": 3}, "batch_size = 4 is not divisible by 3"),
        ({"data__sequence_length": 256}, "sequence_length = 256 is beyond the model's context 128"),
        ({"model__num_kv_heads": 3}, "num_heads = 4 is not a multiple of num_kv_heads = 3"),
        ({"data__sources__main__path": ""}, r"config\.data\.sources\.main\.path is empty"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain.run(runs.pretrain_config(**changes), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"config.json", ".lock"}


def test_loss_chunk_must_divide_the_row(tmp_path: Path) -> None:
    config = two_source_config(train__loss_chunk=48)
    with pytest.raises(ConfigError, match="loss_chunk = 48 does not divide the sequence length 64"):
        pretrain.run(config, tmp_path)


def test_another_tokenizer_in_the_config_does_not_replace_the_one_trained_with(tmp_path: Path) -> None:
    given = tmp_path / "given"
    load_tokenizer(runs.pretrained_workdir() / "tokenizer").save(given)
    text = str(runs.texts() / "facts.txt")
    changes = {"data__sources__main__path": text, "data__heldout": "", "train__num_steps": 2}
    config = runs.pretrain_config(data__tokenizer=str(given), **changes)
    workdir = tmp_path / "run"
    pretrain.run(config, workdir)
    (workdir / "DONE").unlink()
    kept = (workdir / "tokenizer" / "tokenizer.model").read_bytes()
    pretrain.open_tokenizer(
        runs.pretrain_config(**changes).data, tmp_path / "other", vocab_size=runs.VOCABULARY
    )
    load_tokenizer(tmp_path / "other" / "tokenizer").save(given)
    with pytest.raises(ConfigError, match="were made with tokenizer"):
        pretrain.run(config, workdir)
    assert (workdir / "tokenizer" / "tokenizer.model").read_bytes() == kept
    load(workdir)


def test_a_tokenizer_that_saw_dialogues_has_pieces_for_their_tags(tmp_path: Path) -> None:
    turns = [("Who are you?", "A model."), ("What is a token?", "A piece of text.")] * 100
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in turns
    ]
    dialogues = runs.write_lines(tmp_path / "dialogues.jsonl", rows)
    text = str(runs.texts() / "plain.jsonl")
    lengths = []
    for name, path in (("without", ""), ("with", str(dialogues))):
        config = runs.pretrain_config(data__sources__main__path=text, data__tokenizer_dialogues=path)
        tokenizer = pretrain.open_tokenizer(config.data, tmp_path / name, vocab_size=runs.VOCABULARY)
        lengths.append(len(tokenizer.encode("[INST] [/INST]")))
    assert lengths[1] <= 6 < lengths[0]
    given = runs.pretrain_config(
        data__tokenizer=str(tmp_path / "with/tokenizer"), data__tokenizer_dialogues=str(dialogues)
    )
    with pytest.raises(ConfigError, match="trained already, so nothing is learned"):
        pretrain.run(given, tmp_path / "both")


def test_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    tokenizer = str(runs.pretrained_workdir() / "tokenizer")
    config = runs.pretrain_config(data__tokenizer=tokenizer, model__vocab_size=512)
    with pytest.raises(ConfigError, match=r"tokenizer has 340 pieces but model.vocab_size is 512"):
        pretrain.run(config, tmp_path)


def test_corpus_made_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_shards(str(runs.texts() / "plain.jsonl"), corpus, runs.pretrained_workdir() / "tokenizer")
    data = runs.pretrain_config(data__sources__main__path=str(runs.texts() / "facts.txt")).data
    pretrain.open_tokenizer(data, tmp_path / "other", vocab_size=runs.VOCABULARY)
    config = runs.pretrain_config(
        data__sources__main__path=str(corpus), data__tokenizer=str(tmp_path / "other" / "tokenizer")
    )
    with pytest.raises(ConfigError, match="was made with tokenizer"):
        pretrain.run(config, tmp_path / "run")
    untold = runs.pretrain_config(data__sources__main__path=str(corpus))
    with pytest.raises(ConfigError, match=r"tokenised already; set config.data.tokenizer"):
        pretrain.run(untold, tmp_path / "untold")


def test_bad_line_names_file_and_line_or_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (runs.texts() / "plain.jsonl").read_text(encoding="utf-8").splitlines()
    path = runs.write_lines(tmp_path / "bad.jsonl", [*lines[:3], '{"text": 3}', *lines[3:]])
    tokenizer = str(runs.pretrained_workdir() / "tokenizer")
    settings = {"data__sources__main__path": str(path), "data__tokenizer": tokenizer, "train__num_steps": 1}
    with pytest.raises(DataError, match=rf"{path}, line 4: 'text' is int, not text"):
        pretrain.run(runs.pretrain_config(**settings), tmp_path / "error")
    with caplog.at_level(logging.WARNING):
        pretrain.run(runs.pretrain_config(**settings, data__on_bad_line="skip"), tmp_path / "skip")
    assert "1 bad record(s) skipped" in caplog.text
    manifest = json.loads((tmp_path / "skip" / "corpus" / "main" / "manifest.json").read_text())
    assert manifest["bad_lines"] == 1
