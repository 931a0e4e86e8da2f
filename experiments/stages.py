"""Programmes that run others one after another: each stage in a folder of its own, once."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llama2_jax.data.jsonl import append_rows
from llama2_jax.launch import is_done
from llama2_jax.sharding.processes import wait_for_all
from llama2_jax.train.stopping import EXIT_PREEMPTED


def run_stage(workdir: Path, folder: str, programme: Callable[[Any, Path], None], config: ConfigDict) -> str:
    """Run one programme in ``workdir / folder`` unless it is done; returns that path.

    What it took is added to ``workdir / "stages.jsonl"``. A stage that waits for people ends the process.
    """
    path = workdir / folder
    if not is_done(path):
        print(f"== {folder}", flush=True)
        start = time.perf_counter()
        programme(config, path)
        if not is_done(path):
            print(f"{path} waits for people: see there, then give the same command again")
            sys.exit(EXIT_PREEMPTED)
        line = {"stage": folder, "secs": round(time.perf_counter() - start, 1)}
        append_rows(workdir / "stages.jsonl", [line])
        wait_for_all(f"{path} is noted")
    return str(path)


def stage_config(config: Any, section: str, **changes: Any) -> ConfigDict:
    """The config of one stage, with what only the programme above it knows (keys may be dotted)."""
    stage = config[section].copy_and_resolve_references().unlock()  # deep: the caller's own stays as it is
    stage.update_from_flattened_dict(changes)
    stage.train.accept_changed_config = config.train.accept_changed_config
    return stage.lock()
