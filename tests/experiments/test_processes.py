"""Two processes with two devices each do what one process does with four."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2_jax.train.stopping import EXIT_PREEMPTED
from tests.experiments import runs, test_ppo, test_rejection_sampling, test_reward_model
from tests.rlhf.small_policy import saved_policy
from tests.train.tiny_run import without_rates

MESH = {"mesh__preset": "fsdp"}
SPLIT_ROWS = {"mesh__preset": "fsdp_tensor", "mesh__fsdp": 1, "mesh__tensor": 2, "mesh__sequence": 2}
STOPPED_AT = 7

# Runs programs one after another; the flags of the processes come after the first argument.
CHILD = """
import importlib, json, os, signal, sys
from pathlib import Path
import jax
from ml_collections import ConfigDict
from llama2_jax.launch import launch
from llama2_jax.train.recorder import Recorder

work = json.loads(sys.argv.pop(1))
add = Recorder.add

def add_and_signal(self, number, metrics, **rest):
    add(self, number, metrics, **rest)
    if number == work["stop_at"] and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)

def main():
    Recorder.add = add_and_signal
    if work["folders"]:
        sys.path.insert(0, os.getcwd())
        os.chdir(work["folders"][jax.process_index()])
    for name, config, workdir in work["runs"]:
        importlib.import_module(f"experiments.{name}").run(ConfigDict(config), Path(workdir))

launch(main, several_processes=True)
"""


def pretrain_config(**changes: Any) -> Any:
    return runs.pretrain_config(
        **MESH, train__num_steps=12, train__checkpoint_every_steps=6, train__eval_every_steps=6, **changes
    )


def stages(folder: Path) -> list[tuple[str, Any]]:
    """A program of every kind: what trains on files, what samples, and PPO, which does both."""
    return [
        ("pretrain", pretrain_config()),
        ("reward_model", test_reward_model.config(init_from=str(saved_policy()), **SPLIT_ROWS)),
        ("rejection_sampling", test_rejection_sampling.config_of(**MESH)),
        ("ppo", test_ppo.config_of(**MESH, sampler_mesh__preset="fsdp", train__num_iterations=2)),
    ]


def run(
    work: list[tuple[str, Any, Path]], *, processes: int, stop_at: int = 0, folders: Sequence[Path] = ()
) -> int:
    """The exit code of the programs, in processes that have four devices together.

    Args:
      folders: that each process works in, if not all in the same.
    """
    plain = [(name, config.to_dict(), str(workdir)) for name, config, workdir in work]
    flags = f"--xla_force_host_platform_device_count={4 // processes} --xla_backend_optimization_level=0"
    launcher = [sys.executable, "-m", "tools.run_processes", f"--processes={processes}", "--"]
    child = [sys.executable, "-c", CHILD, json.dumps(
        {"runs": plain, "stop_at": stop_at, "folders": [str(folder) for folder in folders]}
    )]  # fmt: skip
    return subprocess.run(
        [*(launcher if processes > 1 else []), *child],
        cwd=runs.REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "MPLBACKEND": "Agg"},
        timeout=600,
        check=False,
    ).returncode


@functools.cache
def finished(processes: int) -> Path:
    folder = runs.scratch() / f"{processes}_processes"
    assert run([(name, config, folder / name) for name, config in stages(folder)], processes=processes) == 0
    return folder


def numbers(workdir: Path) -> tuple[list[list[str]], np.ndarray]:
    """Names and values of what is learned, line by line."""
    lines = [
        {name: value for name, value in line.items() if not name.startswith(("secs/", "rate/"))}
        for line in without_rates(workdir)
    ]
    return [list(line) for line in lines], np.array([value for line in lines for value in line.values()])


@pytest.mark.parametrize("stage", ["pretrain", "reward_model", "ppo"])
def test_two_processes_learn_what_one_learns(stage: str) -> None:
    (names, found), (expected_names, expected) = (numbers(finished(n) / stage) for n in (2, 1))
    assert names == expected_names
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("file", ["pretrain/samples.jsonl", "rejection_sampling/dialogues.jsonl"])
def test_two_processes_write_what_one_writes(file: str) -> None:
    text = (finished(2) / file).read_text()
    assert text
    assert text == (finished(1) / file).read_text()


def test_two_processes_leave_the_files_of_one() -> None:
    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in folder.glob("**/*"))
        return {str(path) for path in found if not {"checkpoints", "tensorboard"} & set(path.parts)}

    assert files(finished(2)) == files(finished(1))
    for stage in ("pretrain", "reward_model", "ppo"):
        assert len(list((finished(2) / stage / "tensorboard").iterdir())) == 1, stage


def test_a_signal_to_one_process_stops_both_and_both_go_on(tmp_path: Path) -> None:
    work = [("pretrain", pretrain_config(), tmp_path)]
    assert run(work, processes=2, stop_at=STOPPED_AT) == EXIT_PREEMPTED
    steps = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert STOPPED_AT <= max(steps) < 12
    assert not (tmp_path / "DONE").exists()
    assert run(work, processes=2) == 0
    (names, found), (expected_names, expected) = map(numbers, (tmp_path, finished(1) / "pretrain"))
    assert names == expected_names
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ("sft", "data__dialogues"), ("sft", "data__heldout"), ("reward_model", "data__heldout"),
        ("rejection_sampling", "prompts"),
    ],
)  # fmt: skip
def test_processes_that_see_other_files_stop(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: str, field: str
) -> None:
    base = runs.pretrained_workdir()
    make = {
        "sft": functools.partial(runs.sft_config, base, train__num_steps=2),
        "reward_model": functools.partial(test_reward_model.config, init_from=str(saved_policy())),
        "rejection_sampling": test_rejection_sampling.config_of,
    }[stage]
    whole = {
        "sft": runs.DIALOGUES,
        "reward_model": test_reward_model.file(24, 1),
        "rejection_sampling": Path(test_rejection_sampling.config_of().prompts),
    }[stage]
    lines = whole.read_text(encoding="utf-8").splitlines()
    # as many prompts in another order: nothing but what they say tells them apart
    others = lines[::-1] if stage == "rejection_sampling" else lines[: len(lines) // 2]
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder, seen in zip(folders, (lines, others), strict=True):
        folder.mkdir()
        (folder / "d.jsonl").write_text("\n".join(seen), encoding="utf-8")
    work = [(stage, make(**MESH, **{field: "d.jsonl"}), tmp_path / "run")]
    assert run(work, processes=2, folders=folders) == 2
    assert "the processes of this run do not agree" in capfd.readouterr().err
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_mesh_without_a_process_is_refused_by_both(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = [("pretrain", runs.pretrain_config(mesh__preset="single"), tmp_path)]
    assert run(work, processes=2) == 2
    assert capfd.readouterr().err.count("has devices of 1 of 2 processes") == 2
