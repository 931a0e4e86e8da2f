"""Does a model answer as of the date that it is told? (Llama 2, section 5.1, Figure 22; DISC-3)

The paper looked at dozens of answers and has no number. Here a program tells: from the event on, an answer
is right if it has the words of the right one and of no other answer to the question; before it, if it says
that the time has not come and has none of them.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

from llama2_jax.data.dated_facts import NOT_YET, YEARS, DatedQuestion
from llama2_jax.data.gatt import holds_words
from llama2_jax.evals.intervals import Interval, clustered_share

DENIAL = re.compile(
    r"\bno sense\b|(?:\bnot|n't) make (?:any |much )?sense\b|\bnot yet\b|"
    r"(?:\bnot|n't) (?:yet )?(?:happen(?:ed)?|exist(?:ed)?|occur(?:red)?)\b",
    re.IGNORECASE,
)
AT_EVENT = "on the day of the event"


def is_right(answer: str, question: DatedQuestion) -> bool:
    """Whether an answer is right at the date of its question; words in any case."""
    says_not_yet = DENIAL.search(answer) is not None
    right = _bare(question.answer)
    others = [_bare(period.answer) for period in question.fact.periods if YEARS not in period.answer]
    if any(holds_words(answer, one) and not holds_words(right, one) for one in others):
        return False
    if question.answer == NOT_YET:
        return says_not_yet
    return not says_not_yet and holds_words(answer, right)


def _bare(answer: str) -> str:
    return answer.rstrip(" .!")  # an answer may do without


def accuracy(questions: Sequence[DatedQuestion], right: Sequence[bool]) -> dict[str, tuple[int, Interval]]:
    """Number of questions and share of right answers, by side of the event and by distance.

    Intervals take questions about one fact to go together. "arithmetic" are those whose answer is a number of
    years, from the event on.
    """
    found = {}
    for name, belongs in _groups(questions).items():
        own = [(q.fact.question, float(ok)) for q, ok in zip(questions, right, strict=True) if belongs(q)]
        if own:
            found[name] = (len(own), clustered_share([ok for _, ok in own], [fact for fact, _ in own]))
    return found


def _groups(questions: Sequence[DatedQuestion]) -> dict[str, Callable[[DatedQuestion], bool]]:
    groups: dict[str, Callable[[DatedQuestion], bool]] = {
        "before the event": lambda one: one.years < 0,
        "from the event on": lambda one: one.years >= 0,
        "of these, arithmetic": lambda one: one.years >= 0 and YEARS in one.fact.periods[-1].answer,
    }
    for years in sorted({question.years for question in questions}):
        groups[_distance(years)] = partial(_is_at, years)
    return groups


def _is_at(years: int, question: DatedQuestion) -> bool:
    return question.years == years


def _distance(years: int) -> str:
    if years == 0:
        return AT_EVENT
    return f"{abs(years)} year{'s' if abs(years) > 1 else ''} {'after' if years > 0 else 'before'} it"
