"""The training loop of every stage that learns from a data set: restore, step, record, save, stop."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from llama2_jax.config import keep_config, require, to_plain
from llama2_jax.files import writes
from llama2_jax.kernels.ranges import check_segment_ids
from llama2_jax.sharding.placement import check_batch_size, place_batch, place_leaf
from llama2_jax.sharding.processes import require_agreement, wait_for_all
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params, TokenBatch, TrainState
from llama2_jax.train.checkpoint import Checkpointer, Restored, require_same_origin
from llama2_jax.train.optimizer import make_optimizer, with_num_steps
from llama2_jax.train.recorder import Recorder
from llama2_jax.train.run import TrainConfig, TrainRun
from llama2_jax.train.step import abstract_state, compile_step, init_state, make_update, state_from_params
from llama2_jax.train.stopping import StopRequest, end_early


def train(run: TrainRun, config: TrainConfig, workdir: Path) -> TrainState:
    """Train to ``config.num_steps`` updates, continuing from the newest checkpoint in ``workdir``.

    Raises:
      Preempted: after SIGTERM, with everything saved.
      NonFiniteError: a metric is NaN or infinite.
    """
    check_batch_size(run.partitioner, run.batch_size, accumulation_steps=config.accumulation_steps)
    require_agreement(f"data of {run.name}", [to_plain(run.meta), config.num_steps, run.items_per_step])
    checkpointer = Checkpointer(workdir, keep_last=config.keep_last, keep_every=config.keep_every_steps)
    optimizer = make_optimizer(run.optimizer, num_steps=config.num_steps)
    state, meta = _restore_or_init(run, config, checkpointer, optimizer)
    keep_config(run.config, workdir)
    start = int(state.step)
    batches = run.batches(start)
    recorder = Recorder(run, config, workdir, start_step=start, meta=meta)
    profile = _Profile(config, workdir)
    update = make_update(run.loss, optimizer, accumulation_steps=config.accumulation_steps)
    step_function = compile_step(update, state, run.partitioner)

    with (
        contextlib.closing(checkpointer),
        contextlib.closing(recorder),
        contextlib.closing(profile),
        StopRequest() as stop,
    ):
        if start == 0:
            _evaluate(run, recorder, 0, state.params, last_checkpoint="none")
        for step in range(start + 1, config.num_steps + 1):
            profile.before(step)
            state, metrics = step_function(state, _place(run.partitioner, next(batches)))
            recorder.add(step, metrics, last_checkpoint=checkpointer.newest())
            profile.after(step, state)
            if _evaluation_is_due(config, step):
                _evaluate(run, recorder, step, state.params, last_checkpoint=checkpointer.newest())
            stopping = stop.after_step()  # asked once: a signal during the save counts at the next step
            if step % config.checkpoint_every_steps == 0 or step == config.num_steps or stopping:
                with recorder.pause(last_checkpoint=checkpointer.newest()):
                    meta = {**run.meta, **recorder.totals()}
                    meta |= {"items_per_step": run.items_per_step, "config": run.config}
                    checkpointer.save(step, state.params, state.opt_state, meta)
            if stopping and step < config.num_steps:
                end_early("step", step, workdir)
    wait_for_all(f"end of training in {workdir}")  # what the first process wrote can be read
    return state


def _restore_or_init(
    run: TrainRun, config: TrainConfig, checkpointer: Checkpointer, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from, and what its checkpoint says of itself."""
    if checkpointer.steps():
        abstract = abstract_state(run.model, optimizer, run.partitioner)
        restored = checkpointer.restore_latest(abstract.params, abstract.opt_state)
        if restored is not None:
            require_same_origin(
                restored, run.meta, checkpointer.folder, accept_changed=run.accept_changed_config
            )
            _check_position(run, config, restored)
            logging.info("continuing from step %d in %s", restored.step, checkpointer.folder)
            opt_state = with_num_steps(restored.rest, run.optimizer, num_steps=config.num_steps)
            step = place_leaf(np.array(restored.step, np.int32), run.partitioner.replicated)
            return TrainState(step, restored.params, opt_state), restored.meta
    if run.initial_params is None:
        return init_state(run.model, optimizer, run.partitioner, seed=config.seed), {}
    return state_from_params(run.initial_params(), optimizer, run.partitioner), {}


def _check_position(run: TrainRun, config: TrainConfig, restored: Restored) -> None:
    """Refuse a run that would go on at another place in the data, or that is to end before its checkpoint."""
    before = restored.meta["items_per_step"]
    require(
        before == run.items_per_step,
        f"the checkpoint of step {restored.step} was made with {before} rows or pairs per update, the config "
        f"has {run.items_per_step}: the data would go on elsewhere. Undo the change of "
        "config.data.batch_size, or start in a new --workdir",
    )
    require(
        restored.step <= config.num_steps,
        f"the checkpoint is of step {restored.step}, the run is to end at step {config.num_steps}; raise the "
        "number of steps, or start in a new --workdir",
    )


def _place(partitioner: Partitioner, batch: Any) -> Any:
    """The batch on the mesh; what nobody can check inside ``jit`` is checked here."""
    if isinstance(batch, TokenBatch):
        check_segment_ids(np.asarray(batch.segment_ids_BT))
    return place_batch(partitioner, batch)


def _evaluation_is_due(config: TrainConfig, step: int) -> bool:
    every = config.eval_every_steps
    return step == config.num_steps or (every > 0 and step % every == 0)


def _evaluate(run: TrainRun, recorder: Recorder, step: int, params: Params, *, last_checkpoint: str) -> None:
    if run.evaluate is not None:
        with recorder.pause(last_checkpoint=last_checkpoint):
            metrics = run.evaluate(step, params)
            recorder.add_evaluation(step, metrics, last_checkpoint=last_checkpoint)


class _Profile:
    """The trace of ``config.profile_steps``, also when the run starts or ends inside the range."""

    def __init__(self, config: TrainConfig, workdir: Path) -> None:
        self._first, self._last = config.profile_range()
        self._folder, self._running = str(workdir / "profile"), False

    def before(self, step: int) -> None:
        if self._first < step <= self._last and not self._running and writes():
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
