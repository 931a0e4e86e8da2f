import dataclasses
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.structs import LossSums, Params, TokenBatch, TrainState
from llama2_jax.train import loop
from llama2_jax.train.checkpoint import CheckpointError, read_meta
from llama2_jax.train.loop import train
from llama2_jax.train.metrics import NonFiniteError, read_metrics
from llama2_jax.train.optimizer import OptimizerConfig, learning_rate
from llama2_jax.train.run import TrainConfig
from llama2_jax.train.stopping import EXIT_PREEMPTED, Preempted
from tests.train.tiny_run import (
    BATCH,
    LENGTH,
    RATES,
    assert_bitwise_equal,
    batch,
    batches,
    make_config,
    make_run,
    without_rates,
)

Batches = Callable[[int], Iterator[TokenBatch]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, train(make_run(), make_config(), workdir)


def batches_with(event: Callable[[], Any], *, before_step: int) -> Batches:
    """The usual batches; ``event`` happens when the batch of update ``before_step`` is asked for."""

    def generate(start: int) -> Iterator[TokenBatch]:
        for step in range(start, 10**6):
            if step + 1 == before_step:
                event()
            yield batch(step)

    return generate


def poisoned(at_step: int) -> Batches:
    """The usual batches, but that of update ``at_step`` gives an infinite loss."""

    def generate(start: int) -> Iterator[TokenBatch]:
        for step in range(start, 10**6):
            bad = np.full((BATCH, LENGTH), np.inf, np.float32)
            yield batch(step)._replace(loss_mask_BT=bad) if step + 1 == at_step else batch(step)

    return generate


def checkpoint_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def crash() -> None:
    raise RuntimeError("the machine is gone")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_metrics_of_every_step(uninterrupted: tuple[Path, TrainState]) -> None:
    updates = [line for line in read_metrics(uninterrupted[0]) if "train/loss" in line]
    assert [line["step"] for line in updates] == list(range(1, 13))
    per_batch = BATCH // 2 * LENGTH + BATCH // 2 * (LENGTH - 2)
    expected = learning_rate(np.arange(12), make_run().optimizer, num_steps=12)
    for line in updates:
        assert line["train/tokens_seen"] == line["step"] * per_batch
        assert line["train/tokens"] == per_batch
        assert line["train/loss"] > 0
        assert line["train/grad_norm"] > 0
        assert line["train/learning_rate"] == float(expected[line["step"] - 1])


def test_rates_only_on_log_steps_and_never_with_compilation(
    uninterrupted: tuple[Path, TrainState], tmp_path: Path
) -> None:
    for name in RATES:
        timed = [line["step"] for line in read_metrics(uninterrupted[0]) if name in line]
        assert timed == [3, 6, 9, 12]
    train(make_run(), make_config(num_steps=3, log_every_steps=1), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path) if RATES[0] in line] == [2, 3]


def test_both_mfu_conventions_differ_by_half_the_attention(uninterrupted: tuple[Path, TrainState]) -> None:
    line = next(line for line in read_metrics(uninterrupted[0]) if RATES[0] in line)
    attention = 12 * 1 * LENGTH * 2 * 8
    difference = line["train/mfu_full_no_embed"] - line["train/mfu_causal_no_embed"]
    assert difference == pytest.approx(line["train/tokens_per_sec"] * attention / 2 / 1e12, rel=1e-6)


def test_evaluations_before_the_first_and_after_the_last_update(
    uninterrupted: tuple[Path, TrainState],
) -> None:
    steps = [line["step"] for line in read_metrics(uninterrupted[0]) if "eval/heldout/loss" in line]
    assert steps == [0, 12]


def test_evaluations_and_the_checkpoints_that_are_kept_come_every_so_many_steps(tmp_path: Path) -> None:
    often = {"eval_every_steps": 3, "checkpoint_every_steps": 1, "keep_last": 1, "keep_every_steps": 3}
    train(make_run(), make_config(num_steps=7, **often), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path) if "eval/heldout/loss" in line] == [0, 3, 6, 7]
    assert checkpoint_steps(tmp_path) == [3, 6, 7]


def test_random_parameters_are_those_of_the_seed(tmp_path: Path) -> None:
    first, second = (
        train(make_run(), make_config(num_steps=1, seed=seed), tmp_path / str(seed)).params["embedding_VD"]
        for seed in (1, 2)
    )
    assert not np.array_equal(first, second)


def test_the_loss_is_of_as_many_rows_at_a_time_as_the_config_says(tmp_path: Path) -> None:
    run = make_run()
    rows: set[int] = set()

    def loss(params: Params, part: TokenBatch) -> LossSums:
        rows.add(part.tokens_BT.shape[0])
        return run.loss(params, part)

    train(make_run(loss=loss), make_config(num_steps=1, accumulation_steps=4), tmp_path)
    assert rows == {BATCH // 4}


def test_tensorboard_events_are_written(uninterrupted: tuple[Path, TrainState]) -> None:
    events = list((uninterrupted[0] / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    assert b"train/loss" in events[0].read_bytes()


def test_plain_progress_lines_when_stderr_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(make_run(), make_config(num_steps=4, log_every_steps=2), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("test step 2/4  loss ") for line in lines)
    assert any(
        line.startswith("test step 4/4  loss ") and "tok/s" in line and "MFU" in line for line in lines
    )
    assert any(line.startswith("test step 0: eval/heldout/loss") for line in lines)


def test_crashed_run_continues_bit_for_bit(uninterrupted: tuple[Path, TrainState], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train(make_run(batches=batches_with(crash, before_step=8)), make_config(), tmp_path)
    assert checkpoint_steps(tmp_path) == [4]
    state = train(make_run(), make_config(), tmp_path)
    assert_bitwise_equal(state, uninterrupted[1])
    assert without_rates(tmp_path) == without_rates(uninterrupted[0])
    assert read_meta(tmp_path)[1] == read_meta(uninterrupted[0])[1]
    assert read_meta(tmp_path)[1]["config"] == make_run().config


def test_run_that_crashed_before_its_first_checkpoint_writes_no_line_twice(
    uninterrupted: tuple[Path, TrainState], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train(make_run(batches=batches_with(crash, before_step=3)), make_config(), tmp_path)
    train(make_run(), make_config(), tmp_path)
    assert without_rates(tmp_path) == without_rates(uninterrupted[0])


def test_sigterm_saves_and_continues_bit_for_bit(
    uninterrupted: tuple[Path, TrainState], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    previous = signal.getsignal(signal.SIGTERM)
    with caplog.at_level(logging.WARNING), pytest.raises(Preempted) as stopped:
        train(make_run(batches=batches_with(terminate, before_step=6)), make_config(), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is previous
    assert stopped.value.code == EXIT_PREEMPTED == 75
    assert stopped.value.step == 6
    assert "stopped by SIGTERM after step 6" in caplog.text
    assert checkpoint_steps(tmp_path) == [4, 6]
    state = train(make_run(), make_config(), tmp_path)
    assert_bitwise_equal(state, uninterrupted[1])
    assert without_rates(tmp_path) == without_rates(uninterrupted[0])


def test_sigterm_in_the_last_step_finds_the_run_finished(
    uninterrupted: tuple[Path, TrainState], tmp_path: Path
) -> None:
    state = train(make_run(batches=batches_with(terminate, before_step=12)), make_config(), tmp_path)
    assert_bitwise_equal(state, uninterrupted[1])


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    """As in a notebook: Python takes handlers from the main thread alone."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(train, make_run(), make_config(num_steps=1), tmp_path).result()
    assert checkpoint_steps(tmp_path) == [1]


def test_finished_run_returns_its_state_without_training(
    uninterrupted: tuple[Path, TrainState],
) -> None:
    before = (uninterrupted[0] / "metrics.jsonl").read_bytes()
    state = train(make_run(batches=batches_with(crash, before_step=13)), make_config(), uninterrupted[0])
    assert_bitwise_equal(state, uninterrupted[1])
    assert (uninterrupted[0] / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("bad_step", [6, 8])  # between checkpoints, and at one
def test_infinite_loss_names_metric_step_and_last_good_checkpoint(tmp_path: Path, bad_step: int) -> None:
    with pytest.raises(NonFiniteError) as stopped:
        train(make_run(batches=poisoned(bad_step)), make_config(), tmp_path)
    message = str(stopped.value)
    assert re.search(rf"train/loss is (nan|inf)\b.* at step {bad_step};", message)
    assert f"last good checkpoint: step 4 in {tmp_path}" in message
    assert checkpoint_steps(tmp_path) == [4]
    assert [line["step"] for line in read_metrics(tmp_path) if "train/loss" in line] == list(
        range(1, bad_step)
    )


def test_infinite_loss_at_an_evaluated_step_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="last good checkpoint: step 4 in"):
        train(make_run(batches=poisoned(6)), make_config(eval_every_steps=3), tmp_path)


def test_an_evaluation_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    run = make_run(evaluate=lambda step, params: {"eval/heldout/loss": float("nan")})
    with pytest.raises(
        NonFiniteError, match="eval/heldout/loss is nan at step 0; last good checkpoint: none"
    ):
        train(run, make_config(), tmp_path)


def test_lines_up_to_a_checkpoint_are_on_disk_when_it_is(tmp_path: Path) -> None:
    """A killed run that continues from there will not write them again."""
    seen: list[int] = []

    def look() -> None:
        seen.extend(line["step"] for line in read_metrics(tmp_path) if "train/loss" in line)

    config = make_config(num_steps=6, log_every_steps=100)
    train(make_run(batches=batches_with(look, before_step=6)), config, tmp_path)
    assert seen == [1, 2, 3, 4]


def test_parameters_that_overflow_are_never_saved(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=3e38, warmup_steps=0)
    with pytest.raises(
        NonFiniteError, match="train/param_norm is (inf|nan) at step 1; last good checkpoint: none"
    ):
        train(make_run(optimizer=optimizer), make_config(checkpoint_every_steps=1), tmp_path)
    assert checkpoint_steps(tmp_path) == []


def test_after_a_non_finite_stop_the_run_continues_from_the_last_good_checkpoint(
    uninterrupted: tuple[Path, TrainState], tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteError):
        train(make_run(batches=poisoned(10)), make_config(), tmp_path)
    state = train(make_run(), make_config(), tmp_path)
    assert_bitwise_equal(state, uninterrupted[1])


def test_profile_writes_a_trace(tmp_path: Path) -> None:
    train(make_run(), make_config(num_steps=4, profile_steps="1:3"), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_profile_is_of_the_updates_after_the_first_up_to_the_last_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []

    def listed(start: int) -> Iterator[TokenBatch]:
        for step in range(start, 10**6):
            events.append(step + 1)
            yield batch(step)

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    config = make_config(num_steps=5, profile_steps="2:4")
    train(make_run(batches=listed), config, tmp_path / "one")
    assert events == [1, 2, "start", 3, 4, "stop", 5]
    events.clear()
    monkeypatch.setattr(loop, "writes", lambda: False)  # another process does
    train(make_run(batches=listed), config, tmp_path / "other")
    assert events == [1, 2, 3, 4, 5]


def test_profile_range_entered_by_a_resumed_run_and_left_by_the_end(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train(make_run(batches=batches_with(crash, before_step=6)), make_config(), tmp_path)
    train(make_run(), make_config(num_steps=12, profile_steps="2:6"), tmp_path)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    unfinished = tmp_path / "unfinished"
    train(make_run(), make_config(num_steps=3, profile_steps="2:100"), unfinished)
    assert list((unfinished / "profile").rglob("*.xplane.pb"))


def test_other_tokenizer_or_data_than_the_checkpoints_is_refused(
    uninterrupted: tuple[Path, TrainState],
) -> None:
    other = make_run(meta={"tokenizer_hash": "xyz"})
    with pytest.raises(ConfigError, match="tokenizer_hash: 'abc' -> 'xyz'"):
        train(other, make_config(), uninterrupted[0])
    train(dataclasses.replace(other, accept_changed_config=True), make_config(), uninterrupted[0])


def test_a_run_goes_on_at_its_place_in_the_data_or_not_at_all(
    uninterrupted: tuple[Path, TrainState],
) -> None:
    twice = make_run(items_per_step=2 * BATCH, accept_changed_config=True)
    with pytest.raises(ConfigError, match="made with 8 rows or pairs per update, the config has 16"):
        train(twice, make_config(), uninterrupted[0])
    with pytest.raises(ConfigError, match=r"of step 12, the run is to end at step 8"):
        train(make_run(accept_changed_config=True), make_config(num_steps=8), uninterrupted[0])


def test_model_of_other_shape_is_refused_and_nothing_is_set_aside(
    uninterrupted: tuple[Path, TrainState],
) -> None:
    run = make_run(accept_changed_config=True)
    wider = dataclasses.replace(run.model.config, feed_forward_width=48)
    run = dataclasses.replace(run, model=type(run.model)(wider, run.partitioner))
    with pytest.raises(CheckpointError, match=r"w_gate_DF: \(1, 16, 32\) -> \(1, 16, 48\)"):
        train(run, make_config(), uninterrupted[0])
    assert checkpoint_steps(uninterrupted[0]) == [8, 12]


def test_batch_size_must_fit_accumulation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 8 is not divisible by 3"):
        train(make_run(), make_config(accumulation_steps=3), tmp_path)


def test_documents_in_two_pieces_are_refused_before_the_step(tmp_path: Path) -> None:
    def broken(start: int) -> Iterator[TokenBatch]:
        for step, good in enumerate(batches(start), start=start):
            segments = np.array(good.segment_ids_BT)
            if step == 1:
                segments[2, :4] = [1, 2, 2, 1]
            yield good._replace(segment_ids_BT=segments)

    with pytest.raises(ConfigError, match="row 2 document 1 begins after document 2"):
        train(make_run(batches=broken), make_config(), tmp_path)


def test_spikes_of_the_loss_are_kept_over_a_restart(tmp_path: Path) -> None:
    def spike_at_25(start: int) -> Iterator[TokenBatch]:
        for step in range(start, 10**6):
            yield batch(1 if step == 24 else 0)  # at this learning rate the same batch keeps its loss

    run = make_run(batches=spike_at_25, optimizer=OptimizerConfig(learning_rate=1e-9))
    train(run, make_config(num_steps=26, checkpoint_every_steps=26), tmp_path)
    assert [step for step, _ in read_meta(tmp_path)[1]["loss_spikes"]] == [25]
    longer = train(run, make_config(num_steps=28, checkpoint_every_steps=28), tmp_path)
    assert [step for step, _ in read_meta(tmp_path)[1]["loss_spikes"]] == [25]
    assert longer.opt_state[-1].num_steps == 28  # the schedule is that of the longer run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "train.num_steps = 0 must be positive"),
        ({"keep_last": 0}, "train.keep_last = 0 must be positive"),
        ({"log_every_steps": 0}, "train.log_every_steps = 0 must be positive"),
        ({"checkpoint_every_steps": 0}, "train.checkpoint_every_steps = 0 must be positive"),
        ({"accumulation_steps": 0}, "train.accumulation_steps = 0 must be positive"),
        ({"loss_chunk": -1}, "train.loss_chunk = -1 must not be negative"),
        ({"eval_every_steps": -1}, "train.eval_every_steps = -1 must not be negative"),
        ({"keep_every_steps": -1}, "train.keep_every_steps = -1 must not be negative"),
        ({"profile_steps": "5"}, "must be FIRST:LAST"),
        ({"profile_steps": "5:5"}, "must be FIRST:LAST"),
    ],
)
def test_train_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"num_steps": 1, **changes})


def test_batches_start_at_the_step(tmp_path: Path) -> None:
    """The fixture itself: a batch depends on its number only."""
    first, second = batches(3), batches(4)
    next(first)
    assert_bitwise_equal(jax.tree.map(np.asarray, next(first)), jax.tree.map(np.asarray, next(second)))
