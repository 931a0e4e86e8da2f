"""The process that runs one program of ``code_execution.py``: a script that needs nothing else of ours.

    python code_child.py TOKEN MEMORY_BYTES CPU_SECS

reads ``program.py`` in the current folder, and writes one word to standard output: TOKEN if the program came
to its end, else the name of the exception that ended it. A program that ends the process itself leaves no
word. Refused are other processes, signals, the network, and changes to files outside the current folder: that
stops accidents, not an attacker, who can get round what Python checks itself.
"""

import os
import resource
import sys
from collections.abc import Callable
from typing import Any

FILE_BYTES = 1 << 20
REFUSED = (
    "os.", "shutil.", "subprocess.", "pty.",
    "socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo", "socket.gethostby",
)  # fmt: skip
HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv"}


def main(token: str, memory_bytes: int, cpu_secs: int) -> None:
    """Run ``program.py``, and end the process."""
    write, end = os.write, os._exit  # the program may put others in their place
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it prints is not the answer
    with open("program.py", encoding="utf-8", newline="") as file:
        source = file.read()
    sys.argv = ["program.py"]
    sys.addaudithook(_refusing(os.getcwd()))
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_secs),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "program"})
        word = token
    except BaseException as error:  # also of sys.exit
        word = type(error).__name__
    write(answer, word.encode()[:200])
    end(0)


def _refusing(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: Python calls it before it does what the event names."""
    realpath, inside = os.path.realpath, os.path.realpath(folder) + os.sep
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, args: tuple[Any, ...]) -> None:
        refused = event.startswith(REFUSED) and event not in HARMLESS
        if event == "open" and isinstance(args[0], str | bytes) and args[2] & changing:
            path = os.fsdecode(args[0])
            refused = path != os.devnull and not realpath(path).startswith(inside)
        if refused:
            raise PermissionError(f"{event} is refused")

    return hook


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
