"""The training loop of every stage that learns from a data set: restore, step, record, save, stop."""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import logging

from llama2_jax.config import changes, require, to_plain
from llama2_jax.kernels.ranges import check_segment_ids
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.placement import check_batch_size, place_batch
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params, TokenBatch, TrainState
from llama2_jax.train.checkpoint import Checkpointer, Restored
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer, with_num_steps
from llama2_jax.train.recorder import Recorder
from llama2_jax.train.step import (
    Loss,
    StepFunction,
    abstract_state,
    compile_step,
    init_state,
    make_update,
    state_from_params,
)

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again", distinct from success and from any error


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, rhythm and safety of a run; counts are optimiser updates."""

    num_steps: int
    seed: int = 0
    accumulation_steps: int = 1
    loss_chunk: int = 0  # of next_token_loss: positions of a row whose logits exist at once; 0 = all
    log_every_steps: int = 10
    eval_every_steps: int = 0  # 0 = only before the first and after the last step
    checkpoint_every_steps: int = 1000
    keep_last: int = 2
    keep_every_steps: int = 0
    profile_steps: str = ""  # "10:13" writes a trace of updates 11, 12 and 13
    peak_flops: float = 0.0  # per device; 0 = known for the device, or measured
    accept_changed_config: bool = False

    def __post_init__(self) -> None:
        require(self.num_steps > 0, f"train.num_steps = {self.num_steps} must be positive")
        for name in ("accumulation_steps", "log_every_steps", "checkpoint_every_steps", "keep_last"):
            require(getattr(self, name) > 0, f"train.{name} = {getattr(self, name)} must be positive")
        for name in ("loss_chunk", "eval_every_steps", "keep_every_steps"):
            require(getattr(self, name) >= 0, f"train.{name} = {getattr(self, name)} must not be negative")
        self.profile_range()

    def profile_range(self) -> tuple[int, int]:
        """First and last step of the trace, or (-1, -1)."""
        if not self.profile_steps:
            return -1, -1
        first, _, last = self.profile_steps.partition(":")
        require(
            first.isdigit() and last.isdigit() and int(first) < int(last),
            f"train.profile_steps = {self.profile_steps!r} must be FIRST:LAST, for example 10:13",
        )
        return int(first), int(last)


@dataclasses.dataclass(frozen=True)
class TrainRun:
    """Everything a run needs besides numbers: built once by an experiment."""

    name: str
    model: Transformer | ScoreModel
    loss: Loss  # its totals must have source_tokens, tokens per source, int32 (number of sources,)
    optimizer: OptimizerConfig
    partitioner: Partitioner
    batch_size: int  # global rows per update
    sequence_length: int
    batches: Callable[[int], Iterator[Any]]  # of the loss: this process's rows, from a step on
    source_names: tuple[str, ...]
    meta: dict[str, Any]  # what the run is made from, stored with every checkpoint and checked on resume
    config: dict[str, Any]  # resolved, stored with every checkpoint
    initial_params: Callable[[], Params] | None = None  # None = random
    num_outputs: int | None = None  # per token, for MFU; None = the vocabulary
    evaluate: Callable[[int, Params], dict[str, float]] | None = None


class Preempted(SystemExit):
    """SIGTERM arrived and the checkpoint is on disk; exits with ``EXIT_PREEMPTED``."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.step = step


def train(run: TrainRun, config: TrainConfig, workdir: Path) -> TrainState:
    """Train to ``config.num_steps`` updates, continuing from the newest checkpoint in ``workdir``.

    Raises:
      Preempted: after SIGTERM, with everything saved.
      NonFiniteError: a metric is NaN or infinite.
    """
    check_batch_size(run.partitioner, run.batch_size, accumulation_steps=config.accumulation_steps)
    checkpointer = Checkpointer(workdir, keep_last=config.keep_last, keep_every=config.keep_every_steps)
    restored = _restore_or_init(run, config, checkpointer)
    state = restored.state
    start = int(state.step)
    batches = run.batches(start)
    recorder = Recorder(run, config, workdir, start_step=start, meta=restored.meta)
    evaluations = _Evaluations(run, config, recorder)
    profile = _Profile(config, workdir)
    step_function = _step_function(run, config, state)

    with (
        contextlib.closing(checkpointer),
        contextlib.closing(recorder),
        contextlib.closing(profile),
        StopRequest() as stop,
    ):
        if start == 0:
            evaluations.run(0, state.params, last_checkpoint="none")
        for step in range(start + 1, config.num_steps + 1):
            profile.before(step)
            state, metrics = step_function(state, _place(run.partitioner, next(batches)))
            recorder.add(step, metrics, last_checkpoint=_last_checkpoint(checkpointer))
            profile.after(step, state)
            if evaluations.due(step):
                evaluations.run(step, state.params, last_checkpoint=_last_checkpoint(checkpointer))
            stopping = stop.requested  # asked once: a signal during the save counts at the next step
            if step % config.checkpoint_every_steps == 0 or step == config.num_steps or stopping:
                with recorder.pause(last_checkpoint=_last_checkpoint(checkpointer)):
                    checkpointer.save(state, {**run.meta, **recorder.totals(), "config": run.config})
            if stopping and step < config.num_steps:
                logging.warning(
                    "stopped by SIGTERM after step %d; start again in %s to continue", step, workdir
                )
                raise Preempted(step)
    return state


def _restore_or_init(run: TrainRun, config: TrainConfig, checkpointer: Checkpointer) -> Restored:
    optimizer = make_optimizer(run.optimizer, num_steps=config.num_steps)
    if checkpointer.steps():
        restored = checkpointer.restore_latest(abstract_state(run.model, optimizer, run.partitioner))
        if restored is not None:
            _check_origin(run, config, restored, checkpointer.folder)
            logging.info("continuing from step %d in %s", int(restored.state.step), checkpointer.folder)
            opt_state = with_num_steps(restored.state.opt_state, run.optimizer, num_steps=config.num_steps)
            return restored._replace(state=restored.state._replace(opt_state=opt_state))
    if run.initial_params is None:
        return Restored(init_state(run.model, optimizer, run.partitioner, seed=config.seed), {})
    rng = jax.random.key(config.seed)
    return Restored(state_from_params(run.initial_params(), optimizer, run.partitioner, rng=rng), {})


def _check_origin(run: TrainRun, config: TrainConfig, restored: Restored, folder: Path) -> None:
    """Refuse to continue with another tokenizer or other data than the checkpoint was made with."""
    stored = {key: restored.meta.get(key) for key in run.meta}
    lines = changes(stored, to_plain(run.meta))
    require(
        not lines or config.accept_changed_config,
        f"the checkpoint of step {int(restored.state.step)} in {folder} was made with something else:"
        + "".join(f"\n  {line}" for line in lines)
        + "\nuse another --workdir, undo the change, or continue with it by "
        "--config.train.accept_changed_config=True",
    )
    for line in lines:
        logging.warning("continuing with changed %s", line)


def _step_function(run: TrainRun, config: TrainConfig, state: TrainState) -> StepFunction:
    optimizer = make_optimizer(run.optimizer, num_steps=config.num_steps)
    update = make_update(run.loss, optimizer, accumulation_steps=config.accumulation_steps)
    return compile_step(update, state, run.partitioner)


def _place(partitioner: Partitioner, batch: Any) -> Any:
    """The batch on the mesh; what nobody can check inside ``jit`` is checked here."""
    if isinstance(batch, TokenBatch):
        check_segment_ids(np.asarray(batch.segment_ids_BT))
    return place_batch(partitioner, batch)


def _last_checkpoint(checkpointer: Checkpointer) -> str:
    steps = checkpointer.steps()
    return f"step {steps[-1]} in {checkpointer.folder}" if steps else "none"


class _Evaluations:
    """When to evaluate, and where the numbers go."""

    def __init__(self, run: TrainRun, config: TrainConfig, recorder: Recorder) -> None:
        self._run, self._config, self._recorder = run, config, recorder

    def due(self, step: int) -> bool:
        every = self._config.eval_every_steps
        return step == self._config.num_steps or (every > 0 and step % every == 0)

    def run(self, step: int, params: Params, *, last_checkpoint: str) -> None:
        if self._run.evaluate is not None:
            with self._recorder.pause(last_checkpoint=last_checkpoint):
                metrics = self._run.evaluate(step, params)
                self._recorder.add_evaluation(step, metrics, last_checkpoint=last_checkpoint)


class _Profile:
    """The trace of ``config.profile_steps``, also when the run starts or ends inside the range."""

    def __init__(self, config: TrainConfig, workdir: Path) -> None:
        self._first, self._last = config.profile_range()
        self._folder, self._running = str(workdir / "profile"), False

    def before(self, step: int) -> None:
        if self._first < step <= self._last and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, state: TrainState) -> None:
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class StopRequest:
    """Turns a signal into a flag while in scope, so that a step is never cut in half.

    Python's own way, an exception at any line, is lost where it meets a callback of the runtime.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        self.requested = False
        self._signum = signum

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> "StopRequest":
        try:
            self._previous: Any = signal.signal(self._signum, self._handle)
        except ValueError:  # not the main thread (a notebook): the default handling stays
            self._previous = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(self._signum, self._previous)
