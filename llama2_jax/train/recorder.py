"""The bookkeeping of a run: rates, totals, finite checks, and who gets told."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama2_jax.train.flops import flops_per_token, mfu, peak_flops
from llama2_jax.train.metrics import LossMonitor, MetricsWriter, require_finite
from llama2_jax.train.optimizer import learning_rate
from llama2_jax.train.progress import ProgressReport, rate_text
from llama2_jax.train.run import TrainConfig, TrainRun

MFU_CONVENTIONS = ("full_no_embed", "causal_no_embed")


class Recorder:
    """Takes device metrics step by step, one step behind, so that the device never waits."""

    def __init__(
        self, run: TrainRun, config: TrainConfig, workdir: Path, *, start_step: int, meta: dict[str, Any]
    ) -> None:
        self._run, self._config = run, config
        self._writer = MetricsWriter(workdir, resume_step=start_step)
        self._progress = ProgressReport(run.name, num_steps=config.num_steps, start_step=start_step)
        self._monitor = LossMonitor()
        self._monitor.spikes += [(step, loss) for step, loss in meta.get("loss_spikes", [])]
        self._source_tokens = dict.fromkeys(run.source_names, 0) | dict(meta.get("source_tokens", {}))
        self._peak_flops, _ = peak_flops(config.peak_flops)
        # of all steps at once: an operation of its own would wait for the step that runs meanwhile
        self._learning_rates = np.asarray(
            learning_rate(np.arange(config.num_steps), run.optimizer, num_steps=config.num_steps)
        )
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._clock = _Clock()

    def add(self, step: int, metrics: dict[str, jax.Array], *, last_checkpoint: str) -> None:
        """Queue this step's metrics and record those of the step before it."""
        self.settle(last_checkpoint=last_checkpoint)
        self._pending = (step, metrics)
        if self._clock.compiling:  # wait this once: the clock starts where the first step ends
            self.settle(last_checkpoint=last_checkpoint)

    def settle(self, *, last_checkpoint: str) -> None:
        """Wait for the queued step and record it.

        Raises:
          NonFiniteError: a metric is NaN or infinite.
        """
        if self._pending is None:
            return
        step, device_metrics = self._pending
        self._pending = None
        values = jax.device_get(device_metrics)
        source_tokens = np.asarray(values.pop("source_tokens")).tolist()
        record = {f"train/{name}": float(value) for name, value in values.items()}
        self._monitor.check(step, record, last_checkpoint=last_checkpoint)
        for name, count in zip(self._run.source_names, source_tokens, strict=True):
            self._source_tokens[name] += count
        record["train/learning_rate"] = float(self._learning_rates[step - 1])
        record["train/tokens_seen"] = sum(self._source_tokens.values())
        self._clock.count(sum(source_tokens))
        self._report(step, record)

    def _report(self, step: int, record: dict[str, float]) -> None:
        text = None
        if step % self._config.log_every_steps == 0 or step == self._config.num_steps:
            rates = self._clock.rates()
            if rates is not None:  # the first interval holds the compilation: never a rate
                tokens_per_sec, secs_per_step = rates
                record["train/tokens_per_sec"] = tokens_per_sec
                for convention in MFU_CONVENTIONS:
                    record[f"train/mfu_{convention}"] = self._mfu(tokens_per_sec, convention)
                text = rate_text(record, secs_left=(self._config.num_steps - step) * secs_per_step)
            else:
                text = f"loss {record['train/loss']:.4f}  (first steps, with compilation)"
        self._writer.write(step, record, to_board=text is not None)
        if text is not None:
            self._writer.flush()
        self._progress.step(step, text)

    def _mfu(self, tokens_per_sec: float, convention: str) -> float:
        run = self._run
        flops = flops_per_token(
            run.model.config, run.sequence_length, convention=convention, num_outputs=run.num_outputs
        )
        devices = run.partitioner.mesh.size
        return mfu(tokens_per_sec, flops, num_devices=devices, peak_flops=self._peak_flops)

    def add_evaluation(self, step: int, metrics: dict[str, float], *, last_checkpoint: str) -> None:
        """Record numbers of an evaluation after ``step`` updates (in ``pause``: nothing is queued).

        Raises:
          NonFiniteError: one of them is NaN or infinite.
        """
        require_finite(step, metrics, last_checkpoint=last_checkpoint)
        if metrics:
            self._writer.write(step, metrics)
            self._writer.flush()
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self._progress.note(f"{self._run.name} step {step}: {shown}")

    def totals(self) -> dict[str, Any]:
        """What must survive a restart: tokens seen per source.

        The lines so far go to disk first: a restart from the checkpoint will not write them again.
        """
        self._writer.flush()
        return {"source_tokens": dict(self._source_tokens), "loss_spikes": list(self._monitor.spikes)}

    @contextlib.contextmanager
    def pause(self, *, last_checkpoint: str) -> Iterator[None]:
        """Time in here (evaluation, saving) does not count as training time.

        Settles first: a state that went bad is neither evaluated nor saved.

        Raises:
          NonFiniteError: see ``settle``.
        """
        self.settle(last_checkpoint=last_checkpoint)
        with self._clock.pause():
            yield

    def close(self) -> None:
        """Close all outputs. Nothing is queued then: the last step of a run is saved, and so settled."""
        self._progress.close()
        self._writer.close()


class _Clock:
    """Tokens and seconds since the last reading, without pauses."""

    def __init__(self) -> None:
        self.compiling = True
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._tokens = self._steps = 0

    def count(self, tokens: int) -> None:
        self._tokens += tokens
        self._steps += 1
        if self.compiling:  # up to here it was compilation
            self.compiling = False
            self._restart()

    def rates(self) -> tuple[float, float] | None:
        """(tokens/s, seconds/step) since the last reading, or None if no whole step was timed."""
        if self._steps == 0:
            return None
        secs = max(time.perf_counter() - self._start, 1e-9)
        rates = self._tokens / secs, secs / self._steps
        self._restart()
        return rates

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start
