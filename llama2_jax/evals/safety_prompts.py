"""What the automatic safety benchmarks have in common: prompts, read from their official files."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.data.sources import DataError


class Published(NamedTuple):
    """Results of Llama 2 in percent, in the order of ``PAPER_SIZES``."""

    pretrained: tuple[float, ...]
    chat: tuple[float, ...]


class SafetyPrompt(NamedTuple):
    """One prompt of a benchmark."""

    text: str  # what the completion is judged with: a question, or the beginning that it continues
    prompt: str  # what the model reads
    groups: tuple[str, ...]  # what it is about, in the benchmark's own names


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
