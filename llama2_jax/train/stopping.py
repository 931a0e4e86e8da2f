"""To be told to stop, and to stop with everything saved."""

import contextlib
import signal
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
from absl import logging

from llama2_jax.sharding.processes import any_of_all

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again", distinct from success and from any error


class Preempted(SystemExit):
    """SIGTERM arrived and the checkpoint is on disk; exits with ``EXIT_PREEMPTED``."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.step = step


def end_early(unit: str, number: int, workdir: Path) -> NoReturn:
    """Say after which ``unit`` (step or iteration) a run in ``workdir`` stops, and raise ``Preempted``."""
    logging.warning("stopped by SIGTERM after %s %d; start again in %s to continue", unit, number, workdir)
    raise Preempted(number)


class StopRequest:
    """Turns a signal into a flag while in scope, so that a step is never cut in half.

    Python's own way, an exception at any line, is lost where it meets a callback of the runtime.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        self.requested = False  # of this process
        self._signum = signum
        self._flags: jax.Array | None = None  # of all processes, after the step before

    def after_step(self) -> bool:
        """Whether to stop, the same for all processes; each asks once after every step.

        Of several processes it is what they were told one step ago, so that none waits for the devices.
        """
        if jax.process_count() == 1:
            return self.requested
        before, self._flags = self._flags, any_of_all(self.requested)
        return before is not None and bool(before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> "StopRequest":
        self._previous: Any = None
        with contextlib.suppress(ValueError):  # not the main thread (a notebook): the default handling stays
            self._previous = signal.signal(self._signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(self._signum, self._previous)
