"""Files that are whole or not there, written by one process; and folders that one run at a time works in."""

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from absl import logging

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, one's share of it, or the largest file

_writes = True
_held: dict[Path, TextIO] = {}  # lock files of this process; one is released once it is closed


def leave_writing_to_another() -> None:
    """From here on this process writes nothing: it is one of several that run the same program."""
    global _writes
    _writes = False


def writes() -> bool:
    """Whether files are this process's to write."""
    return _writes


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Say which file there was no room for: the system does not, and there may be several disks."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place once the block ends without an error.

    A reader sees the old file or the new one, and a killed run leaves no half of one behind its name.
    Where another process writes the files, what the block makes is thrown away.

    Raises:
      FileExistsError: ``path`` is a folder, or a device such as /dev/null, which for root would be replaced.
    """
    path = Path(path)
    if not _writes:
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / path.name
        return
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is a folder or a device, and is not replaced by a file; name a file")
    path = path.resolve()  # what a symbolic link leads to, such as /dev/stdout: the link stays
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with naming(partial):
        yield partial
    partial.replace(path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


class InUseError(OSError):
    """Another process works in a folder, or writes a file."""


def lock(file: TextIO, what: Path, *, holder: str = "another process", another: str) -> bool:
    """Keep other processes from a file, which is open, until it is closed, or this process ends somehow.

    A lock of the operating system: it is nobody's once its process has died, or has opened and closed the
    file once more. On a file system without locks there is a warning and no protection.

    Args:
      what: is locked, for the message, as are the others.
      holder: who may have it.
      another: what to give for another.

    Returns:
      Whether it is locked.

    Raises:
      InUseError: another process has locked it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise InUseError(
                f"{what} is in use by {holder}, and two runs would overwrite each other's files: wait for "
                f"it, stop it, or use another {another}"
            ) from error
        logging.warning("%s cannot be locked (%s): see to it that one run at a time uses it", what, error)
        return False
    return True


def hold(folder: Path, *, another: str) -> bool:
    """Keep other processes out of ``folder`` until ``release``, or the end of this process: see ``lock``.

    Args:
      another: what to give for another folder, for the message.

    Returns:
      Whether it is held only since this call.

    Raises:
      InUseError: another process holds it.
    """
    path = folder.resolve() / ".lock"
    if not _writes or path in _held:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as unless_held:
        file = unless_held.enter_context(path.open("a+", encoding="utf-8"))
        file.seek(0)
        holder = file.read().strip() or "another process"
        if not lock(file, folder, holder=holder, another=another):
            return False
        with naming(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        unless_held.pop_all()
    _held[path] = file
    return True


@contextmanager
def held(folder: Path, *, another: str) -> Iterator[None]:
    """``hold`` for the length of a block."""
    is_ours = hold(folder, another=another)
    try:
        yield
    finally:
        if is_ours:
            release(folder)


def release(folder: Path) -> None:
    """Let others in again."""
    path = folder.resolve() / ".lock"
    if path in _held:
        _held.pop(path).close()
