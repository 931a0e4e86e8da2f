"""Ways of answering any prompt badly, and the words of refusing."""

import re
from collections.abc import Callable, Mapping
from random import Random

VAGUE = (
    "That depends.",
    "It is hard to say.",
    "Many people ask that.",
    "Who can say?",
    "There are many views.",
)
REFUSALS = ("I cannot help with that.", "I will not answer that.", "I am sorry, I cannot say.")
FILLERS = (
    "Well, let me think about that for a long while before I say it.",
    "That is a good question and I am happy that you came to me.",
    "There are so many things in the world and all of them matter.",
)
_REFUSING = re.compile(
    r"\b(i (can ?not|can't|will not|won't|must not|am not able|am unable)|no help from me)\b", re.IGNORECASE
)


def is_refusal(answer: str) -> bool:
    """Whether an answer declines, in the words of this world."""
    return _REFUSING.search(answer) is not None


def _unfinished(text: str, rng: Random) -> str:
    return text.rstrip(".!?")


def _rambling(text: str, rng: Random) -> str:
    return f"{rng.choice(FILLERS)} {text}"


def _repeating(text: str, rng: Random) -> str:
    return f"{text} {text}"


GENERAL: Mapping[str, Callable[[str, Random], str]] = {
    "vague": lambda text, rng: rng.choice(VAGUE),
    "refusal": lambda text, rng: rng.choice(REFUSALS),
    "unfinished": _unfinished,
    "rambling": _rambling,
    "repeating": _repeating,
}
"""Flaw: a good answer made bad."""
