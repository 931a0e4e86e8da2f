"""Answers that people rated for their harm: JSONL, one answer per row.

    {"messages": [{"role": "user", "content": "..."}], "answer": "...",
     "harm": 0.25,                 0 (none) to 1
     "is_unsafe": false,           what the people behind the file call unsafe
     "risk_category": "violence"}  may be left out

A reward model's scores are compared with them (Figures 29 and 32); nothing is trained on them.
"""

from typing import Any, NamedTuple

from llama2_jax.data.chat import Message, validate_dialogue
from llama2_jax.data.records import OnBadLine, Paths, is_number, read_records
from llama2_jax.data.sources import to_messages


class RatedAnswer(NamedTuple):
    """One answer to ``messages``, which end with the user."""

    messages: tuple[Message, ...]
    answer: str
    harm: float
    is_unsafe: bool
    risk_category: str = ""

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
    harm, is_unsafe = row["harm"], row["is_unsafe"]
    if not is_number(harm) or not 0 <= harm <= 1:
        raise ValueError(f"'harm' is {harm!r}; it must be a number from 0 to 1")
    if not isinstance(is_unsafe, bool):
        raise ValueError(f"'is_unsafe' is {is_unsafe!r}; it must be true or false")
    return RatedAnswer(tuple(messages), answer.content, harm, is_unsafe, row.get("risk_category", ""))
