"""Read the JSON files that lie beside weights, and the numbers in them."""

import json
import math
from pathlib import Path
from typing import Any

from llama2_jax.interop.imported import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``.

    Raises:
      FormatError: not UTF-8, not JSON (with line and column), or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # Unicode and JSON errors are ValueErrors
        raise FormatError(f"{path} is not valid JSON: {error}; download or copy it again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, an object is needed; copy it again")
    return value


def read_count(settings: dict[str, Any], key: str, default: int | None = None, *, where: Path) -> int:
    """The positive whole number under ``key``; ``default``, if given, where the key is absent.

    Raises:
      FormatError: the key is missing, or holds null or anything else.
    """
    value = _required(settings, key, default, where)
    if type(value) is not int or value <= 0:  # bool is an int to isinstance
        raise FormatError(f"{where}: {key} is {_shown(value)}; it must be a positive whole number")
    return value


def read_number(settings: dict[str, Any], key: str, default: float | None = None, *, where: Path) -> float:
    """The finite number >= 0 under ``key``; ``default``, if given, where the key is absent.

    Raises:
      FormatError: the key is missing, or holds null or anything else.
    """
    value = _required(settings, key, default, where)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise FormatError(f"{where}: {key} is {_shown(value)}; it must be a finite number, not negative")
    return float(value)


def _required(settings: dict[str, Any], key: str, default: Any, where: Path) -> Any:
    if default is None and key not in settings:
        raise FormatError(f"{where} lacks {key}; it must describe the whole model")
    return settings.get(key, default)


def _shown(value: Any) -> str:
    """The value as JSON spells it, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."
