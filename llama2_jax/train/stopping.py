"""To be told to stop, and to stop with everything saved."""

import signal
from types import FrameType
from typing import Any

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again", distinct from success and from any error


class Preempted(SystemExit):
    """SIGTERM arrived and the checkpoint is on disk; exits with ``EXIT_PREEMPTED``."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.step = step


class StopRequest:
    """Turns a signal into a flag while in scope, so that a step is never cut in half.

    Python's own way, an exception at any line, is lost where it meets a callback of the runtime.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        self.requested = False
        self._signum = signum

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> "StopRequest":
        try:
            self._previous: Any = signal.signal(self._signum, self._handle)
        except ValueError:  # not the main thread (a notebook): the default handling stays
            self._previous = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(self._signum, self._previous)
