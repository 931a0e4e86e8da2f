"""JSON lines in and out, and files of JSON in."""

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from llama2_jax.data.sources import DataError, Paths, expand_paths, json_lines
from llama2_jax.files import writes, written_whole

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
    rows = [record.parsed(parse) for file in expand_paths(paths) for record in json_lines(file)]
    if not rows:
        raise DataError(f"{paths} has no rows")
    return rows


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file; it appears when it is complete."""
    # line by line, so that of rows that take long to make those done so far can be read
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", buffering=1) as file:
        file.writelines(map(_line, rows))


def append_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows and wait until they are on disk; a line that an earlier run left cut off is removed first.

    See ``files.py`` for which process does.
    """
    if not writes():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _end_at_a_line(file, path)
        file.write("".join(map(_line, rows)).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_appended(path: str | Path) -> list[dict[str, Any]]:
    """The rows that ``append_rows`` has written so far, if any; a last line cut off is passed over.

    Raises:
      DataError: another line that is not a JSON object (file, line, reason).
    """
    records = list(json_lines(Path(path))) if Path(path).exists() else []
    rows = [record.parsed(dict) for record in records[:-1]]
    for last in records[-1:]:
        try:
            rows.append(last.parsed(dict))
        except DataError as error:
            log.warning("%s: the line was cut off and is passed over", error)
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _end_at_a_line(file: Any, path: Path) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read() == b"\n":
        return
    file.seek(0)
    *_, tail = file.read().split(b"\n")
    try:
        json.loads(tail.decode("utf-8"))  # no object is whole before its last character
        file.write(b"\n")  # only the newline was lost
    except ValueError:
        log.warning("%s: removed a last line that was cut off (%d bytes)", path, len(tail))
        file.truncate(file.tell() - len(tail))
