"""Start a programme in several processes on this machine: to try out a cluster, or one process per GPU.

    python -m tools.run_processes --processes=2 -- python -m experiments.pretrain --config=... --workdir=...

The flags that tell the processes of each other are appended. All but the first write their output behind
their number. SIGTERM goes to all of them; when one fails, the others are stopped.
"""

import argparse
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

GRACE_SECS = 30  # that the others have to end by themselves after one failed


def run(command: Sequence[str], *, processes: int) -> int:
    """Run ``command`` as ``processes`` processes; returns the first exit code that is not 0, or 0."""
    port = _free_port()
    started = [_start(command, number, processes, port) for number in range(processes)]

    def forward(signum: int, frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(signum)

    signal.signal(signal.SIGTERM, forward)
    try:
        return _wait(started)
    finally:
        for process in started:
            process.kill()


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
    if number == 0:
        return subprocess.Popen([*command, *flags])
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    threading.Thread(target=_show, args=(process, number), daemon=True).start()
    return process


def _show(process: subprocess.Popen[bytes], number: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stderr.write(f"[{number}] {line.decode(errors='replace')}")


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
    main()
