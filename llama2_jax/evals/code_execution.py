"""Programs that a model wrote, run with their tests: HumanEval, MBPP.

Each runs in a process of its own, in an empty folder, without input, with limits of time, memory and size of
files, and is killed with all that it started. Processes, the network and files elsewhere are refused by
Python itself (``code_child.py``), which is a fence against accidents: what must be safe runs in a container
or a virtual machine without network. Linux only.
"""

import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama2_jax.config import require

PASSED, TIMED_OUT, NO_ANSWER = "passed", "timed out", "ended the process"
MEMORY_BYTES = 1 << 30
WALL = 10  # times the processor's time: a busy machine is no fault of the program
START_SECS = 10  # Python's own, on a busy machine
CHILD = Path(__file__).with_name("code_child.py")
INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG")


def check_execution() -> None:
    """Raise ``ConfigError`` unless programs run here: without it, every one would fail."""
    require(
        sys.platform == "linux",  # macOS refuses the limit of memory, and to signal a group that has ended
        f"programs can be judged on Linux only, and this machine's system is {sys.platform!r}; use another "
        "machine, or a container",
    )
    for program, expected in (("assert True", PASSED), ("assert False", "AssertionError")):
        outcome = run_program(program, timeout_secs=60)
        require(
            outcome == expected,
            f"the program {program!r} gave {outcome!r} instead of {expected!r}, so programs cannot be "
            "judged on this machine; it must let a process set its own limits (ulimit)",
        )


def run_programs(programs: Sequence[str], *, timeout_secs: float, num_workers: int) -> list[str]:
    """``run_program`` of each, ``num_workers`` at a time."""
    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(lambda program: run_program(program, timeout_secs=timeout_secs), programs))


def run_program(program: str, *, timeout_secs: float) -> str:
    """How a Python program ended.

    Args:
      timeout_secs: of the processor, without Python's start; by the clock it has ``WALL`` times as long.

    Returns:
      "passed" if it came to its end; "timed out"; "ended the process" if it did so itself, or the system did;
      else the name of the exception, such as "AssertionError" or "MemoryError".
    """
    token = secrets.token_hex(16)  # what no program prints by chance
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        Path(folder, "program.py").write_text(program, encoding="utf-8", newline="")
        process = subprocess.Popen(
            [
                sys.executable,
                "-s",
                "-P",
                "-B",
                str(CHILD),
                token,
                str(MEMORY_BYTES),
                str(timeout_secs),
                str(WALL * timeout_secs),
            ],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout as answer:
            try:
                written = select.poll()  # select.select() knows only the first 1024 files of a process
                written.register(answer, select.POLLIN)
                ready = written.poll(1000 * (WALL * timeout_secs + START_SECS))
                word = os.read(answer.fileno(), 200).decode(errors="replace") if ready else TIMED_OUT
            finally:  # before its end is noted: until then the group cannot be another's
                os.killpg(process.pid, signal.SIGKILL)
                ended_by = -process.wait()
    if word == token:
        return PASSED
    if not word and ended_by in (signal.SIGPROF, signal.SIGALRM, signal.SIGXCPU):
        return TIMED_OUT
    return NO_ANSWER if word in ("", PASSED) else word  # an exception can have any name


def _environment(folder: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {
        **inherited,
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONHASHSEED": "0",  # sets of texts have the same order every time
        "PYTHONUTF8": "1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy's threads would take the memory
    }
