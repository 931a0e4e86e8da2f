"""What a model may write, run for real. Nothing may be left: no process, no folder."""

import contextlib
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals import code_execution
from llama2_jax.evals.code_execution import check_execution, run_program, run_programs
from tests.evals.linux import needs_linux

pytestmark = needs_linux

TESTS = "\nassert add(2, 3) == 5\n"
RIGHT = "def add(a, b): return a + b"
DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Node:
    value: int
    left: Node | None = None
assert Node(1).value == 1
"""
TEMPORARY = """
import os, tempfile
with tempfile.NamedTemporaryFile("w") as file: file.write("text")
with tempfile.TemporaryDirectory() as folder: open(folder + "/file", "w").close()
assert not os.path.exists(folder)
"""
SPAWN = "import multiprocessing as m, os; m.get_context('spawn').Process(target=os.getpid).start()"


def children() -> set[str]:
    """Of this process, also those that have ended and were not waited for."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            found |= {path.parent.name} if parent == str(os.getpid()) else set()
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = children()
    yield
    assert children() <= before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "outcome"),
    [
        (RIGHT, "passed"),
        ("print('what it prints is no failure')\n" + RIGHT, "passed"),
        ("import dataclasses, math, typing\n" + RIGHT, "passed"),
        ("open('own.txt', 'w').write('in its own folder')\n" + RIGHT, "passed"),
        (TEMPORARY + RIGHT, "passed"),
        ("import os; os.mkdir('a'); os.rename('a', 'b'); os.rmdir('b')\n" + RIGHT, "passed"),
        ("import os, shutil; os.mkdir('a'); shutil.rmtree('a')\n" + RIGHT, "passed"),
        (DATACLASS + RIGHT, "passed"),
        ("import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))\n" + RIGHT, "passed"),
        ("def add(a, b): return a - b", "AssertionError"),
        ("def add(a, b): return", "AssertionError"),
        ("def add(a, b) return a", "SyntaxError"),
        ("def add(a, b): return '''", "SyntaxError"),
        ("def add(a, b): return add(a, b)", "RecursionError"),
        ("print('passed')", "NameError"),
        ("input()", "EOFError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class passed(Exception): pass\nraise passed", "ended the process"),
        ("import os; os._exit(0)", "ended the process"),
        ("import os; os.closerange(0, 99)", "ended the process"),
        ("x = []\nwhile True: x.append(' ' * 10**7)", "MemoryError"),
        ("open('big', 'w').write('a' * 10**7)", "OSError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.Popen(['sleep', '60'])", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        (SPAWN, "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "PermissionError"),
    ],
)
def test_how_a_program_ends(written: str, outcome: str) -> None:
    assert run_program(written + TESTS, timeout_secs=20) == outcome


NO_TIMER = "import signal; signal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass"


@pytest.mark.parametrize("written", ["while True: pass", "import time; time.sleep(60)", NO_TIMER])
def test_a_program_that_does_not_end(written: str) -> None:
    assert run_program(written + TESTS, timeout_secs=0.2) == "timed out"


def test_time_is_the_processors_not_that_of_a_busy_machine() -> None:
    """Others that compute meanwhile are, for the clock, the same as a program that waits."""
    assert run_program("import time; time.sleep(0.5)", timeout_secs=0.2) == "passed"


def test_a_program_ends_also_when_nobody_waits_for_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nobody")
    (folder / "program.py").write_text("import time; time.sleep(60)")
    process = subprocess.run(
        [sys.executable, code_execution.CHILD, "token", str(1 << 30), "0.2", "0.4"], cwd=folder, timeout=30
    )
    assert process.returncode == -signal.SIGALRM


def test_what_it_started_all_the_same_is_killed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "known-to-the-test")
    forks = "import ctypes, time\nif ctypes.CDLL(None).fork() == 0: time.sleep(60)"  # Python does not see it
    assert run_program(forks, timeout_secs=20) == "passed"
    deadline = time.monotonic() + 5
    while (left := processes_with("known-to-the-test")) and time.monotonic() < deadline:
        time.sleep(0.01)  # killed, but not gone yet
    assert left == []


def processes_with(argument: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            found += [path.parent.name] if argument in path.read_text().split("\0") else []
    return found


def test_files_elsewhere_are_not_changed(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("elsewhere") / "kept.txt"
    file.write_text("kept")
    for written in (
        f"open({str(file)!r}, 'w')",
        f"os.remove({str(file)!r})",
        f"os.rename({str(file)!r}, 'stolen')",
        f"os.remove({file.name!r}, dir_fd=os.open({str(file.parent)!r}, os.O_RDONLY))",
        f"shutil.rmtree({str(file.parent)!r})",
        f"sqlite3.connect({str(file.with_name('db'))!r})",
    ):
        assert run_program(f"import os, shutil, sqlite3\n{written}", timeout_secs=20) == "PermissionError"
    assert file.read_text() == "kept"
    assert list(file.parent.iterdir()) == [file]


def test_texts_have_the_same_order_in_a_set_every_time() -> None:
    first, second = "assert list({'a', 'b'}) == ['a', 'b']", "assert list({'a', 'b'}) == ['b', 'a']"
    outcomes = {tuple(run_program(text, timeout_secs=20) for text in (first, second)) for _ in range(8)}
    assert len(outcomes) == 1


def test_several_at_once_keep_their_order() -> None:
    programs = ["assert True", "assert False", "import time; time.sleep(0.2)", "1 / 0"]
    outcomes = run_programs(programs, timeout_secs=20, num_workers=2)
    assert outcomes == ["passed", "AssertionError", "passed", "ZeroDivisionError"]


def test_a_process_with_many_open_files_runs_programs_all_the_same() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1100:
        pytest.skip("so many files may not be open here")
    with contextlib.ExitStack() as stack:
        while stack.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        assert run_program("assert True", timeout_secs=20) == "passed"


@pytest.mark.parametrize(
    ("child", "message"),
    [
        ("raise SystemExit", "'assert True' gave 'ended the process' instead of 'passed'"),
        ("import sys; print(end=sys.argv[1])", "'assert False' gave 'passed' instead of 'AssertionError'"),
    ],
    ids=["nothing runs", "everything passes"],
)
def test_a_machine_that_cannot_judge_programs_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, child: str, message: str
) -> None:
    check_execution()
    path = tmp_path_factory.mktemp("broken") / "child.py"
    path.write_text(child)
    monkeypatch.setattr(code_execution, "CHILD", path)
    with pytest.raises(ConfigError, match=message):
        check_execution()


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="judged on Linux only, and this machine's system is 'darwin'"):
        check_execution()
