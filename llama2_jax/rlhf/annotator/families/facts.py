"""True facts from small tables: capitals, colours, sounds, young animals, opposites."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

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


class Table(NamedTuple):
    """Facts of one kind; ``{key}`` and ``{value}`` stand in the templates."""

    questions: tuple[str, ...]
    statement: str
    short: str
    facts: Mapping[str, str]


TABLES: Mapping[str, Table] = {
    "capital": Table(
        ("What is the capital of {key}?", "Which city leads {key}?", "Name the capital of {key}."),
        "The capital of {key} is {value}.",
        "It is {value}.",
        {
            "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Greece": "Athens", "Egypt": "Cairo",
            "Japan": "Tokyo",
        },
    ),
    "colour": Table(
        ("What colour is {key}?", "Which colour has {key}?", "Name the colour of {key}."),
        "The colour of {key} is {value}.",
        "It is {value}.",
        {
            "grass": "green", "snow": "white", "the sky": "blue", "blood": "red", "coal": "black",
            "the sun": "yellow",
        },
    ),
    "sound": Table(
        ("What does {key} say?", "Which sound does {key} make?", "Name the sound of {key}."),
        "The sound of {key} is {value}.",
        "It is {value}.",
        {
            "a cow": "moo", "a cat": "meow", "a dog": "woof", "a duck": "quack", "a sheep": "baa",
            "a pig": "oink",
        },
    ),
    "young": Table(
        ("What is the young of {key}?", "How do you call the young of {key}?", "Name the young of {key}."),
        "The young of {key} is a {value}.",
        "It is a {value}.",
        {
            "a cow": "calf", "a cat": "kitten", "a dog": "puppy", "a duck": "duckling", "a sheep": "lamb",
            "a horse": "foal",
        },
    ),
    "opposite": Table(
        ("What is the opposite of {key}?", "What is not {key}?", "Name the opposite of {key}."),
        "The opposite of {key} is {value}.",
        "It is {value}.",
        {
            "hot": "cold", "big": "small", "day": "night", "old": "young", "high": "low", "fast": "slow",
        },
    ),
}  # fmt: skip
PATTERNS = {
    kind: as_patterns(table.questions, key=one_of(list(table.facts))) for kind, table in TABLES.items()
}


class Task(NamedTuple):
    """Which fact is asked for."""

    kind: str
    key: str

    @property
    def value(self) -> str:
        """The right answer."""
        return TABLES[self.kind].facts[self.key]

    @property
    def wrong_values(self) -> list[str]:
        """Answers to other questions of the kind; no word of this question is among them."""
        values = {value for value in TABLES[self.kind].facts.values() if value not in words_of(self.key)}
        return sorted(values - {self.value})


def draw(rng: Random) -> Task:
    """Any fact."""
    kind = rng.choice(list(TABLES))
    return Task(kind, rng.choice(list(TABLES[kind].facts)))


def ask_for(task: Task, rng: Random) -> str:
    """The question, in one of its wordings."""
    return rng.choice(TABLES[task.kind].questions).format(key=task.key)


def read(text: str) -> Task | None:
    """The fact that a question asks for."""
    for kind, patterns in PATTERNS.items():
        found = match(patterns, text)
        if found:
            return Task(kind, found["key"])
    return None


def state(task: Task, value: str) -> str:
    """The whole sentence, with that value."""
    return TABLES[task.kind].statement.format(key=task.key, value=value)


def is_right(task: Task, answer: str) -> bool:
    """Whether the right value is named and no wrong one."""
    said = set(words_of(answer))
    return task.value.lower() in said and not any(value.lower() in said for value in task.wrong_values)


def _make(rng: Random) -> Prompt:
    return Prompt("", ask(ask_for(draw(rng), rng), rng), "facts")


def _parse(messages: Sequence[Message]) -> Task | None:
    return read(question(messages))


def _good(task: Task, rng: Random) -> str:
    return state(task, task.value) if rng.random() < 0.6 else TABLES[task.kind].short.format(value=task.value)


def _content(task: Task, answer: str) -> Content:
    if is_right(task, answer):
        return Content(1.0, "right")
    said = set(words_of(answer))
    named = any(value.lower() in said for value in (task.value, *task.wrong_values))
    return Content(0.1, "wrong") if named else Content(0.05, "no answer")


def _statement(rng: Random) -> str:
    task = draw(rng)
    return state(task, task.value)


FAMILY = Family(
    name="facts",
    make=_make,
    parse=_parse,
    good=_good,
    flaws={
        "wrong": lambda task, rng: state(task, rng.choice(task.wrong_values)),
        "terse": lambda task, rng: f"{task.value.capitalize()}.",
    },
    content=_content,
    statement=_statement,
    num_words=(3, 10),
    lexicon=lexicon(
        *(
            text
            for table in TABLES.values()
            for text in (*table.questions, table.statement, table.short, *table.facts, *table.facts.values())
        ),
    ),
)
