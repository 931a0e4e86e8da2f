"""The process that runs one program of ``code_execution.py``: a script that needs nothing else of ours.

    python code_child.py TOKEN MEMORY_BYTES CPU_SECS WALL_SECS

reads ``program.py`` in the current folder, and writes one word to standard output: TOKEN if the program came
to its end, else the name of the exception that ended it. A program that ends the process itself leaves no
word, nor does one that takes longer than it may, which SIGPROF (processor) or SIGALRM (clock) ends. Refused
are other processes, signals, the network, and changes to files outside the current folder: that stops
accidents, not an attacker, who can get round what Python checks itself.
"""

import _posixsubprocess
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

FILE_BYTES = 1 << 20
REFUSED = (
    "os.", "shutil.", "subprocess.", "pty.", "sqlite3.",
    "socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo", "socket.gethostby",
)  # fmt: skip
HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv"}
OWN_FOLDER = {"os.mkdir": 2, "os.remove": 1, "os.rmdir": 1, "shutil.rmtree": 1}
"""What ``tempfile`` does, by the place of ``dir_fd`` in the event: allowed in the program's own folder."""


def main(token: str, memory_bytes: int, cpu_secs: float, wall_secs: float) -> None:
    """Run ``program.py``, and end the process."""
    write, end = os.write, os._exit  # the program may put others in their place
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it prints is not the answer
    with open("program.py", encoding="utf-8", newline="") as file:
        source = file.read()
    sys.argv = ["program.py"]
    sys.addaudithook(_refusing(os.getcwd()))
    _posixsubprocess.fork_exec = _refuse_process  # it is no event; multiprocessing calls it
    module = sys.modules["program"] = ModuleType("program")  # dataclasses and pickle look there
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    cpu_limit = math.ceil(cpu_secs) + 1  # if it puts the timer off: SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit, cpu_limit + 1))
    signal.setitimer(signal.ITIMER_PROF, cpu_secs)
    signal.setitimer(signal.ITIMER_REAL, wall_secs)
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
        word = token
    except BaseException as error:  # also of sys.exit
        word = type(error).__name__
    write(answer, word.encode()[:200])
    end(0)


def _refusing(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: Python calls it before it does what the event names."""
    realpath, join, own = os.path.realpath, os.path.join, os.path.realpath(folder) + os.sep
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def inside(path: str | bytes, dir_fd: int | None = None) -> bool:
        start = "" if dir_fd in (-1, None) else f"/proc/self/fd/{dir_fd}"
        return (realpath(join(start, os.fsdecode(path))) + os.sep).startswith(own)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        refused = event.startswith(REFUSED) and event not in HARMLESS
        if event == "open" and isinstance(args[0], str | bytes) and args[2] & changing:
            refused = os.fsdecode(args[0]) != os.devnull and not inside(args[0])
        elif event == "os.rename":
            refused = not (inside(args[0], args[2]) and inside(args[1], args[3]))
        elif event in OWN_FOLDER:
            refused = not inside(args[0], args[OWN_FOLDER[event]])
        if refused:
            raise PermissionError(f"{event} is refused")

    return hook


def _refuse_process(*_: object) -> NoReturn:
    raise PermissionError("other processes are refused")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
