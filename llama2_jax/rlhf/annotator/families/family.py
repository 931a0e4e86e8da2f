"""What one kind of prompts is: made, parsed, answered well and badly, and judged."""

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from llama2_jax.data.chat import Message
from llama2_jax.data.prompts import Prompt

OPENINGS = ("Hello. ", "Please help me. ", "Hi! ", "One question. ", "Tell me. ")
_INSTRUCTIONS = re.compile(r"((You are called|You enjoy|Speak in|Name:|Hobby:|Language:) [^.]*\. ?)+")
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s.,:;!?'-]|[.,:;!?'-]{2,}")


class Content(NamedTuple):
    """What an answer says, whatever its form: ``score`` in [0, 1], and why."""

    score: float
    reason: str


class Family(NamedTuple):
    """One kind of prompts. A task is what ``parse`` reads from the text of a prompt."""

    name: str
    make: Callable[[Random], Prompt]  # a new prompt, still without id
    parse: Callable[[Sequence[Message]], Any | None]  # None: the prompt is of another family
    good: Callable[[Any, Random], str]
    flaws: Mapping[str, Callable[[Any, Random], str]]  # the family's own; see also flaws.py
    content: Callable[[Any, str], Content]
    statement: Callable[[Random], str]  # a sentence or two that teach what the answers need
    num_words: tuple[int, int]  # of an answer that is neither terse nor rambling
    lexicon: frozenset[str]  # words of its prompts and answers


def words_of(*texts: str) -> list[str]:
    """Lower-case words and numbers in order, and what is neither a word nor punctuation."""
    return [word for text in texts for word in _WORD.findall(text.lower())]


def lexicon(*texts: str) -> frozenset[str]:
    """The words of texts and templates."""
    return frozenset(words_of(*(re.sub(r"\{\w*\}", "", text) for text in texts)))


def ask(text: str, rng: Random) -> tuple[Message, ...]:
    """A user's message, in two of five cases with an opening."""
    opening = rng.choice(OPENINGS) if rng.random() < 0.4 else ""
    return (Message("user", opening + text),)


def question(messages: Sequence[Message]) -> str:
    """The last message without its opening, and without instructions about who to be (persona.py)."""
    text = _INSTRUCTIONS.sub("", messages[-1].content.strip(), count=1)
    for opening in OPENINGS:
        text = text.removeprefix(opening)
    return text


def match(patterns: Sequence[re.Pattern[str]], text: str) -> re.Match[str] | None:
    """The match of the first pattern that is the whole text."""
    return next((found for pattern in patterns if (found := pattern.fullmatch(text))), None)


def as_patterns(templates: Sequence[str], **groups: str) -> list[re.Pattern[str]]:
    """Templates as regular expressions: each ``{name}`` becomes a named group for ``groups[name]``."""
    patterns = []
    for template in templates:
        pattern = re.escape(template)
        for name, expression in groups.items():
            pattern = pattern.replace(rf"\{{{name}\}}", f"(?P<{name}>{expression})")
        patterns.append(re.compile(pattern))
    return patterns


def one_of(choices: Sequence[str]) -> str:
    """A regular expression for one of some texts, the longest first."""
    return "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
