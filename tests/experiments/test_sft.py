import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import sft
from experiments.sft import pack, read
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, Message, encode_dialogue
from llama2_jax.data.loader import single_pass
from llama2_jax.data.packing import PackedDialogues
from llama2_jax.data.records import DataError
from llama2_jax.data.sources import TrainingDialogue
from llama2_jax.evals.samples import read_samples
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.structs import TokenBatch
from llama2_jax.train.metrics import read_metrics
from llama2_jax.train.recorder import Recorder
from llama2_jax.train.step import loss_sums
from llama2_jax.train.stopping import Preempted
from tests.experiments import runs
from tests.train.tiny_run import assert_bitwise_equal, partitioner, without_rates

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def packed(paths: str, config: ConfigDict, base: LoadedModel) -> PackedDialogues:
    return pack(read(paths, config, base), config, base)


def test_tiny_variant_leaves_every_artefact_and_learns() -> None:
    workdir = runs.fine_tuned_workdir()
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
    evals = [line["eval/heldout/loss"] for line in read_metrics(workdir) if "eval/heldout/loss" in line]
    assert len(evals) == 2
    assert evals[-1] < evals[0] - 0.5
    assert all("What is a token?" in answers for answers in read_samples(workdir).values())


def test_report_says_how_often_dialogues_are_seen() -> None:
    report = (runs.fine_tuned_workdir() / "report.md").read_text(encoding="utf-8")
    assert re.search(r"every dialogue: seen \d+\.\d\d times", report)
    assert "bad records left out: 0" in report


def test_more_epochs_than_asked_for_and_known_dialogues_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = runs.write_lines(tmp_path / "few.jsonl", [GOOD])
    changes = {"data__dialogues": str(path), "data__heldout": str(path), "data__epochs": 2.0}
    config = runs.sft_config(runs.pretrained_workdir(), train__num_steps=0, data__batch_size=8, **changes)
    sft.run(config, tmp_path / "run")
    assert "every dialogue is seen 8.0 times, not config.data.epochs = 2" in caplog.text
    assert "is in config.data.dialogues too" in caplog.text


def test_fine_tuning_starts_from_the_given_parameters() -> None:
    first = next(line for line in read_metrics(runs.fine_tuned_workdir()) if "eval/heldout/loss" in line)
    base = load(runs.pretrained_workdir())
    rows = packed(str(runs.DIALOGUES), runs.sft_config(runs.pretrained_workdir()), base)
    sums = [loss_sums(base.model, base.params, batch) for batch in single_pass(rows, batch_size=4)]
    expected = sum(float(s.loss_sum) for s in sums) / sum(float(s.weight) for s in sums)
    assert first["eval/heldout/loss"] == pytest.approx(expected, abs=1e-5)


def test_resumed_after_sigterm_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Recorder.add

    def add_and_stop(self: Recorder, step: int, *rest: object, **named: object) -> None:
        add(self, step, *rest, **named)  # type: ignore[arg-type]
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    config = runs.sft_config(runs.pretrained_workdir())
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "add", add_and_stop)
        with pytest.raises(Preempted) as stopped:
            sft.run(config, tmp_path)
    assert stopped.value.step == 7
    assert not (tmp_path / "DONE").exists()
    sft.run(config, tmp_path)
    assert without_rates(tmp_path) == without_rates(runs.fine_tuned_workdir())
    assert_bitwise_equal(load(tmp_path).params, load(runs.fine_tuned_workdir()).params)


@pytest.mark.parametrize(("named", "wanted"), [("", None), ("chatml", "chatml")])
def test_the_template_is_the_checkpoints_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, wanted: str | None
) -> None:
    def loading(path: str, *, template: str | None, **_: object) -> LoadedModel:
        raise ConfigError(f"template {template}")

    monkeypatch.setattr(sft, "load", loading)
    with pytest.raises(ConfigError, match=f"template {wanted}"):
        sft.run(runs.sft_config(runs.pretrained_workdir(), template=named), tmp_path)
    assert runs.sft_config(runs.pretrained_workdir()).template == ""


def test_a_run_killed_while_it_wrote_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    config = runs.sft_config(runs.pretrained_workdir(), data__heldout="", train__num_steps=1)
    sft.run(config, tmp_path)
    assert read_metrics(tmp_path)[-1]["step"] == 1


def first_batch() -> TokenBatch:
    base = load(runs.pretrained_workdir())
    rows = packed(str(runs.DIALOGUES), runs.sft_config(runs.pretrained_workdir()), base)
    return next(single_pass(rows, batch_size=4))


def test_only_targets_in_answers_count() -> None:
    base, batch = load(runs.pretrained_workdir()), first_batch()
    prompts = (batch.loss_mask_BT == 0) & (batch.segment_ids_BT != 0)
    assert prompts.any()
    other = np.where(prompts, (batch.targets_BT + 1) % runs.VOCABULARY, batch.targets_BT)
    clean, corrupted = (
        loss_sums(base.model, base.params, b) for b in (batch, batch._replace(targets_BT=other))
    )
    assert_bitwise_equal(clean, corrupted)
    answers = np.where(batch.loss_mask_BT > 0, (batch.targets_BT + 1) % runs.VOCABULARY, batch.targets_BT)
    changed = loss_sums(base.model, base.params, batch._replace(targets_BT=answers))
    assert float(changed.loss_sum) != float(clean.loss_sum)


def test_counted_targets_are_the_answers_and_their_ends() -> None:
    base, batch = load(runs.pretrained_workdir()), first_batch()
    tokenizer = base.require_tokenizer()
    counted = batch.targets_BT[batch.loss_mask_BT > 0]
    assert (counted == tokenizer.eos_id).sum() > 0
    text = tokenizer.decode([int(token) for token in counted])
    assert "INST" not in text
    assert "What is" not in text


def test_gradient_of_prompt_targets_is_zero() -> None:
    base, batch = load(runs.pretrained_workdir()), first_batch()
    empty = batch._replace(loss_mask_BT=np.zeros_like(batch.loss_mask_BT))
    gradient = jax.grad(lambda params: loss_sums(base.model, params, empty).loss_sum)(base.params)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "malformed JSON"),
        ({"text": "x"}, "key 'messages' is missing"),
        ({"messages": GOOD["messages"][:1]}, "last message must be from the assistant"),
        ({"messages": GOOD["messages"][::-1]}, "roles are assistant, user"),
        (
            {"messages": [{"role": "user", "content": "[INST]"}, GOOD["messages"][1]]},
            "special tags are not allowed",
        ),
        ({"messages": [GOOD["messages"][0], {"role": "assistant", "content": " "}]}, "are empty"),
    ],
)
def test_bad_dialogue_names_file_line_and_reason(tmp_path: Path, bad: object, reason: str) -> None:
    path = runs.write_lines(tmp_path / "dialogues.jsonl", [GOOD, bad])
    config = runs.sft_config(runs.pretrained_workdir(), data__dialogues=str(path))
    with pytest.raises(DataError, match=rf"{path}, line 2: .*{reason}"):
        sft.run(config, tmp_path / "run")


def test_bad_dialogues_are_counted_when_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = runs.write_lines(tmp_path / "dialogues.jsonl", [GOOD, "{", GOOD, {"messages": []}])
    config = runs.sft_config(runs.pretrained_workdir(), data__on_bad_line="skip")
    rows = packed(str(path), config, load(runs.pretrained_workdir()))
    assert rows.report.dialogues == 2
    assert "2 bad record(s) skipped" in caplog.text
    assert f"{path}, line 4" in caplog.text


def test_rows_say_what_is_learned_of_them(tmp_path: Path) -> None:
    base = load(runs.pretrained_workdir())
    long = {"messages": GOOD["messages"] * 2}
    files = [
        runs.write_lines(tmp_path / "a.jsonl", [long | {"train_on": "last"}]),
        runs.write_lines(tmp_path / "b.jsonl", [long]),
    ]
    config = runs.sft_config(runs.pretrained_workdir())
    last, every = (packed(str(path), config, base).report for path in files)
    assert every.learned_tokens == 2 * last.learned_tokens
    both = packed(f"{files[0]}, {tmp_path}/b*.jsonl", config, base).report
    assert both.dialogues == 2
    assert both.learned_tokens == 3 * last.learned_tokens
    config = runs.sft_config(runs.pretrained_workdir(), data__train_on="last")  # of rows that do not say
    assert packed(str(files[1]), config, base).report.learned_tokens == last.learned_tokens


def test_bytes_are_those_of_the_answers_that_count() -> None:
    messages = [Message(*one) for one in (("user", "Two?"), ("assistant", "2"), ("user", "Four?"))]
    messages.append(Message("assistant", "été "))  # two of its letters are two bytes each
    assert sft.answer_bytes([TrainingDialogue(messages, "all")] * 2) == 2 * (1 + 5)
    assert sft.answer_bytes([TrainingDialogue(messages, "last")]) == 5


@pytest.mark.parametrize("document_mask", [False, True])
def test_dialogues_of_a_row_see_each_other_unless_the_config_says_otherwise(
    tmp_path: Path, document_mask: bool
) -> None:
    path = runs.write_lines(tmp_path / "dialogues.jsonl", [GOOD] * 2)
    config = runs.sft_config(runs.pretrained_workdir(), data__document_mask=document_mask)
    rows = packed(str(path), config, load(runs.pretrained_workdir()))
    assert len(rows) == 1
    assert rows[0]["segment_ids"].max() == (2 if document_mask else 1)


def test_the_order_depends_on_the_seed_of_the_config(tmp_path: Path) -> None:
    base = load(runs.pretrained_workdir())

    def first_tokens(seed: int) -> np.ndarray:
        config = runs.sft_config(runs.pretrained_workdir(), data__seed=seed, data__heldout="")
        rows = packed(str(runs.DIALOGUES), config, base)
        run = sft.make_train_run(config, tmp_path, partitioner(), base, rows, initial_params=dict)
        return next(run.batches(0)).tokens_BT

    np.testing.assert_array_equal(first_tokens(1), first_tokens(1))
    assert not np.array_equal(first_tokens(1), first_tokens(2))


def test_the_number_of_updates_can_be_given(tmp_path: Path) -> None:
    quick = {"data__heldout": "", "eval__sample_prompts": ()}
    config = runs.sft_config(runs.pretrained_workdir(), train__num_steps=3, **quick)
    sft.run(config, tmp_path)
    assert read_metrics(tmp_path)[-1]["step"] == 3
    for num_steps, epochs, reason in ((-1, 1.0, "train.num_steps = -1"), (0, 0.0, "data.epochs = 0.0")):
        config = runs.sft_config(
            runs.pretrained_workdir(), train__num_steps=num_steps, data__epochs=epochs, **quick
        )
        with pytest.raises(ConfigError, match=reason):
            sft.run(config, tmp_path / "run")


def test_no_dialogues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.data.dialogues is empty"):
        sft.run(runs.sft_config(runs.pretrained_workdir(), data__dialogues=""), tmp_path)


def test_dialogues_without_anything_to_learn_are_refused(tmp_path: Path) -> None:
    base = load(runs.pretrained_workdir())
    question = Message("user", "word " * 200)
    encoded = encode_dialogue([question, Message("assistant", "Yes.")], base.require_tokenizer(), LLAMA2)
    silent = encoded._replace(loss_mask=[0] * len(encoded.tokens))
    with pytest.raises(DataError, match=r"loss mask is zero in all of 1 dialogue"):
        sft.PackedDialogues([silent], sequence_length=64, document_mask=False)


def test_changed_dialogues_are_not_used_to_continue(tmp_path: Path) -> None:
    path = runs.write_lines(tmp_path / "dialogues.jsonl", [GOOD] * 3)
    config = runs.sft_config(
        runs.pretrained_workdir(), data__dialogues=str(path), data__heldout="", eval__sample_prompts=()
    )
    sft.run(config, tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    runs.write_lines(path, [GOOD] * 4)
    with pytest.raises(ConfigError, match="dialogues: "):
        sft.run(config, tmp_path / "run")


def test_row_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    config = runs.sft_config(runs.pretrained_workdir(), data__sequence_length=256)
    with pytest.raises(ConfigError, match="sequence_length = 256 is beyond the model's context 128"):
        sft.run(config, tmp_path)


def test_empty_init_from_is_refused(tmp_path: Path) -> None:
    config = runs.sft_config(runs.pretrained_workdir())
    config.init_from = ""
    with pytest.raises(ConfigError, match=r"config.init_from is empty"):
        sft.run(config, tmp_path)
