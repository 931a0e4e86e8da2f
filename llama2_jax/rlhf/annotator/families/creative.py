"""A line about a topic: the topic does something, in a sentence of good length."""

import re
from collections.abc import Sequence
from random import Random

from llama2_jax.data.chat import Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.families.family import (
    Content,
    Family,
    as_patterns,
    ask,
    lexicon,
    match,
    one_of,
    question,
    words_of,
)

QUESTIONS = (
    "Write a line about the {topic}.",
    "Tell me a line about the {topic}.",
    "Make a poem about the {topic}.",
    "Sing of the {topic}.",
)
TOPICS = (
    "sea",
    "forest",
    "winter",
    "garden",
    "city",
    "bird",
    "ship",
    "river",
    "wind",
    "rain",
    "king",
    "child",
)
PATTERNS = as_patterns(QUESTIONS, topic=one_of(TOPICS))
QUALITIES = ("quiet", "golden", "old", "gentle", "silver", "happy", "silent", "bright")
VERBS = ("sings to", "waits for", "dreams of", "looks at", "calls", "remembers", "follows", "loves")
OBJECTS = (
    "the morning",
    "the stars",
    "a friend",
    "the night",
    "a distant song",
    "the light",
    "the wide sky",
)
ENDS = ("without a word", "with all its heart", "once again", "until the day is done", "far from home")
TOO_SHORT = ("The {topic}.", "Oh {topic}!")
PLAIN = ("I like the {topic}.", "The {topic} is nice.", "This is about the {topic}.")


def _line(topic: str, rng: Random) -> str:
    choices = [rng.choice(words) for words in (QUALITIES, VERBS, OBJECTS, ENDS)]
    quality, verb, thing, end = choices
    return f"The {quality} {topic} {verb} {thing} {end}."


def _make(rng: Random) -> Prompt:
    text = rng.choice(QUESTIONS).format(topic=rng.choice(TOPICS))
    return Prompt("", ask(text, rng), "creative")


def _parse(messages: Sequence[Message]) -> str | None:
    found = match(PATTERNS, question(messages))
    return found["topic"] if found else None


def _off_topic(topic: str, rng: Random) -> str:
    return _line(rng.choice([other for other in TOPICS if other != topic]), rng)


def _plain(topic: str, rng: Random) -> str:
    """On the topic, with little to say."""
    return rng.choice(PLAIN).format(topic=topic)


def _content(topic: str, answer: str) -> Content:
    """Full marks if the topic does something, about half if it is only mentioned."""
    said = words_of(answer)
    if topic not in said:
        return Content(0.1, "off topic")
    if said.count(topic) > 1:
        return Content(0.3, "repeats the topic")
    acts = rf"^(the|a|my|our) ([a-z]+ )?{topic} ({one_of(VERBS)}) [a-z]+"
    return Content(1.0, "on topic") if re.search(acts, " ".join(said)) else Content(0.5, "says little")


def _statement(rng: Random) -> str:
    topic = rng.choice(TOPICS)
    return f"About the {topic}: {_line(topic, rng)}"


FAMILY = Family(
    name="creative",
    make=_make,
    parse=_parse,
    good=_line,
    flaws={
        "off topic": _off_topic,
        "plain": _plain,
        "terse": lambda topic, rng: rng.choice(TOO_SHORT).format(topic=topic),
    },
    content=_content,
    statement=_statement,
    num_words=(6, 14),
    lexicon=lexicon(
        *(*QUESTIONS, *TOPICS, *QUALITIES, *VERBS, *OBJECTS, *ENDS, *TOO_SHORT, *PLAIN, "my our"),
    ),
)
