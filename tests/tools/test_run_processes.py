import os
import signal
import subprocess
import sys
import time

import pytest

from tools import run_processes

FLAGS = """
import sys, time
number = int(sys.argv[3].removeprefix("--process_id="))
"""


def start(code: str, *, processes: int = 3, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tools.run_processes", f"--processes={processes}", "--"]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [*command, sys.executable, "-c", FLAGS + code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_every_process_learns_of_the_others() -> None:
    process = start("print(*sys.argv[1:])")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    address, count, number = out.split()
    assert address.startswith("--coordinator_address=127.0.0.1:")
    assert (count, number) == ("--num_processes=3", "--process_id=0")
    assert sorted(line.split()[0] for line in err.splitlines()) == ["[1]", "[2]"]
    assert all(address in line for line in err.splitlines())


def test_one_that_fails_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_processes, "GRACE_SECS", 0.5)
    start_time = time.monotonic()
    code = FLAGS + "sys.exit(7) if number == 1 else time.sleep(100)"
    assert run_processes.run([sys.executable, "-c", code], processes=2) == 7
    assert time.monotonic() - start_time < 50


def test_sigterm_goes_to_all() -> None:
    code = """
import signal
def stop(*_):
    print("stopped", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.1)  # short: a signal that comes just before a sleep does not end it
"""
    process = start(code, processes=2)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    assert process.stderr.readline() == "[1] ready\n"
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert (out, err) == ("stopped\n", "[1] stopped\n")


@pytest.mark.parametrize("arguments", [["--processes=0", "--", "true"], ["--processes=2"]])
def test_mistakes_are_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run_processes", *arguments])
    with pytest.raises(SystemExit) as failure:
        run_processes.main()
    assert failure.value.code == 2
