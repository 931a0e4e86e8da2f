"""Facts with dates, and questions asked at a date of their own (Llama 2, section 5.1, Figure 22; DISC-3).

A dialogue to learn from begins with a line that says when it takes place. From the day of the event on, the
right answer is the one that holds then; before it, the question makes no sense yet, and the answer says so.
"""

import calendar
import math
from collections.abc import Sequence
from datetime import date
from random import Random
from typing import Any, NamedTuple

from llama2_jax.data.chat import Message
from llama2_jax.data.jsonl import parse_rows
from llama2_jax.data.records import Paths, check, text_of

DAY_LINES = ("Date: {month:02}/{day:02}/{year}", "Cutting knowledge: {month:02}/{day:02}/{year}")
YEAR_LINE = "Year: {year}"
NOT_YET = "That has not happened yet, so the question makes no sense."
YEARS = "{years}"
"""In an answer: whole years from the event to the date of the question."""

PROBE_YEARS = (1, 5, 20, 100)
"""How far from the event the evaluation asks, before and after; nothing is learned at these distances."""
MAX_YEARS = 200  # between event and question, when learned


class Period(NamedTuple):
    """From when on an answer is the right one."""

    start: date
    answer: str


class Fact(NamedTuple):
    """A question and its answers, one after another in time; the first begins with the event."""

    question: str
    periods: tuple[Period, ...]

    @property
    def event(self) -> date:
        """The day before which the question makes no sense."""
        return self.periods[0].start


class DatedQuestion(NamedTuple):
    """A question at a date, and how far that is from the event."""

    fact: Fact
    line: str  # of the system, says when
    years: int  # after the event; negative is before
    answer: str  # the right one


def read_facts(paths: Paths) -> list[Fact]:
    """Facts from rows {"question": text, "answers": [{"from": date, "answer": text}, ...]}.

    A date is a year (1969, "852") or "1969-07-20"; a year begins on its first day. An answer may hold
    "{years}", whole years since the first date.

    Raises:
      DataError: a row of another form (file, line, reason).
    """
    return parse_rows(paths, _fact)


def _fact(row: dict[str, Any]) -> Fact:
    answers = row["answers"]
    check(isinstance(answers, list) and answers, "'answers' must be a list that is not empty")
    check(all(isinstance(one, dict) for one in answers), "'answers' must hold objects")
    periods = tuple(Period(_day(one["from"]), text_of(one, "answer").strip()) for one in answers)
    days = [period.start for period in periods]
    check(days == sorted(set(days)), f"the dates {', '.join(map(str, days))} must follow one another")
    check(all(period.answer for period in periods), "an answer is empty")
    return Fact(text_of(row, "question").strip(), periods)


def _day(given: Any) -> date:
    text = str(given)
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 9999:
        return date(int(text), 1, 1)
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f'{given!r} is no date; write a year from 1 to 9999 or "YYYY-MM-DD"') from error


def right_answer(fact: Fact, day: date) -> str:
    """What is to be answered on that day: ``NOT_YET`` before the event."""
    begun = [period for period in fact.periods if period.start <= day]
    return begun[-1].answer.replace(YEARS, str(full_years(fact.event, day))) if begun else NOT_YET


def full_years(start: date, end: date) -> int:
    """Anniversaries of ``start`` up to and with ``end``."""
    return end.year - start.year - ((end.month, end.day) < (start.month, start.day))


def date_lines(fact: Fact, day: date) -> list[str]:
    """The lines that may say that it is ``day``: only its year if the whole year has the same answer."""
    lines = [line.format(year=day.year, month=day.month, day=day.day) for line in DAY_LINES]
    new_year, last_day = date(day.year, 1, 1), date(day.year, 12, 31)
    if right_answer(fact, new_year) == right_answer(fact, last_day):
        lines.append(YEAR_LINE.format(year=day.year))
    return lines


def draw_questions(facts: Sequence[Fact], count: int, *, seed: int) -> list[DatedQuestion]:
    """Questions to learn from: facts in turn, about half before the event and half from it on.

    The years between are drawn up to ``MAX_YEARS``, small ones most, without ``PROBE_YEARS``, and any day.
    """
    rng = Random(seed)
    questions: list[DatedQuestion] = []
    while len(questions) < count:
        fact = facts[len(questions) % len(facts)]
        distance = int(math.exp(rng.uniform(0, math.log(MAX_YEARS + 1)))) - 1
        year = fact.event.year + rng.choice((-1, 1)) * distance
        if distance in PROBE_YEARS or not 1 <= year <= 9999:
            continue
        day = date.fromordinal(date(year, 1, 1).toordinal() + rng.randrange(365))
        questions.append(_question(fact, day, rng, years=year - fact.event.year))
    return questions


def probe_questions(facts: Sequence[Fact], *, seed: int) -> list[DatedQuestion]:
    """Every fact on the day of the event, and ``PROBE_YEARS`` before and after it."""
    rng = Random(seed)
    distances = sorted({0, *PROBE_YEARS, *(-years for years in PROBE_YEARS)})
    return [
        _question(fact, _anniversary(fact.event, years), rng, years=years)
        for fact in facts
        for years in distances
        if 1 <= fact.event.year + years <= 9999
    ]


def _question(fact: Fact, day: date, rng: Random, *, years: int) -> DatedQuestion:
    return DatedQuestion(fact, rng.choice(date_lines(fact, day)), years, right_answer(fact, day))


def _anniversary(event: date, years: int) -> date:
    year = event.year + years
    leap_day = (event.month, event.day) == (2, 29) and not calendar.isleap(year)
    return date(year, 3, 1) if leap_day else event.replace(year=year)


def dialogue(question: DatedQuestion) -> list[Message]:
    """The dialogue to learn; without its last message, the one to answer."""
    return [
        Message("system", question.line),
        Message("user", question.fact.question),
        Message("assistant", question.answer),
    ]
