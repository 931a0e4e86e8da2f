"""JSON lines in and out, and files of JSON in."""

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from llama2_jax.data.records import DataError, Paths, expand_paths, json_lines
from llama2_jax.files import lock, naming, writes, written_whole

T = TypeVar("T")

log = logging.getLogger(__name__)


def read_json_file(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      DataError: it is none (reason).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise DataError(f"{path}: the JSON is nested too deeply") from error
    except ValueError as error:  # Unicode and JSON errors are ValueErrors
        raise DataError(f"{path} is not JSON: {error}") from error


def read_rows(paths: Paths) -> list[dict[str, Any]]:
    """All rows of JSONL files, plain, .gz or .zst.

    Raises:
      DataError: see ``parse_rows``.
    """
    return parse_rows(paths, dict)


def parse_rows(paths: Paths, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """What ``parse`` makes of all rows of JSONL files.

    Raises:
      DataError: a line that is not a JSON object, or that ``parse`` refuses with a ValueError or KeyError
        (file, line, reason); no file, or no line at all.
    """
    files = expand_paths(paths)
    rows = [record.parsed(parse) for file in files for record in json_lines(file)]
    if not rows:
        raise DataError(f"no rows in {', '.join(map(str, files))}; one or more are needed")
    return rows


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file; it appears when it is complete.

    Raises:
      InUseError: another process is writing it.
    """
    # line by line, so that of rows that take long to make those done so far can be read
    with written_whole(path) as partial, partial.open("a", encoding="utf-8", buffering=1) as file:
        lock(file, Path(path), another="output")
        file.truncate(0)
        file.writelines(map(_line, rows))


def append_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows and wait until they are on disk; a line that an earlier run left cut off is removed first.

    See ``files.py`` for which process does.
    """
    if not writes():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("a+b") as file:
        _end_at_a_line(file, path)
        file.write("".join(map(_line, rows)).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_appended(path: str | Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """What ``parse`` makes of the rows of a file that grows; of one that is not there, nothing.

    A last line without a newline that is no JSON object was cut off, and is passed over with a warning.

    Raises:
      DataError: any other line that is not one, or that ``parse`` refuses (file, line, reason).
    """
    path = Path(path)
    if not path.exists():
        return []
    records = list(json_lines(path))
    if records and not records[-1].is_ended:  # as it was read: meanwhile the file may have grown
        try:
            records[-1].load()
        except ValueError:
            log.warning("%s was cut off and is passed over", records.pop().where)
    return [record.parsed(parse) for record in records]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _ends_at_a_line(file: BinaryIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def _end_at_a_line(file: BinaryIO, path: Path) -> None:
    if _ends_at_a_line(file):
        return
    file.seek(0)
    *_, tail = file.read().split(b"\n")
    try:
        json.loads(tail.decode("utf-8"))  # no object is whole before its last character
        file.write(b"\n")  # only the newline was lost
    except ValueError:
        log.warning("%s: removed a last line that was cut off (%d bytes)", path, len(tail))
        file.truncate(file.tell() - len(tail))
