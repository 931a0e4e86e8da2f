"""Programs that run others one after another: each stage in a folder of its own, once."""

import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from llama2_jax.config import ConfigError, require, to_plain
from llama2_jax.data.jsonl import append_rows, read_appended
from llama2_jax.sharding.processes import wait_for_all
from llama2_jax.train.stopping import EXIT_PREEMPTED
from llama2_jax.workdir import config_changes, is_done


def require_no_comma(workdir: Path) -> None:
    """Refuse a folder whose files a stage hours from now could not be told of.

    Raises:
      ConfigError: its path has a comma, which separates the paths of a config field.
    """
    require(
        "," not in str(workdir),
        f"--workdir={workdir} has a comma in it, which separates the files that stages are given; name "
        "another folder, or one relative to the current folder",
    )


def run_stage(workdir: Path, folder: str, program: Callable[[Any, Path], None], config: ConfigDict) -> str:
    """Run one program in ``workdir / folder`` unless it is done; returns that path.

    What it took is added to ``workdir / "stages.jsonl"``. A stage that waits for people ends the process.
    """
    path = workdir / folder
    if not is_done(path):
        print(f"== {folder}", flush=True)
        start = time.perf_counter()
        program(config, path)
        if not is_done(path):
            print(f"{path} waits for people: see there, then give the same command again")
            sys.exit(EXIT_PREEMPTED)
        line = {"stage": folder, "secs": round(time.perf_counter() - start, 1)}
        append_rows(workdir / "stages.jsonl", [line])
        wait_for_all(f"{path} is noted")
    return str(path)


def check_done_stage(
    workdir: Path, folder: str, config: ConfigDict, *, filled_in: Collection[str], earlier: Sequence[str]
) -> None:
    """Refuse a stage that is done, but not with this config, or before the stage that it comes after.

    Args:
      filled_in: dotted fields that the program above filled in, paths that may move among them.
      earlier: folders of the stages before it, in order.

    Raises:
      ConfigError: which fields changed, unless ``accept_changed_config``; or which folders to delete.
    """
    lines = config_changes(workdir / folder, to_plain(config))
    lines = [line for line in lines if line.split(":", 1)[0] not in filled_in]
    require(
        not lines or config.accept_changed_config,
        f"{workdir / folder} is done, with another config:\n  " + "\n  ".join(lines) + "\nundo the "
        "change, delete it and the stages after it, or keep it by --config.accept_changed_config=True",
    )
    for line in lines:
        logging.warning("not applied, as %s is done: %s", workdir / folder, line)
    ended = [row["stage"] for row in read_appended(workdir / "stages.jsonl", dict)]
    last = {stage: number for number, stage in enumerate(ended)}
    before = earlier[-1] if earlier else ""
    if before in last and folder in last and last[folder] < last[before]:
        order = list(dict.fromkeys(ended))
        later = [stage for stage in order[order.index(folder) :] if stage not in earlier]
        stale = ", ".join(stage for stage in later if is_done(workdir / stage))
        raise ConfigError(
            f"{workdir / before} was made after {folder}, which comes after it and so is of what was there "
            f"before; delete {stale} in {workdir}, and they are made again"
        )


def stage_config(config: Any, section: str, **changes: Any) -> ConfigDict:
    """The config of one stage, with what only the program above it knows (keys may be dotted)."""
    stage = config[section].copy_and_resolve_references().unlock()  # deep: the caller's own stays as it is
    stage.update_from_flattened_dict(changes)
    stage.accept_changed_config = config.accept_changed_config
    return stage.lock()
