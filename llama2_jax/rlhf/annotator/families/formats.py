"""Instructions about the form of the answer: one word, a list of three, say it twice, the last word."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from llama2_jax.data.chat import Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.families import facts
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

ONE_WORD = ("Answer with one word. {question}", "Use one word only. {question}")
LIST = ("Name three {kind}.", "Give me three {kind}.", "List three {kind}.")
TWICE = ("Say {word} twice.", "Write {word} two times.", "Repeat {word} twice.")
LAST = ("End your answer with the word {word}.", "Write a line that ends with {word}.")
TEMPLATES = {"one word": ONE_WORD, "list": LIST, "twice": TWICE, "last": LAST}

KINDS = {
    "animals": ("cat", "dog", "cow", "duck", "sheep", "pig", "lion", "horse"),
    "colours": ("red", "green", "blue", "white", "black", "yellow", "brown"),
    "fruits": ("apple", "pear", "plum", "fig", "grape", "lemon", "cherry"),
    "cities": ("Paris", "Rome", "Madrid", "Athens", "Cairo", "Tokyo", "Oslo"),
}
WORDS = ("hello", "moon", "star", "bread", "song", "tree", "house", "snow")
PATTERNS = {
    form: as_patterns(templates, question=".+", kind=one_of(list(KINDS)), word="[a-z]+")
    for form, templates in TEMPLATES.items()
}
STARTS = ("I can see the", "Here is the", "We all like the", "There is the")


class Task(NamedTuple):
    """``form`` is a key of ``TEMPLATES``; ``about`` the kind, the word, or the question."""

    form: str
    about: str


def _make(rng: Random) -> Prompt:
    form = rng.choice(list(TEMPLATES))
    template = rng.choice(TEMPLATES[form])
    text = template.format(
        question=facts.ask_for(facts.draw(rng), rng), kind=rng.choice(list(KINDS)), word=rng.choice(WORDS)
    )
    return Prompt("", ask(text, rng), "formats")


def _parse(messages: Sequence[Message]) -> Task | None:
    text = question(messages)
    for form, patterns in PATTERNS.items():
        found = match(patterns, text)
        if found:
            task = Task(form, found[1])
            return task if form != "one word" or facts.read(task.about) else None
    return None


def _fact(task: Task) -> facts.Task:
    fact = facts.read(task.about)
    assert fact is not None  # _parse has read it
    return fact


def _listed(kind: str, count: int, rng: Random) -> str:
    items = rng.sample(KINDS[kind], count)
    text = ", ".join(items[:-1]) + " and " + items[-1] if count > 1 else items[0]
    return text[0].upper() + text[1:] + "."


def _repeated(word: str, count: int) -> str:
    return " ".join([word.capitalize(), *[word] * (count - 1)]) + "."


def _good(task: Task, rng: Random) -> str:
    if task.form == "one word":
        return _fact(task).value.capitalize() + "."
    if task.form == "list":
        return _listed(task.about, 3, rng)
    if task.form == "twice":
        return _repeated(task.about, 2)
    return f"{rng.choice(STARTS)} {task.about}."


def _wrong(task: Task, rng: Random) -> str:
    """In the right form, with the wrong content."""
    if task.form == "one word":
        return rng.choice(_fact(task).wrong_values).capitalize() + "."
    if task.form == "list":
        return _listed(rng.choice([kind for kind in KINDS if kind != task.about]), 3, rng)
    other = rng.choice([word for word in WORDS if word != task.about])
    return _repeated(other, 2) if task.form == "twice" else f"{rng.choice(STARTS)} {other}."


def _off_format(task: Task, rng: Random) -> str:
    """About the right thing, in another form than was asked for."""
    if task.form == "one word":
        return facts.state(_fact(task), _fact(task).value)
    if task.form == "list":
        return _listed(task.about, rng.choice((1, 2, 4)), rng)
    if task.form == "twice":
        return _repeated(task.about, rng.choice((1, 3)))
    return f"The {task.about} is here."


def _content(task: Task, answer: str) -> Content:
    said = words_of(answer)
    if task.form == "one word":
        fact = _fact(task)
        if said == [fact.value.lower()]:
            return Content(1.0, "right")
        return Content(0.3, "more than one word") if facts.is_right(fact, answer) else Content(0.1, "wrong")
    if task.form == "list":
        items = [word for word in said if word in {item.lower() for item in KINDS[task.about]}]
        others = [word for word in said if word not in items and word != "and"]
        score = max(
            0.0, 1 - 0.4 * abs(3 - len(set(items))) - 0.3 * (len(items) - len(set(items)) + len(others))
        )
        return Content(max(score, 0.05), "right" if score == 1 else "not three")
    if task.form == "twice":
        if said == [task.about] * 2:
            return Content(1.0, "right")
        return Content(0.3, "not twice") if set(said) == {task.about} else Content(0.1, "wrong")
    if said[-1:] == [task.about] and said.count(task.about) == 1 and len(said) >= 4:
        return Content(1.0, "right")
    return Content(0.3, "not at the end") if task.about in said else Content(0.1, "wrong")


def _statement(rng: Random) -> str:
    kind = rng.choice(list(KINDS))
    word = rng.choice(WORDS)
    return rng.choice(
        (
            f"Three {kind}: {_listed(kind, 3, rng)}",
            f"{word.capitalize()} twice: {_repeated(word, 2)}",
            f"A line that ends with {word}: {rng.choice(STARTS)} {word}.",
        )
    )


FAMILY = Family(
    name="formats",
    make=_make,
    parse=_parse,
    good=_good,
    flaws={"wrong": _wrong, "off format": _off_format},
    content=_content,
    statement=_statement,
    num_words=(1, 8),
    lexicon=lexicon(
        *(template for templates in TEMPLATES.values() for template in templates),
        *KINDS, *(item for items in KINDS.values() for item in items), *WORDS, *STARTS, "The is here",
    ) | facts.FAMILY.lexicon,
)  # fmt: skip
