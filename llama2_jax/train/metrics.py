"""Where numbers go: ``metrics.jsonl``, TensorBoard, and the check that they are finite."""

import collections
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from absl import logging

from llama2_jax.config import UserError
from llama2_jax.data.jsonl import read_appended, write_rows
from llama2_jax.files import naming, writes


class NonFiniteError(UserError, FloatingPointError):
    """A metric became NaN or infinite; the message names it, the step and the last good checkpoint."""


class MetricsWriter:
    """Appends scalars to ``workdir/metrics.jsonl`` and to TensorBoard events, in the process that writes.

    On a resume, lines of steps that will run again are dropped first, so every step is
    written once. From step 0 that is every line, incl. an evaluation before the first update.
    """

    def __init__(self, workdir: Path, *, resume_step: int = 0) -> None:
        path = Path(workdir) / "metrics.jsonl" if writes() else Path(os.devnull)
        if writes():
            last_kept = resume_step if resume_step else -1
            write_rows(path, [line for line in read_metrics(workdir) if line["step"] <= last_kept])
        self._path, self._file = path, path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(
            str(Path(workdir) / "tensorboard"), purge_step=resume_step + 1, write_to_disk=writes()
        )

    def write(self, step: int, metrics: dict[str, Any], *, to_board: bool = True) -> None:
        """Record the metrics after update number ``step`` (1-based).

        Args:
          to_board: also for TensorBoard, whose writer takes longer for a number than this for a line.
        """
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if not to_board:
            return
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make everything written so far visible to readers."""
        with naming(self._path):
            self._file.flush()
            self._board.flush()

    def close(self) -> None:
        """Flush and close."""
        with naming(self._path):
            self._file.close()
            self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All lines of ``metrics.jsonl``, in order, as ``read_appended``; none if it is not there."""
    return read_appended(Path(workdir) / "metrics.jsonl", dict)


def require_finite(step: int, metrics: dict[str, float], *, last_checkpoint: str) -> None:
    """Raise ``NonFiniteError`` that names every metric which is NaN or infinite."""
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{', '.join(bad)} at step {step}; last good checkpoint: {last_checkpoint}. "
            "Lower config.optimizer.learning_rate or look at the batch of this step"
        )


class LossMonitor:
    """Stops on NaN or infinity, reports spikes of the loss.

    A spike is a loss more than ``sigmas`` standard deviations above the mean of the last
    ``window`` steps (at least 20 of them).
    """

    def __init__(self, *, window: int = 100, sigmas: float = 6.0) -> None:
        self._recent: collections.deque[float] = collections.deque(maxlen=window)
        self._sigmas = sigmas
        self.spikes: list[tuple[int, float]] = []

    def check(self, step: int, metrics: dict[str, float], *, last_checkpoint: str) -> None:
        """Look at the metrics after update number ``step``.

        Raises:
          NonFiniteError: one of them is NaN or infinite.
        """
        require_finite(step, metrics, last_checkpoint=last_checkpoint)
        loss = metrics["train/loss"]
        if len(self._recent) >= 20:
            mean, deviation = np.mean(self._recent), np.std(self._recent)
            if loss > mean + self._sigmas * max(deviation, 1e-6 * abs(mean)):
                self.spikes.append((step, loss))
                logging.warning(
                    "loss spike: %.4f at step %d; the last %d steps had %.4f +- %.4f",
                    loss, step, len(self._recent), mean, deviation,
                )  # fmt: skip
        self._recent.append(loss)
