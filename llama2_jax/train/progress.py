"""What a person sees while training: a bar on a terminal, plain lines otherwise."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llama2_jax.files import writes


class ProgressReport:
    """Shows loss, tokens/s, MFU and time left of one training run, in the process that writes."""

    def __init__(self, name: str, *, num_steps: int, start_step: int) -> None:
        self._name, self._num_steps, self._quiet = name, num_steps, not writes()
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
            print(f"{self._name} step {step}/{self._num_steps}  {text}", file=sys.stderr, flush=True)

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


def rate_text(metrics: dict[str, float], *, secs_left: float) -> str:
    """``loss 2.3456  12,345 tok/s  MFU 45.6 %  1:23 left`` from the metrics of a log step."""
    minutes, secs = divmod(round(secs_left), 60)
    return (
        f"loss {metrics['train/loss']:.4f}  {metrics['train/tokens_per_sec']:,.0f} tok/s  "
        f"MFU {100 * metrics['train/mfu_causal_no_embed']:.1f} %  {minutes}:{secs:02d} left"
    )
