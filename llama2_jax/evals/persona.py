"""Does a model keep to an instruction over many turns? (Llama 2, section 3.3, Table 30; GATT-6, GATT-7)

An instruction stands in the first message. Some turns later one asks for what it set, or checks a
constraint on the form of every answer by a program; people judged this in the paper.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llama2_jax.evals.intervals import Interval, wilson

MAX_WORDS = 5
SENTENCE_END = re.compile(r"[.!?]+[\"')]*(?=\s|$)")
ABBREVIATIONS = re.compile(r"\b(?:Mrs?|Ms|Dr|St|e\.g|i\.e)\.")


class Outcome(NamedTuple):
    """One question at one turn: None where the dialogue did not reach it within the model's context."""

    turn: int  # 1 is the message with the instruction (D57)
    correct: bool | None


class TurnAccuracy(NamedTuple):
    """Share of right answers at one turn; None where no question fitted the context."""

    turn: int
    accuracy: Interval | None
    asked: int
    beyond_context: int


def accuracy_by_turn(outcomes: Sequence[Outcome], turns: Sequence[int]) -> list[TurnAccuracy]:
    """A row of Table 30 for every turn."""
    rows = []
    for turn in turns:
        found = [outcome.correct for outcome in outcomes if outcome.turn == turn]
        asked = [correct for correct in found if correct is not None]
        accuracy = wilson(sum(asked), len(asked)) if asked else None
        rows.append(TurnAccuracy(turn, accuracy, len(asked), len(found) - len(asked)))
    return rows


def is_one_sentence(answer: str) -> bool:
    """Exactly one sentence: closing marks before a space or the end stand at the end alone.

    Not those of a few abbreviations, nor the point of a number.
    """
    text = ABBREVIATIONS.sub("", answer.strip())
    return len(text) > 1 and [end.end() for end in SENTENCE_END.finditer(text)] == [len(text)]


def is_haiku(answer: str) -> bool:
    """Three lines of 5, 7 and 5 syllables, counted as groups of vowels, give or take one each."""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    counts = [len(re.findall(r"[aeiouy]+", line.lower())) for line in lines]
    return len(counts) == 3 and all(abs(n - m) <= 1 for n, m in zip(counts, (5, 7, 5), strict=True))


def is_brief(answer: str) -> bool:
    """At most ``MAX_WORDS`` words, and not none."""
    return 0 < len(answer.split()) <= MAX_WORDS


CONSTRAINTS: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "one sentence": ("Answer in one sentence only.", is_one_sentence),
    "haiku": ("Always answer with a haiku.", is_haiku),
    "brief": (f"Use at most {MAX_WORDS} words.", is_brief),
}
"""Constraints that no training data holds (GATT-7): the instruction, and whether an answer keeps it."""
