"""Files of a model's answers that grow: a run that was stopped goes on where it was."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments import checkpoint_flags
from llama2_jax.answers import model_version
from llama2_jax.config import require
from llama2_jax.data.jsonl import append_rows, read_appended
from llama2_jax.pretrained import LoadedModel, for_decoding
from llama2_jax.sharding.processes import files_at_rest, wait_for_all

T = TypeVar("T")

Rows = list[dict[str, Any]]
Numbered = tuple[int, T]
"""Something and its number in its file, from 0."""


def drawn(items: Sequence[T], limit: int | None) -> list[Numbered[T]]:
    """The items with their numbers, or ``limit`` of them drawn at random, the same ones every time."""
    numbered = list(enumerate(items))
    if limit is None or limit >= len(numbered):
        return numbered
    return sorted(random.Random(0).sample(numbered, limit), key=lambda one: one[0])


def rows_so_far(path: Path) -> Rows:
    """What this run has appended to ``path`` before, the same on every process."""
    with files_at_rest(path):
        rows = read_appended(path, dict)
    wait_for_all(f"{path}: {len(rows)} rows")
    return rows


def answer_missing(path: Path, asked: Rows, answer: Callable[[LoadedModel, Rows], Iterator[Rows]]) -> Rows:
    """One row per row of ``asked``, in their order: those in ``path``, then those that ``answer`` adds to it.

    Args:
      asked: with an "id" and a "text", which errors show.
      answer: from the checkpoint of the flags and the rows without answer to these rows with one, in their
        order, a few at a time; each few is written before it is asked for the next. "model" is added.

    Raises:
      ConfigError: rows of other prompts or of another model are there.
    """
    done = rows_so_far(path)
    check_answered(path, done, asked)
    missing = asked[len(done) :]
    if not missing:
        return done
    loaded = for_decoding(checkpoint_flags.load_checkpoint())
    model = model_version(loaded)
    check_models(path, done, model)
    for answered in answer(loaded, missing):
        rows = [{**row, "model": model} for row in answered]
        append_rows(path, rows)
        done += rows
    return done


def check_answered(path: Path, done: Rows, asked: Rows) -> None:
    """Raise ``ConfigError`` unless the rows in ``path`` answer the first of ``asked``, in their order."""
    require(
        len(done) <= len(asked),
        f"{path} has {len(done)} answers, more than the {len(asked)} prompts; give another --output",
    )
    for number, (row, prompt) in enumerate(zip(done, asked, strict=False), start=1):
        require(
            all(row.get(key) == value for key, value in prompt.items()),
            f"{path}, row {number} answers {row.get('text')!r}, but prompt {prompt['id']} is "
            f"{prompt['text']!r}; give another --output",
        )


def check_models(path: Path, done: Rows, model: str) -> None:
    """Raise ``ConfigError`` if another model than ``model`` gave the answers in ``path``."""
    others = sorted({str(row.get("model")) for row in done} - {model})
    require(
        not others,
        f"{path} has answers of {', '.join(others)}; the checkpoint is now {model}; give another folder",
    )
