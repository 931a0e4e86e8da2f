"""Supervised fine-tuning: dialogues to a chat model (Llama 2, section 3.1). See ``configs/sft.py``.

python -m experiments.sft --config=configs/sft.py:7b --workdir=DIR [--config.FIELD=VALUE ...]

Loss on the answers only, incl. the token that ends them (SFT-5); dialogues are packed by best
fit, so almost no row is padding.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from experiments.corpora import keep_tokenizer
from experiments.models import check_sequence_length, check_training, open_training_mesh
from experiments.training_report import write_stage_report
from llama2_jax.config import build, require, to_plain
from llama2_jax.data.chat import Message, encode_dialogue, encode_prompt, stop_ids
from llama2_jax.data.loader import DataSource, make_loader
from llama2_jax.data.packing import PackedDialogues
from llama2_jax.data.records import BadLines, split_paths
from llama2_jax.data.shards import hashes_of
from llama2_jax.data.sources import TrainingDialogue, read_dialogues
from llama2_jax.evals.heldout import heldout_loss
from llama2_jax.evals.samples import append_completions, complete
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch_experiment
from llama2_jax.pretrained import LoadedModel, checkpoint_meta, load, release_params
from llama2_jax.sharding.placement import process_slice
from llama2_jax.sharding.processes import require_agreement
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params
from llama2_jax.train.flops import peak_flops
from llama2_jax.train.loop import train
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.run import TrainConfig, TrainRun
from llama2_jax.train.step import next_token_loss
from llama2_jax.workdir import mark_done, open_workdir


def run(config: Any, workdir: Path) -> None:
    """Fine-tune ``config.init_from`` in ``workdir``; continues or returns at once if it is done."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    partitioner = open_training_mesh(config)
    base = load(config.init_from, partitioner=partitioner, template=config.template or None, **config.model)
    check_sequence_length(config, base.config.max_context)
    bad_lines = BadLines()
    rows = pack(read(config.data.dialogues, config, base, bad_lines), config, base)
    if rows.report.split_dialogues:
        logging.warning(
            "%d of %d dialogue(s) are longer than config.data.sequence_length = %d and are cut; %d piece(s) "
            "without an answer are left out",
            rows.report.split_dialogues, rows.report.dialogues, config.data.sequence_length,
            rows.report.dropped_pieces,
        )  # fmt: skip
    keep_tokenizer(base.require_tokenizer(), workdir)
    heldout = hashes_of(split_paths(config.data.heldout))
    require_agreement("held-out dialogues", heldout)
    base, start_params = release_params(base, workdir)
    train_run = make_train_run(config, workdir, partitioner, base, rows, initial_params=start_params)
    num_steps = config.train.num_steps or math.ceil(config.data.epochs * len(rows) / config.data.batch_size)
    epochs = num_steps * config.data.batch_size / len(rows)
    _warn_of_data(config, epochs, both=set(heldout) & set(train_run.meta["dialogues"]))
    train_config = build(TrainConfig, {**config.train, "num_steps": num_steps}, name="train")
    train(train_run, train_config, workdir)
    write_stage_report(
        workdir,
        title="Supervised fine-tuning",
        paper="section 3.1",
        notes=[
            f"every dialogue: seen {epochs:.2f} times",
            f"bad records left out: {bad_lines.count:,}",
        ]
        + [
            f"{name.replace('_', ' ')}: {value:,.6g}"
            for name, value in dataclasses.asdict(rows.report).items()
        ],
        num_devices=partitioner.mesh.size,
        peak=peak_flops(train_config.peak_flops),
    )
    mark_done(workdir)


def _warn_of_data(config: Any, epochs: float, both: Collection[str]) -> None:
    """Say what may not be meant: more epochs than asked for, files that are held out and trained on."""
    if not config.train.num_steps and epochs > 1.1 * config.data.epochs:
        logging.warning(
            "every dialogue is seen %.1f times, not config.data.epochs = %g, as a batch holds "
            "config.data.batch_size = %d rows; lower it",
            epochs, config.data.epochs, config.data.batch_size,
        )  # fmt: skip
    if both:
        logging.warning(
            "a file of config.data.heldout = %s is in config.data.dialogues too: its loss is that of what is "
            "trained on",
            config.data.heldout,
        )


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    require(bool(config.data.dialogues), "config.data.dialogues is empty; name the files to learn from")
    require(bool(config.init_from), "config.init_from is empty; name the checkpoint to fine-tune")
    epochs, num_steps = config.data.epochs, config.train.num_steps
    require(num_steps >= 0, f"train.num_steps = {num_steps} must not be negative; 0 follows data.epochs")
    require(num_steps > 0 or epochs > 0, f"data.epochs = {epochs} must be positive, or set train.num_steps")
    check_training(config, num_steps=num_steps or 1)  # 0: the dialogues say how many


def make_train_run(
    config: Any,
    workdir: Path,
    partitioner: Partitioner,
    base: LoadedModel,
    rows: PackedDialogues,
    *,
    initial_params: Callable[[], Params],
) -> TrainRun:
    """The loss on the answers, in rows drawn in another order every epoch."""
    loader = make_loader(
        [DataSource("dialogues", 1.0, rows)],
        batch_size=config.data.batch_size,
        seed=config.data.seed,
        **process_slice(partitioner),
    )
    return TrainRun(
        name="sft",
        model=base.model,
        loss=next_token_loss(base.model, loss_chunk=config.train.loss_chunk),
        optimizer=build(OptimizerConfig, config.optimizer, name="optimizer"),
        partitioner=partitioner,
        batch_size=config.data.batch_size,
        items_per_step=config.data.batch_size,
        sequence_length=config.data.sequence_length,
        batches=loader.iterate,
        source_names=("dialogues",),
        meta={
            **checkpoint_meta(base.config, base.require_tokenizer(), base.template.name),
            "dialogues": hashes_of(split_paths(config.data.dialogues)),
        },
        initial_params=initial_params,
        config=to_plain(config),
        accept_changed_config=config.accept_changed_config,
        evaluate=make_evaluation(config, workdir, base),
    )


def pack(dialogues: Iterable[TrainingDialogue], config: Any, base: LoadedModel) -> PackedDialogues:
    """Encode and pack dialogues."""
    tokenizer = base.require_tokenizer()
    return PackedDialogues(
        (
            encode_dialogue(dialogue.messages, tokenizer, base.template, train_on=dialogue.train_on)
            for dialogue in dialogues
        ),
        sequence_length=config.data.sequence_length,
        document_mask=config.data.document_mask,
    )


def read(
    paths: str, config: Any, base: LoadedModel, bad_lines: BadLines | None = None
) -> list[TrainingDialogue]:
    """The dialogues of files, checked against the template."""
    return list(
        read_dialogues(
            split_paths(paths),
            template=base.template,
            train_on=config.data.train_on,
            on_bad_line=config.data.on_bad_line,
            bad_lines=bad_lines,
        )
    )


def answer_bytes(dialogues: Sequence[TrainingDialogue]) -> int:
    """UTF-8 bytes of the answers that count in the loss."""
    total = 0
    for messages, train_on in dialogues:
        answers = [message.content.strip() for message in messages if message.role == "assistant"]
        total += sum(len(text.encode()) for text in (answers if train_on == "all" else answers[-1:]))
    return total


def make_evaluation(
    config: Any, workdir: Path, base: LoadedModel
) -> Callable[[int, Params], dict[str, float]]:
    """Held-out loss on answer tokens, and answers to the configured user messages."""
    tokenizer = base.require_tokenizer()
    template = base.template
    sampling = SamplingConfig(max_new_tokens=config.eval.sample_tokens, temperature=0.6, top_p=0.9)
    prompts = list(config.eval.sample_prompts)
    dialogues = read(config.data.heldout, config, base) if config.data.heldout else []
    heldout = pack(dialogues, config, base) if dialogues else None
    num_bytes = answer_bytes(dialogues)

    def evaluate(step: int, params: Params) -> dict[str, float]:
        if prompts:
            ids = [encode_prompt([Message("user", prompt)], tokenizer, template) for prompt in prompts]
            texts = complete(
                base.model, params, ids, tokenizer, sampling, stop_ids=stop_ids(tokenizer, template)
            )
            append_completions(workdir, step, prompts, texts)
        if heldout is None:
            return {}
        return heldout_loss(
            base.model,
            params,
            heldout,
            num_bytes=num_bytes,
            batch_size=config.eval.batch_size,
            loss_chunk=config.train.loss_chunk,
        )

    return evaluate


if __name__ == "__main__":
    launch_experiment(run)
