"""Rows in and out of the command-line programmes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama2_jax.config import ConfigError


def read_rows(path: str) -> list[dict[str, Any]]:
    """All rows of a JSONL file.

    Raises:
      ConfigError: a line that is not a JSON object (file, line, reason), or no line at all.
    """
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number}: a row must be a JSON object, not {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return rows


def row_tokens(row: dict[str, Any], *, where: str) -> list[int]:
    """``row["tokens"]``. Raises ``ConfigError`` unless it is a list of whole numbers."""
    tokens = row["tokens"]
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise ConfigError(f"{where}: 'tokens' must be a list of whole numbers, it is {str(tokens)[:60]}")
    return tokens


def row_text(row: dict[str, Any], key: str, *, where: str) -> str:
    """``row[key]``. Raises ``ConfigError`` unless it is text."""
    if not isinstance(row[key], str):
        raise ConfigError(f"{where}: {key!r} must be text, it is {type(row[key]).__name__}")
    return row[key]


def write_rows(path: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file; it appears when it is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.replace(target)
