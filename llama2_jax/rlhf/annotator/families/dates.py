"""Questions about a date that the prompt gives: the year before or after, this year, this month."""

from collections.abc import Sequence
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

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
YEARS = range(2020, 2025)
TODAY = "Today is {day} {month} {year}. {question}"
QUESTIONS = {
    "Which year comes next?": "The next year is {value}.",
    "Which year was before?": "The year before was {value}.",
    "Which year is it?": "This is the year {value}.",
    "Which month is it?": "This is the month of {value}.",
}
PATTERNS = as_patterns(
    [TODAY], day=r"\d+", month=one_of(MONTHS), year=r"\d{4}", question=one_of(list(QUESTIONS))
)
SHORT = "It is {value}."


class Task(NamedTuple):
    """A date and what is asked about it."""

    day: str
    month: str
    year: int
    question: str

    @property
    def value(self) -> str:
        """The right answer."""
        years = {"next": self.year + 1, "before": self.year - 1, "it": self.year}
        return self.month if "month" in self.question else str(years[words_of(self.question)[-1]])


def _draw(rng: Random) -> Task:
    return Task(str(rng.randint(1, 28)), rng.choice(MONTHS), rng.choice(YEARS), rng.choice(list(QUESTIONS)))


def _make(rng: Random) -> Prompt:
    return Prompt("", ask(TODAY.format(**_draw(rng)._asdict()), rng), "dates")


def _parse(messages: Sequence[Message]) -> Task | None:
    found = match(PATTERNS, question(messages))
    return Task(found["day"], found["month"], int(found["year"]), found["question"]) if found else None


def _good(task: Task, rng: Random) -> str:
    template = QUESTIONS[task.question] if rng.random() < 0.6 else SHORT
    return template.format(value=task.value)


def _wrong(task: Task, rng: Random) -> str:
    values = MONTHS if "month" in task.question else [str(task.year + step) for step in (-2, -1, 0, 1, 2)]
    return QUESTIONS[task.question].format(value=rng.choice([v for v in values if v != task.value]))


def _content(task: Task, answer: str) -> Content:
    """Right if, of all years or months, the answer names the right one alone."""
    said = words_of(answer)
    months = {month.lower() for month in MONTHS}
    named = [word for word in said if (word in months if "month" in task.question else word.isdigit())]
    if not named:
        return Content(0.05, "no date")
    return Content(1.0, "right") if named == [task.value.lower()] else Content(0.1, "wrong")


def _statement(rng: Random) -> str:
    task = _draw(rng)
    return f"{TODAY.format(**task._asdict())} {QUESTIONS[task.question].format(value=task.value)}"


FAMILY = Family(
    name="dates",
    make=_make,
    parse=_parse,
    good=_good,
    flaws={"wrong": _wrong, "terse": lambda task, rng: f"{task.value}."},
    content=_content,
    statement=_statement,
    num_words=(3, 10),
    lexicon=lexicon(
        *QUESTIONS, *QUESTIONS.values(), SHORT, TODAY, *MONTHS, *map(str, range(1, 29)),
        *map(str, range(YEARS[0] - 2, YEARS[-1] + 3))
    ),
)  # fmt: skip
