"""Answers that people rated for quality or for harm: JSONL, one answer per row.

    {"messages": [{"role": "user", "content": "..."}], "answer": "...",
     "quality": 6,                 1 to 7, or a list with the grade of each rater, whose median counts
     "harm": 0.25,                 0 (none) to 1
     "is_unsafe": false,           what the people behind the file call unsafe
     "risk_category": "violence"}  may be left out

A row has ``quality``, or ``harm`` and ``is_unsafe``, or all three. A reward model's scores are compared with
them (RM-16, Figures 29 and 32); nothing is trained on them.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import Message, validate_dialogue
from llama2_jax.data.records import OnBadLine, Paths, is_number, read_records
from llama2_jax.data.sources import to_messages


class RatedAnswer(NamedTuple):
    """One answer to ``messages``, which end with the user."""

    messages: tuple[Message, ...]
    answer: str
    harm: float | None = None
    is_unsafe: bool | None = None
    risk_category: str = ""
    quality: float | None = None

    @property
    def dialogue(self) -> list[Message]:
        """The messages with the answer."""
        return [*self.messages, Message("assistant", self.answer)]


def read_rated_answers(paths: Paths, *, on_bad_line: OnBadLine = "error") -> list[RatedAnswer]:
    """All rows of the files.

    Raises:
      DataError: a row of another form (file, line, reason), or no usable row at all.
    """
    return list(read_records(paths, _parse, keys=RatedAnswer._fields, on_bad_line=on_bad_line))


def _parse(row: dict[str, Any]) -> RatedAnswer:
    messages = to_messages(row["messages"])
    (answer,) = to_messages([{"role": "assistant", "content": row["answer"]}])
    validate_dialogue([*messages, answer], ends_with="assistant")
    rated = RatedAnswer(tuple(messages), answer.content, risk_category=row.get("risk_category", ""))
    if row.get("quality") is not None:
        rated = rated._replace(quality=_median_grade(row["quality"]))
        if row.get("harm") is None and row.get("is_unsafe") is None:
            return rated
    if "harm" not in row:
        raise ValueError("a row needs 'quality', or 'harm' and 'is_unsafe'")
    harm, is_unsafe = row["harm"], row["is_unsafe"]
    if not is_number(harm) or not 0 <= harm <= 1:
        raise ValueError(f"'harm' is {harm!r}; it must be a number from 0 to 1")
    if not isinstance(is_unsafe, bool):
        raise ValueError(f"'is_unsafe' is {is_unsafe!r}; it must be true or false")
    return rated._replace(harm=harm, is_unsafe=is_unsafe)


def _median_grade(quality: Any) -> float:
    grades = quality if isinstance(quality, list) else [quality]
    if not grades or not all(is_number(grade) and 1 <= grade <= 7 for grade in grades):
        raise ValueError(f"'quality' is {quality!r}; it must be a number from 1 to 7, or a list of them")
    return float(statistics.median(grades))


def ratings(rated: Sequence[RatedAnswer]) -> tuple[str, list[float]]:
    """What all of the answers were rated for, "quality" or else "harm", and the ratings.

    Raises:
      ConfigError: some are rated for quality only and others for harm only.
    """
    of = {
        name: [getattr(one, name) for one in rated if getattr(one, name) is not None]
        for name in ("quality", "harm")
    }
    for name, found in of.items():
        if len(found) == len(rated):
            return name, found
    raise ConfigError(
        f"of {len(rated)} rated answers {len(of['quality'])} have a quality and {len(of['harm'])} a harm; "
        "compare a reward model with one at a time"
    )
