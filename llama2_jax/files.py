"""Files that are whole or not there, written by one process."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_writes = True


def leave_writing_to_another() -> None:
    """From here on this process writes nothing: it is one of several that run the same programme."""
    global _writes
    _writes = False


def writes() -> bool:
    """Whether files are this process's to write."""
    return _writes


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place once the block ends without an error.

    A reader sees the old file or the new one, and a killed run leaves no half of one behind its name.
    Where another process writes the files, what the block makes is thrown away.
    """
    path = Path(path)
    if not _writes:
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)
