"""Checkpoints through orbax: asynchronous, atomic, restorable on any mesh.

A checkpoint has three items, so that each can be read alone: ``params`` (float32 master
weights), ``rest`` (step, optimiser state, key) and ``meta`` (JSON: resolved config, tokenizer
hash, tokens seen per source). The data position is the step: the loader needs nothing else.
"""

from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from absl import logging

from llama2_jax.structs import Params, TrainState


class CheckpointError(RuntimeError):
    """No usable checkpoint, or one that could not be written."""


class Restored(NamedTuple):
    """What a restore gives back."""

    state: TrainState
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores ``workdir/checkpoints``.

    Args:
      keep_last: newest checkpoints to keep.
      keep_every: besides, keep every checkpoint whose step is a multiple of this (0: none).
    """

    def __init__(self, workdir: Path, *, keep_last: int = 2, keep_every: int = 0) -> None:
        self.folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            enable_async_checkpointing=True,
            create=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Start writing a checkpoint of ``state``; returns once device memory has been copied."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        rest = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            self._manager.save(step, args=items)
        except Exception as error:
            raise self._write_error(step, error) from error

    def wait(self) -> None:
        """Block until the last save is complete on disk.

        Raises:
          CheckpointError: it could not be written (disk full, ...); names the last good one.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(None, error) from error

    def close(self) -> None:
        """Finish pending writes and release threads."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def restore_latest(self, abstract: TrainState) -> Restored | None:
        """The newest readable checkpoint, or None if there is none at all.

        A broken one is reported and set aside as ``<step>.broken``, and the one before it used.

        Args:
          abstract: shapes, dtypes and shardings to restore into (any mesh).

        Raises:
          CheckpointError: checkpoints exist but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, abstract)
            except Exception as error:  # orbax and tensorstore raise many types for damaged files
                logging.error(
                    "checkpoint %d in %s cannot be read (%s); trying the one before it",
                    step, self.folder, _first_line(error),
                )  # fmt: skip
                self._set_aside(step)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self.folder} can be read; "
                "they were renamed to *.broken, start in a new workdir or restore a copy"
            )
        return None

    def _restore(self, step: int, abstract: TrainState) -> Restored:
        rest = {"step": abstract.step, "opt_state": abstract.opt_state, "rng": abstract.rng}
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            rest=ocp.args.StandardRestore(rest),
            meta=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=items)
        rest = restored["rest"]
        state = TrainState(rest["step"], restored["params"], rest["opt_state"], rest["rng"])
        return Restored(state, restored["meta"])

    def _set_aside(self, step: int) -> None:
        broken = self.folder / str(step)
        broken.rename(self.folder / f"{step}.broken")
        self._manager.reload()

    def _write_error(self, step: int | None, error: Exception) -> CheckpointError:
        good = [known for known in self.steps() if known != step]
        kept = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
        at = "" if step is None else f" of step {step}"
        return CheckpointError(
            f"writing the checkpoint{at} to {self.folder} failed ({_first_line(error)}); {kept}; "
            "free disk space or choose another workdir, then start again in the same workdir"
        )


def read_meta(workdir: Path, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """The step and JSON metadata of the newest (or given) checkpoint.

    Raises:
      CheckpointError: no complete checkpoint.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    with ocp.CheckpointManager(folder, options=_READ_ONLY) as manager:
        step = _pick_step(manager, folder, step)
        restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    return step, restored["meta"]


def read_params(workdir: Path, abstract: Params, step: int | None = None) -> Params:
    """Parameters alone, without the optimiser state, into the given shapes and shardings."""
    folder = Path(workdir).absolute() / "checkpoints"
    with ocp.CheckpointManager(folder, options=_READ_ONLY) as manager:
        step = _pick_step(manager, folder, step)
        items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        return manager.restore(step, args=items)["params"]


def write_params(workdir: Path, params: Params, meta: dict[str, Any]) -> None:
    """A checkpoint of parameters alone at step 0: an imported model in our own format."""
    folder = Path(workdir).absolute() / "checkpoints"
    with ocp.CheckpointManager(folder) as manager:
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(meta))
        manager.save(0, args=items)


_READ_ONLY = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)


def _pick_step(manager: ocp.CheckpointManager, folder: Path, step: int | None) -> int:
    known = sorted(manager.all_steps())
    if not known:
        raise CheckpointError(f"{folder} holds no complete checkpoint")
    if step is not None and step not in known:
        raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has {known}")
    return known[-1] if step is None else step


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
