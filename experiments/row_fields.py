"""Fields of the rows that the command-line programs read."""

from pathlib import Path
from typing import Any

from llama2_jax.config import ConfigError, require


def refuse_overwriting(source: str, target: str) -> None:
    """Raise ``ConfigError`` if the output would take the place of the input."""
    require(
        Path(source).resolve() != Path(target).resolve(),
        f"--output={target} is the file of --input; name another",
    )


def row_tokens(row: dict[str, Any], *, where: str) -> list[int]:
    """``row["tokens"]``. Raises ``ConfigError`` unless it is a list of whole numbers."""
    tokens = row["tokens"]
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise ConfigError(f"{where}: 'tokens' must be a list of whole numbers, it is {str(tokens)[:60]}")
    return tokens


def row_text(row: dict[str, Any], key: str, *, where: str) -> str:
    """``row[key]``. Raises ``ConfigError`` unless it is there and text."""
    if key not in row:
        raise ConfigError(f"{where} has no {key!r}; it has {', '.join(row) or 'nothing'}")
    if not isinstance(row[key], str):
        raise ConfigError(f"{where}: {key!r} must be text, it is {type(row[key]).__name__}")
    return row[key]
