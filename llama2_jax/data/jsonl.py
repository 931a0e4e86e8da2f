"""JSON lines in and out: whole files, every error with file and line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama2_jax.data.sources import DataError
from llama2_jax.files import written_whole


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file; blank lines are passed over.

    Raises:
      DataError: a line that is not a JSON object (file, line, reason), or no line at all.
    """
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a row must be a JSON object, not {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file; it appears when it is complete."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
