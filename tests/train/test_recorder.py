from pathlib import Path

import numpy as np
import pytest

from llama2_jax.train import recorder
from llama2_jax.train.metrics import read_metrics
from tests.train.tiny_run import make_config, make_run


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_rates_count_every_step_but_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    now = 0.0
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: now)
    config = make_config(num_steps=steps, log_every_steps=steps)
    taker = recorder.Recorder(make_run(), config, tmp_path, start_step=0, meta={})
    for step in range(1, steps + 1):
        now += 100.0 if step == 1 else 2.0  # compilation, then two seconds a step
        metrics = {"loss": np.float32(1.0), "source_tokens": np.array([30, 10])}
        taker.add(step, metrics, last_checkpoint="none")
    taker.settle(last_checkpoint="none")
    taker.close()
    assert read_metrics(tmp_path)[-1]["train/tokens_per_sec"] == pytest.approx(40 / 2.0)
