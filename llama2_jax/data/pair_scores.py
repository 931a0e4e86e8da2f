"""Scores of the two answers of each comparison, in files: from our programs, or from anybody's (RM-13).

JSONL, a row per comparison, of which ``id`` is the number in the file that was scored, from 0:

    {"id": 0, "chosen": 1.7, "rejected": -0.2}    scores on any scale; the higher is the better answer
    {"id": 1, "choice": "rejected"}               or which answer is better: chosen, rejected or tie
    {"id": 2, "chosen": null, "rejected": null}   could not be read, as one that is too long

Beside these keys a row may have others. The names chosen and rejected say what people preferred, so whatever
gives the scores must not see them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.data.jsonl import parse_rows, write_rows
from llama2_jax.data.records import DataError, check, is_number

CHOICES = {"chosen": (1.0, 0.0), "tie": (0.0, 0.0), "rejected": (0.0, 1.0)}
"""A choice as scores of the chosen and the rejected answer."""

PairScores = Mapping[int, Sequence[float] | None]
"""Number of a comparison -> scores of its chosen and rejected answer, None where they could not be read."""


def read_pair_scores(path: str | Path, *, count: int) -> dict[int, tuple[float, float] | None]:
    """The scores of all ``count`` comparisons of a file.

    Raises:
      DataError: a row of another form, two rows of one comparison, or a comparison without a row.
    """
    scores: dict[int, tuple[float, float] | None] = {}
    for number, own in parse_rows(str(path), parse_pair_score):
        if number >= count or number in scores:
            fact = (
                f"a second row of id {number}" if number in scores else f"id {number}, of {count} comparisons"
            )
            raise DataError(f"{path} has {fact}; give a row for each of the ids 0 to {count - 1}")
        scores[number] = own
    missing = [number for number in range(count) if number not in scores]
    if missing:
        raise DataError(
            f"{path} has {len(scores)} of {count} comparisons, id {missing[0]} is missing; give a row for "
            "each, with null for scores where it could not be read"
        )
    return scores


def parse_pair_score(row: dict[str, Any]) -> tuple[int, tuple[float, float] | None]:
    """The number of the comparison and its scores.

    Raises:
      ValueError: with the reason.
    """
    check(type(row.get("id")) is int and row["id"] >= 0, f"'id' is {row.get('id')!r}; it must be 0 or more")
    if "choice" in row:
        check(row["choice"] in CHOICES, f"'choice' is {row['choice']!r}; known: {', '.join(CHOICES)}")
        return row["id"], CHOICES[row["choice"]]
    check("chosen" in row and "rejected" in row, "it needs 'choice', or 'chosen' and 'rejected'")
    both = row["chosen"], row["rejected"]
    if both == (None, None):
        return row["id"], None
    for name, score in zip(("chosen", "rejected"), both, strict=True):
        check(
            is_number(score) and math.isfinite(score),
            f"{name!r} is {score!r}; it must be a number",
        )
    return row["id"], (float(both[0]), float(both[1]))


def read_by_all(scores: Iterable[PairScores], count: int) -> list[int]:
    """Numbers of those of ``count`` comparisons whose answers everyone could read."""
    scores = list(scores)
    return [number for number in range(count) if all(own[number] is not None for own in scores)]


def both_sides(scores: PairScores, numbers: Sequence[int]) -> np.ndarray:
    """Scores of the chosen and of the rejected answers of comparisons that could be read: (2, numbers)."""
    return np.array([scores[number] for number in numbers], np.float64).reshape(-1, 2).T


def write_pair_scores(path: str | Path, scores: PairScores) -> None:
    """Write a file of scores; it appears when it is complete."""
    rows = ((number, (None, None) if own is None else map(float, own)) for number, own in scores.items())
    write_rows(
        path, (dict(zip(("id", "chosen", "rejected"), (number, *own), strict=True)) for number, own in rows)
    )
