"""To be told to stop, and to stop with everything saved."""

import contextlib
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again", distinct from success and from any error


class Preempted(SystemExit):
    """SIGTERM arrived and the checkpoint is on disk; exits with ``EXIT_PREEMPTED``."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.step = step


class StopRequest:
    """Turns a signal into a flag while in scope, so that a step is never cut in half.

    Python's own way, an exception at any line, is lost where it meets a callback of the runtime. Of several
    processes jax takes the signal: when one gets it, all learn the same next step to stop after.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        self.requested = False  # of one process
        self._signum = signum

    def after(self, step: int) -> bool:
        """Whether to stop now; to be asked once after every step, by every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> "StopRequest":
        self._previous: Any = None
        if jax.process_count() > 1:
            return self
        with contextlib.suppress(ValueError):  # not the main thread (a notebook): the default handling stays
            self._previous = signal.signal(self._signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(self._signum, self._previous)
