"""Checkpoints through orbax: asynchronous, atomic, restorable on any mesh.

A checkpoint has three items, so that each can be read alone: ``params`` (float32 master
weights), ``rest`` (what training needs besides, the optimiser state above all) and ``meta`` (JSON:
resolved config, tokenizer hash, tokens seen per source). The data position is the step: the loader
needs nothing else.
"""

import contextlib
import glob
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from llama2_jax.config import UserError, changes, require, to_plain
from llama2_jax.sharding.processes import files_at_rest, wait_for_all
from llama2_jax.structs import Params


class CheckpointError(UserError, RuntimeError):
    """No usable checkpoint, or one that could not be written."""


class Restored(NamedTuple):
    """What a restore gives back."""

    step: int
    params: Params
    rest: Any
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores ``workdir/checkpoints``.

    Args:
      keep_last: newest checkpoints to keep.
      keep_every: besides, keep every checkpoint whose step is a multiple of this (0: none).

    Raises:
      ConfigError: see ``require_no_pattern``.
    """

    def __init__(self, workdir: Path, *, keep_last: int = 2, keep_every: int = 0) -> None:
        require_no_pattern(workdir)
        self.folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,  # of a killed process or a full disk
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._saving: int | None = None

    def save(self, step: int, params: Params, rest: Any, meta: dict[str, Any]) -> None:
        """Start writing a checkpoint; returns once device memory has been copied.

        Args:
          rest: tree of arrays; None if the parameters are all that is kept.
          meta: numbers, texts, and lists and mappings of them. A workdir that ``llama2_jax.load`` is to open
            wants ``pretrained.checkpoint_meta`` in it.

        Raises:
          TypeError: ``meta`` holds something else.
          CheckpointError: it could not be written; or there is one of this step or a later one, beside which
            orbax would write nothing, and say nothing.
        """
        self.wait()  # for the one before, so that its failure is reported as its own
        if later := [known for known in self.steps() if known >= step]:
            raise CheckpointError(f"{self.folder} holds {later}; a checkpoint of step {step} cannot follow")
        json.dumps(meta)  # orbax would find out while it writes, and lose the checkpoint
        self._saving = step
        items = {"params": ocp.args.StandardSave(params), "meta": ocp.args.JsonSave(meta)}
        if rest is not None:
            items["rest"] = ocp.args.StandardSave(rest)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Block until the last save is complete on disk.

        Raises:
          CheckpointError: it could not be written (disk full, ...); names the last good one.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error

    def discard_from(self, step: int) -> None:
        """Delete the checkpoints of ``step`` and later: of a future that is written anew."""
        self.wait()
        for known in self.steps():
            if known >= step:
                self._manager.delete(known)

    def close(self) -> None:
        """Finish pending writes and release threads."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def newest(self) -> str:
        """Which checkpoint a run can go back to, for messages."""
        steps = self.steps()
        return f"step {steps[-1]} in {self.folder}" if steps else "none"

    def restore_latest(self, params: Params, rest: Any) -> Restored | None:
        """The newest readable checkpoint, or None if there is none at all.

        Unreadable ones are reported, and set aside as ``<step>.broken`` once an older one is restored:
        until then the fault may lie elsewhere (memory, permissions), and nothing is touched.

        Args:
          params, rest: shapes, dtypes and shardings to restore into (any mesh); ``rest`` as it was saved, or
            None for the parameters alone.

        Raises:
          CheckpointError: checkpoints exist but none can be read, or they are of a model or a state of
            other shapes.
        """
        unreadable: list[int] = []
        for step in reversed(self.steps()):
            try:
                restored = self._restore(step, params, rest)
            except Exception as error:  # orbax and tensorstore raise many types for damaged files
                self._check_shapes(step, params, rest)
                reason = _first_line(error)
                logging.error("checkpoint %d in %s cannot be read (%s)", step, self.folder, reason)
                self._require_one_process(step)
                unreadable.append(step)
                continue
            self._set_aside(unreadable)
            return restored
        if unreadable:
            raise CheckpointError(
                f"none of the checkpoints {unreadable[::-1]} in {self.folder} can be read "
                f"(the oldest: {reason}); "
                "nothing was changed: put sound copies in their place, or start in a new workdir; other "
                "versions of this code may have written another structure"
            )
        return None

    def _restore(self, step: int, params: Params, rest: Any) -> Restored:
        wait_for_all(f"{self.folder}: restore {step}")  # orbax would mix the parts of two steps
        items = {"params": ocp.args.StandardRestore(params), "meta": ocp.args.JsonRestore()}
        if rest is not None:
            items["rest"] = ocp.args.StandardRestore(rest)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return Restored(step, restored["params"], restored.get("rest"), restored["meta"])

    def _require_one_process(self, step: int) -> None:
        """Of several, others may have read their part of ``step``, and none can go on with another alone."""
        if jax.process_count() > 1:
            raise CheckpointError(
                f"process {jax.process_index()} cannot read its part of checkpoint {step} in {self.folder}; "
                "move that folder away to continue from the checkpoint before it"
            )

    def _check_shapes(self, step: int, params: Params, rest: Any) -> None:
        """Raise ``CheckpointError`` if the checkpoint is sound but of another model or state."""
        checkpoint = self.folder / str(step)
        try:
            stored = _stored(checkpoint, "params")
            state = _stored(checkpoint, "rest") if (checkpoint / "rest").exists() else None
        except Exception:  # damaged: the caller sets it aside
            return
        if lines := _other_shapes(stored, params):
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is of a model of other shapes (its own -> the config's):"
                f"{lines}\nundo the change of config.model, or use another workdir"
            )
        have, want = (sorted(np.shape(leaf) for leaf in jax.tree.leaves(tree)) for tree in (state, rest))
        if rest is not None and have != want:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} has {len(have)} arrays beside its parameters, where "
                f"{len(want)} of other shapes are wanted, as of another optimizer or an earlier version of "
                "this code; undo that change, or start from its weights in another workdir"
            )

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            broken = self.folder / f"{step}.broken"
            shutil.rmtree(broken, ignore_errors=True)  # of the same step, broken before
            (self.folder / str(step)).rename(broken)
            logging.error("checkpoint %d was renamed to %s", step, broken)
        if steps:
            self._manager.reload()

    def _write_error(self, error: Exception) -> CheckpointError:
        on_disk = sorted(self._manager.all_steps(read=True))  # incl. what it meant to delete after this save
        good = [known for known in on_disk if known != self._saving]
        kept = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
        at = "" if self._saving is None else f" of step {self._saving}"
        return CheckpointError(
            f"writing the checkpoint{at} to {self.folder} failed ({_first_line(error)}); {kept}; "
            "free disk space or choose another workdir, then start again in the same workdir"
        )


def require_same_origin(
    restored: Restored, meta: dict[str, Any], folder: Path, *, accept_changed: bool
) -> None:
    """Refuse to continue with something else than the checkpoint was made with.

    Args:
      meta: what the run is made from now, tokenizer and data among it; of what is stored only its keys count.
      accept_changed: log what changed instead.

    Raises:
      ConfigError: lists what changed.
    """
    lines = changes({key: restored.meta.get(key) for key in meta}, to_plain(meta))
    require(
        not lines or accept_changed,
        f"the checkpoint of step {restored.step} in {folder} was made with something else:"
        + "".join(f"\n  {line}" for line in lines)
        + "\nuse another --workdir, undo the change, or continue with it by "
        "--config.accept_changed_config=True",
    )
    for line in lines:
        logging.warning("continuing with changed %s", line)


def require_no_pattern(workdir: Path) -> None:
    """Refuse a folder in which orbax would write, without a word, checkpoints that nobody can read.

    It looks for the parts by a pattern that begins with the path, finds none, and passes on.

    Raises:
      ConfigError: the path has characters of a pattern.
    """
    path = str(Path(workdir).absolute())
    require(
        glob.escape(path) == path,
        f"{path} has one of * ? [ in it, which orbax takes for a pattern: no checkpoint written there can be "
        "read; name a folder without them, or a symbolic link to this one",
    )


def stored_steps(workdir: Path) -> list[int]:
    """Steps in ``workdir`` that have a complete checkpoint, oldest first; one half written does not count."""
    folder = Path(workdir).absolute() / "checkpoints"
    with files_at_rest(workdir):
        there = folder.is_dir()
    if not there:
        return []
    with _errors_only(), ocp.CheckpointManager(folder, options=_READ_ONLY) as manager:
        steps = sorted(manager.all_steps())
    wait_for_all(f"{folder} has {steps}")
    return steps


def read_meta(workdir: Path, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """The step and JSON metadata of the newest (or given) checkpoint.

    Raises:
      CheckpointError: no complete checkpoint, or a damaged one.
    """
    step, restored = _read(workdir, step, meta=ocp.args.JsonRestore())
    return step, restored["meta"]


def read_params(workdir: Path, abstract: Params, step: int | None = None) -> Params:
    """Parameters alone, without the optimiser state, into the given shapes and shardings.

    The dtype is that of the file.

    Raises:
      CheckpointError: no complete checkpoint, a damaged one, or one of parameters of other names or shapes.
    """
    step, _ = read_meta(workdir, step)
    try:
        stored = _stored(Path(workdir).absolute() / "checkpoints" / str(step), "params")
    except Exception as error:
        raise _damaged(workdir, step, error) from error
    if lines := _other_shapes(stored, abstract):
        raise CheckpointError(
            f"checkpoint {step} in {workdir} has other parameters (its own -> those wanted):{lines}\n"
            "ask for those that it has, or name another workdir"
        )
    abstract = jax.tree.map(
        lambda want, have: jax.ShapeDtypeStruct(want.shape, have.dtype, sharding=want.sharding),
        abstract,
        stored,
    )
    return _read(workdir, step, params=ocp.args.StandardRestore(abstract))[1]["params"]


def _stored(checkpoint: Path, item: str) -> Any:
    """Shapes and dtypes of an item in the folder of one checkpoint, without its values."""
    return ocp.StandardCheckpointHandler().metadata(checkpoint / item).tree


def _other_shapes(stored: Any, wanted: Any) -> str:
    """A line for each leaf whose shape differs, empty if none does."""
    trees = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (stored, wanted))
    return "".join(f"\n  {line}" for line in changes(*trees))


def _read(workdir: Path, step: int | None, **items: Any) -> tuple[int, Any]:
    folder = Path(workdir).absolute() / "checkpoints"
    with _errors_only(), ocp.CheckpointManager(folder, options=_READ_ONLY) as manager:
        step = _pick_step(manager, folder, step)
        try:
            return step, manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many types for damaged files
            raise _damaged(workdir, step, error) from error


def _damaged(workdir: Path, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {step} in {workdir} cannot be read ({_first_line(error)}); training again in this "
        "workdir sets it aside and continues from the one before it"
    )


def write_params(workdir: Path, params: Params, meta: dict[str, Any]) -> None:
    """A checkpoint of parameters alone at step 0: an imported model in our own format."""
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        checkpointer.save(0, params, None, meta)


_READ_ONLY = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Orbax warns at every reader that it was opened for reading."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _pick_step(manager: ocp.CheckpointManager, folder: Path, step: int | None) -> int:
    known = sorted(manager.all_steps())
    if not known:
        raise CheckpointError(f"{folder} holds no complete checkpoint; train first, or name another folder")
    if step is not None and step not in known:
        raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has {known}")
    step = known[-1] if step is None else step
    wait_for_all(f"{folder}: read {step}")
    return step


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else ""
    # the reason stands last
    return f"{type(error).__name__}: {line if len(line) <= 300 else '...' + line[-300:]}"
