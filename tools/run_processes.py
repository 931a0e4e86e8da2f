"""Start a program in several processes on this machine: to try out a cluster, or one process per GPU.

    python -m tools.run_processes --processes=2 -- python -m experiments.pretrain --config=... --workdir=...

The flags that tell the processes of each other are appended, and process I gets GPU I where there are any.
All but the first write their output behind their number. SIGTERM and Ctrl-C go to all of them; when one
fails, the others are stopped.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from tools import command_line

GRACE_SECS = 30  # that the others have to end by themselves after one failed


def run(command: Sequence[str], *, processes: int) -> int:
    """Run ``command`` as ``processes`` processes; returns the first exit code that is not 0, or 0."""
    port = _free_port()
    started: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(signum)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        for number in range(processes):
            started.append(_start(command, number, processes, port))
        outputs = [_show(process, number) for number, process in enumerate(started) if process.stdout]
        code = _wait(started)
    finally:
        for process in started:
            process.kill()
        signal.signal(signal.SIGTERM, before)
    for output in outputs:
        output.join()
    return code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: Sequence[str], number: int, processes: int, port: int) -> subprocess.Popen[bytes]:
    flags = [
        f"--coordinator_address=127.0.0.1:{port}",
        f"--num_processes={processes}",
        f"--process_id={number}",
    ]
    environment = {"JAX_LOCAL_DEVICE_IDS": str(number), **os.environ}  # of GPUs; what was set before stays
    output = {} if number == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *flags], env=environment, **output)  # type: ignore[call-overload]


def _show(process: subprocess.Popen[bytes], number: int) -> threading.Thread:
    """Pass on what the process writes, line by line."""

    def pass_on() -> None:
        for line in process.stdout or ():
            sys.stderr.write(f"[{number}] {line.decode(errors='replace')}")

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    return thread


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended, or ``GRACE_SECS`` after one failed."""
    until = float("inf")
    while True:
        codes = [process.poll() for process in started]
        failed = next((code for code in codes if code), 0)
        if failed:
            until = min(until, time.monotonic() + GRACE_SECS)
        if None not in codes or time.monotonic() > until:
            return failed
        time.sleep(0.1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.processes < 1 or not command:
        parser.error("give --processes of at least 1, and a command after --")
    sys.exit(run(command, processes=args.processes))


if __name__ == "__main__":
    command_line.run(main)
