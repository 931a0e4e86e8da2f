"""The life of a workdir: opened with the config of its run, refused to others, done."""

import contextlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import jax
from absl import logging

from llama2_jax.config import ConfigError, changes, read_json, require, to_plain
from llama2_jax.files import hold, release, written_whole
from llama2_jax.sharding.processes import files_at_rest, wait_for_all
from llama2_jax.train.checkpoint import CheckpointError, read_meta, require_no_pattern

SAMPLES = ("archive.jsonl", "answers/*.jsonl")  # archives: what is in them is not drawn again

# Changing these does not change what is learned, so a resumed run may.
FREE_TO_CHANGE = ("mesh.", "sampler_mesh.", "model.attention_impl", "accept_changed_config",
                  "train.log_every_steps", "train.eval_every_steps", "train.checkpoint_every_steps",
                  "train.profile_steps", "train.peak_flops", "train.keep_last",
                  "train.keep_every_steps")  # fmt: skip


def open_workdir(config: Any, workdir: Path) -> bool:
    """Create the workdir and keep it for this process. True, and a line printed, if the run is done.

    Nothing in it changes before ``keep_config``.

    Raises:
      ConfigError: the workdir belongs to a run with another config (lists what changed);
        ``config.accept_changed_config=True`` overrides; or see ``require_no_pattern``.
      InUseError: another process works in it.
    """
    path = workdir / "config.json"
    new = json.loads(json.dumps(to_plain(config)))
    require(
        jax.process_count() == 1 or jax.distributed.is_initialized(),
        f"this is one of {jax.process_count()} processes; give --distributed, so that they are one run",
    )
    wait_for_all(f"config {zlib.crc32(json.dumps(new).encode()):08x}")
    with files_at_rest(workdir):
        done = is_done(workdir)
        results = done or has_results(workdir)
    # before the first result there is nothing that a correction could contradict
    if results and path.exists():
        lines = config_changes(workdir, new)
        if lines and not new["accept_changed_config"]:
            raise ConfigError(
                f"{workdir} was started with another config:\n  " + "\n  ".join(lines) + "\n"
                "use another --workdir, undo the change, or continue with it by "
                f"{'deleting DONE there and ' if done else ''}--config.accept_changed_config=True"
            )
        what = "not applied, as the run is done (has DONE)" if done else "continuing with changed config"
        for line in lines:
            logging.warning("%s: %s", what, line)
    if done:
        print(f"{workdir} is done")
        return True
    require_no_pattern(workdir)
    hold(workdir, another="--workdir")
    return False


def config_changes(workdir: Path, config: Any) -> list[str]:
    """What of a config, plain, is not free to change and not what the results in ``workdir`` were made with.

    Where there are checkpoints the newest says what that was: ``config.json`` may be of a later start that
    came to none.
    """
    old = read_json(workdir / "config.json")
    with contextlib.suppress(CheckpointError):  # none here, or damaged: the run will say so
        old = read_meta(workdir)[1].get("config", old)
    return [line for line in changes(old, config) if not _is_free(line)]


def _is_free(line: str) -> bool:
    """Whether a line of ``changes`` is about a field of ``FREE_TO_CHANGE``, of the run or a stage of it."""
    return any(re.match(rf"(\w+\.)?{re.escape(key)}", line) for key in FREE_TO_CHANGE)


def has_checkpoints(workdir: Path) -> bool:
    """Whether anything was trained in ``workdir`` or in a stage below it; one half written does not count."""
    return any(path.name.isdigit() for path in workdir.glob("**/checkpoints/[0-9]*"))


def has_results(workdir: Path) -> bool:
    """Whether a run in ``workdir`` or below left what its next start builds on: parameters or samples."""
    return has_checkpoints(workdir) or any(any(workdir.glob(f"**/{pattern}")) for pattern in SAMPLES)


def is_done(workdir: Path) -> bool:
    """Whether the run in ``workdir`` finished."""
    return (workdir / "DONE").exists()


def mark_done(workdir: Path) -> None:
    """Say that everything in ``workdir`` is complete; written last."""
    with written_whole(workdir / "DONE") as partial:
        partial.touch()
    release(workdir)
    wait_for_all(f"{workdir} is done")  # the next stage reads what the first process wrote
