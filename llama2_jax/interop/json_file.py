"""Read the JSON files that lie beside weights."""

import json
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
