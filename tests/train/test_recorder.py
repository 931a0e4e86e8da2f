from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2_jax.train import recorder
from llama2_jax.train.metrics import read_metrics
from tests.train.tiny_run import make_config, make_run, partitioner


def record(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, *, steps: int, log: int, paused: float = 0.0, **run: Any
) -> list[dict[str, Any]]:
    """The lines of a run of 40 tokens and two seconds a step, after 100 of compilation.

    Args:
      paused: seconds before the last step that are no training.
    """
    now = 0.0
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: now)
    config = make_config(num_steps=steps, log_every_steps=log)
    taker = recorder.Recorder(make_run(**run), config, workdir, start_step=0, meta={})
    for step in range(1, steps + 1):
        now += 100.0 if step == 1 else 2.0
        metrics = {"loss": np.float32(1.0), "source_tokens": np.array([30, 10])}
        taker.add(step, metrics, last_checkpoint="none")
        if paused and step == steps - 1:
            with taker.pause(last_checkpoint="none"):
                now += paused
    taker.settle(last_checkpoint="none")
    taker.close()
    return read_metrics(workdir)


@pytest.mark.parametrize("paused", [0.0, 1000.0])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_rates_count_every_step_but_the_first_and_no_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, paused: float
) -> None:
    lines = record(tmp_path, monkeypatch, steps=steps, log=steps, paused=paused)
    assert lines[-1]["train/tokens_per_sec"] == pytest.approx(40 / 2.0)


def test_the_last_step_has_a_rate_though_it_is_no_log_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = record(tmp_path, monkeypatch, steps=5, log=3)
    assert [line["step"] for line in lines if "train/tokens_per_sec" in line] == [3, 5]


def test_the_time_left_is_that_of_the_steps_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, monkeypatch, steps=9, log=5)
    # step 5 is read when step 6 is queued: five intervals of two seconds for steps 2 to 5, and four left
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("test step")]
    assert [line.rsplit("  ", 1)[1] for line in lines] == ["0:10 left", "0:00 left"]


def test_mfu_is_of_all_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = record(tmp_path / "one", monkeypatch, steps=4, log=4)[-1]
    mesh = partitioner("fsdp", fsdp=8)
    eight = record(tmp_path / "eight", monkeypatch, steps=4, log=4, partitioner=mesh)[-1]
    assert eight["train/mfu_full_no_embed"] == pytest.approx(one["train/mfu_full_no_embed"] / 8)


def test_mfu_of_a_model_with_one_output_has_no_vocabulary_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = record(tmp_path / "whole", monkeypatch, steps=4, log=4)[-1]
    head = record(tmp_path / "head", monkeypatch, steps=4, log=4, num_outputs=1)[-1]
    assert head["train/mfu_full_no_embed"] < 0.9 * whole["train/mfu_full_no_embed"]
