"""What a person sees while training or sampling: a bar on a terminal, plain lines otherwise."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llama2_jax.files import writes

T = TypeVar("T")
LINE_SECS = 30.0  # between two lines of ``counted``


class ProgressReport:
    """Shows how far a run is and a text of its own, in the process that writes."""

    def __init__(self, name: str, *, num_steps: int, start_step: int, unit: str = "step ") -> None:
        self._name, self._num_steps, self._quiet, self._unit = name, num_steps, not writes(), unit
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not self._quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=num_steps, completed=start_step, text="compiling")
            self._bar.start()

    def step(self, step: int, text: str | None = None) -> None:
        """Advance to ``step``; ``text`` replaces the numbers shown."""
        if self._bar:
            fields: dict[str, Any] = {} if text is None else {"text": text}
            self._bar.update(self._task, completed=step, **fields)
        elif text is not None and not self._quiet:
            print(f"{self._name} {self._unit}{step}/{self._num_steps}  {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar:
            self._bar.stop()


def counted(name: str, items: Sequence[T], *, size: int, done: int = 0) -> Iterator[Sequence[T]]:
    """Items in batches of ``size``; if there are several, a bar or now and then a line says how far one is.

    Args:
      name: "" shows nothing.
      done: items that were there before.
    """
    batches = [items[first : first + size] for first in range(0, len(items), size)]
    if not name or len(batches) < 2:
        yield from batches
        return
    report = ProgressReport(name, num_steps=done + len(items), start_step=done, unit="")
    made, start = 0, time.monotonic()
    said = start
    with contextlib.closing(report):
        for batch in batches:
            yield batch
            made, now = made + len(batch), time.monotonic()
            is_due = now - said >= LINE_SECS
            said = now if is_due else said
            report.step(done + made, f"{made / (now - start):.3g} per second" if is_due else None)


def rate_text(metrics: dict[str, float], *, secs_left: float) -> str:
    """``loss 2.3456  12,345 tok/s  MFU 45.6 %  1:23 left`` from the metrics of a log step."""
    minutes, secs = divmod(round(secs_left), 60)
    return (
        f"loss {metrics['train/loss']:.4f}  {metrics['train/tokens_per_sec']:,.0f} tok/s  "
        f"MFU {100 * metrics['train/mfu_causal_no_embed']:.1f} %  {minutes}:{secs:02d} left"
    )
