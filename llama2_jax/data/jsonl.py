"""JSON lines in and out."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from llama2_jax.data.sources import DataError, Paths, expand_paths, json_lines
from llama2_jax.files import written_whole

T = TypeVar("T")


def read_rows(paths: Paths) -> list[dict[str, Any]]:
    """All rows of JSONL files, plain or .gz.

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
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
