"""Sums of numbers from 1 to 4, and the differences that undo them: few enough for a small model to learn.

No result is equal to one of the two numbers, so that repeating the question is never right.
"""

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
    question,
    words_of,
)

SUMS = ("What is {a} plus {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "{a} plus {b} is what?")
DIFFERENCES = (
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "Take {b} from {a}.",
    "{a} minus {b} is what?",
)
ANSWERS = ("{a} {sign} {b} is {result}.", "The answer is {result}.", "It is {result}.")
PATTERNS = {
    "plus": as_patterns(SUMS, a=r"\d+", b=r"\d+"),
    "minus": as_patterns(DIFFERENCES, a=r"\d+", b=r"\d+"),
}


class Task(NamedTuple):
    """``a sign b``; the sign is plus or minus."""

    a: int
    sign: str
    b: int

    @property
    def result(self) -> int:
        """The right answer."""
        return self.a + self.b if self.sign == "plus" else self.a - self.b


def _draw(rng: Random) -> Task:
    a, b = rng.randint(1, 4), rng.randint(1, 4)
    return Task(a, "plus", b) if a == b or rng.random() < 0.5 else Task(a + b, "minus", b)


def _make(rng: Random) -> Prompt:
    task = _draw(rng)
    template = rng.choice(SUMS if task.sign == "plus" else DIFFERENCES)
    return Prompt("", ask(template.format(a=task.a, b=task.b), rng), "arithmetic")


def _parse(messages: Sequence[Message]) -> Task | None:
    for sign, patterns in PATTERNS.items():
        found = match(patterns, question(messages))
        if found:
            return Task(int(found["a"]), sign, int(found["b"]))
    return None


def _say(task: Task, result: int, rng: Random) -> str:
    return rng.choice(ANSWERS).format(a=task.a, sign=task.sign, b=task.b, result=result)


def _wrong(task: Task, rng: Random) -> str:
    near = [task.result + step for step in (-3, -2, -1, 1, 2, 3)]
    return _say(task, rng.choice([result for result in near if result > 0]), rng)


def _content(task: Task, answer: str) -> Content:
    """Right if the result is the last number and nothing but the question's numbers stands before it."""
    numbers = [int(word) for word in words_of(answer) if word.isdigit()]
    if not numbers:
        return Content(0.05, "no number")
    right = numbers[-1] == task.result and set(numbers[:-1]) <= {task.a, task.b}
    return Content(1.0, "right") if right else Content(0.1, "wrong")


def _statement(rng: Random) -> str:
    task = _draw(rng)
    return f"{task.a} {task.sign} {task.b} is {task.result}."


FAMILY = Family(
    name="arithmetic",
    make=_make,
    parse=_parse,
    good=lambda task, rng: _say(task, task.result, rng),
    flaws={"wrong": _wrong, "terse": lambda task, rng: f"{task.result}."},
    content=_content,
    statement=_statement,
    num_words=(3, 8),
    lexicon=lexicon(*SUMS, *DIFFERENCES, *ANSWERS, "plus minus", *map(str, range(19))),
)
