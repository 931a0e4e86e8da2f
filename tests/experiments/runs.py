"""Small texts, configs, and one finished run of each stage that all tests of a session share."""

import atexit
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import pretrain as pretrain_configs
from configs import sft as sft_configs
from experiments import pretrain, sft
from llama2_jax.pretrained import LoadedModel, load

REPOSITORY = Path(__file__).parents[2]
DIALOGUES = REPOSITORY / "tests" / "dialogues.jsonl"
VOCABULARY = 340

NOUNS = ("model", "token", "river", "garden", "letter", "window", "number", "answer", "paper", "story")
VERBS = ("reads", "writes", "follows", "measures", "predicts", "forgets", "repeats", "opens", "finds")
QUALITIES = ("small", "quiet", "careful", "early", "simple", "heavy", "honest", "bright", "patient")
PLACES = ("in the morning", "near the station", "after the rain", "with great care", "for a friend")


def sentences(count: int, *, seed: int) -> str:
    """Plain English of a few words, the same for the same seed."""
    draw = random.Random(seed)
    return " ".join(
        f"The {draw.choice(QUALITIES)} {draw.choice(NOUNS)} {draw.choice(VERBS)} "
        f"{draw.choice((str(draw.randint(2, 99)), 'a', 'the'))} {draw.choice(NOUNS)} {draw.choice(PLACES)}."
        for _ in range(count)
    )


@functools.cache
def scratch() -> Path:
    """A folder of this session."""
    folder = Path(tempfile.mkdtemp(prefix="runs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def texts() -> Path:
    """``plain.jsonl``, ``facts.txt`` and ``heldout.txt``."""
    folder = scratch() / "texts"
    folder.mkdir()
    rows = [json.dumps({"text": sentences(8, seed=seed)}) for seed in range(24)]
    (folder / "plain.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "facts.txt").write_text(sentences(60, seed=1000).upper(), encoding="utf-8")
    (folder / "heldout.txt").write_text(sentences(20, seed=2000), encoding="utf-8")
    return folder


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """The config with leaves replaced, named by their paths."""
    config.update_from_flattened_dict(changes)
    return config


def pretrain_config(**changes: Any) -> ConfigDict:
    """The tiny variant on the texts above, of few steps; ``changes`` have ``__`` for the dot."""
    config = pretrain_configs.get_config("tiny")
    defaults = {
        "model.vocab_size": VOCABULARY,
        "mesh.preset": "single",
        "data.sources.main.path": str(texts() / "plain.jsonl"),
        "data.heldout": str(texts() / "heldout.txt"),
        "data.sequence_length": 64,
        "data.batch_size": 4,
        "train.num_steps": 20,
        "train.eval_every_steps": 10,
        "train.checkpoint_every_steps": 10,
        "train.peak_flops": 1e12,
        "eval.sample_tokens": 8,
    }
    return changed(config, defaults | {name.replace("__", "."): value for name, value in changes.items()})


def sft_config(init_from: Path, **changes: Any) -> ConfigDict:
    """The tiny variant from a pretrained workdir."""
    defaults = {
        "init_from": str(init_from),
        "mesh.preset": "single",
        "data.dialogues": str(DIALOGUES),
        "data.heldout": str(DIALOGUES),
        "data.epochs": 4.0,
        "train.checkpoint_every_steps": 10,
        "train.peak_flops": 1e12,
        "eval.sample_tokens": 8,
    }
    config = sft_configs.get_config("tiny")
    return changed(config, defaults | {name.replace("__", "."): value for name, value in changes.items()})


@functools.cache
def pretrained_workdir() -> Path:
    """A finished tiny pretraining run."""
    workdir = scratch() / "pretrained"
    pretrain.run(pretrain_config(), workdir)
    return workdir


@functools.cache
def fine_tuned_workdir() -> Path:
    """A finished tiny fine-tuning run from it."""
    workdir = scratch() / "fine_tuned"
    sft.run(sft_config(pretrained_workdir()), workdir)
    return workdir


@functools.cache
def chat_model() -> LoadedModel:
    """The fine-tuned model, loaded."""
    return load(fine_tuned_workdir())


def command(module: str, *arguments: str) -> list[str]:
    """How a person starts a program."""
    return [sys.executable, "-m", module, *arguments]


def run_program(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, from the repository as people do."""
    return subprocess.run(
        command(module, *arguments),
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def write_lines(path: Path, rows: list[Any]) -> Path:
    """A JSONL file; text items are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
