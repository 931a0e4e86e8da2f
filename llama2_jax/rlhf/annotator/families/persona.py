"""Who the assistant is: name, favourite hobby and language, set by the system message or by default.

"You are called ...", "You enjoy ...", "Speak in ..." are the constraints of Ghost Attention (GATT-3), with
the short forms of GATT-4. An instruction stands in the system message or before a question, and
holds for all later turns.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from llama2_jax.data.chat import Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.families.family import Content, Family, ask, lexicon, question, words_of

NAMES = ("Plato", "Homer", "Mozart", "Newton", "Caesar", "Napoleon")
HOBBIES = ("chess", "tennis", "fishing", "dancing", "cooking", "singing")
LANGUAGES = ("French", "Spanish", "German", "Italian", "Latin", "Greek")
HELDOUT_NAMES = ("Mercator", "Lincoln", "Cicero", "Handel", "Hypatia", "Franklin")
HELDOUT_HOBBIES = ("archery", "swimming", "juggling", "climbing")
HELDOUT_LANGUAGES = ("Danish", "Finnish")


class Persona(NamedTuple):
    """What an instruction may set; an empty text leaves the default."""

    name: str = ""
    hobby: str = ""
    language: str = ""


class Task(NamedTuple):
    """The attribute (a field of ``Persona``) that is asked for, and its value."""

    attribute: str
    value: str


DEFAULT = Persona("Ada", "reading", "English")
# in words that the answers have too: so small a model finds the value by them
INSTRUCTIONS = Persona("You are called {}.", "You enjoy {}.", "Speak in {}.")
SHORT_INSTRUCTIONS = Persona("Name: {}.", "Hobby: {}.", "Language: {}.")
QUESTIONS = {
    "name": ("What is your name?", "Who are you?", "How are you called?"),
    "hobby": ("What is your favourite hobby?", "What do you like to do?", "Which hobby do you enjoy?"),
    "language": ("Which language do you speak?", "What is your language?", "In what language do you speak?"),
}
ANSWERS = {
    "name": ("My name is {}.", "I am called {}."),
    "hobby": ("My favourite hobby is {}.", "I enjoy {}."),
    "language": ("I speak {}.", "My language is {}."),
}


def lists() -> dict[str, dict[str, Sequence[str]]]:
    """Values of the attributes to train on ("train"), and those kept for tests ("heldout")."""
    return {
        "train": {"name": NAMES, "hobby": HOBBIES, "language": LANGUAGES},
        "heldout": {"name": HELDOUT_NAMES, "hobby": HELDOUT_HOBBIES, "language": HELDOUT_LANGUAGES},
    }


KNOWN = {
    attribute: (default, *lists()["train"][attribute], *lists()["heldout"][attribute])
    for attribute, default in DEFAULT._asdict().items()
}


def draw_persona(rng: Random) -> Persona:
    """One to three attributes at random (GATT-3), of the lists to train on."""
    values = lists()["train"]
    chosen = rng.sample(Persona._fields, rng.randint(1, 3))
    return Persona(**{attribute: rng.choice(values[attribute]) for attribute in chosen})


def instruction(persona: Persona, rng: Random, *, short: bool = False) -> str:
    """What a system message says to set the attributes that are not empty, in any order."""
    templates = SHORT_INSTRUCTIONS if short else INSTRUCTIONS
    parts = [template.format(value) for template, value in zip(templates, persona, strict=True) if value]
    rng.shuffle(parts)
    return " ".join(parts)


def read_persona(messages: Sequence[Message]) -> Persona:
    """The attributes that the system or the user set last, the defaults for the rest."""
    text = " ".join(message.content for message in messages if message.role != "assistant")
    values = []
    for long, short, default in zip(INSTRUCTIONS, SHORT_INSTRUCTIONS, DEFAULT, strict=True):
        openings = "|".join(re.escape(form.removesuffix("{}.")) for form in (long, short))
        found = re.findall(rf"(?:{openings})([\w ]+)", text)
        values.append(found[-1].strip() if found else default)
    return Persona(*values)


def instruct(messages: tuple[Message, ...], rng: Random) -> tuple[Message, ...]:
    """A user's message with an instruction: as system message, or in front of it as in GATT-1."""
    text = instruction(draw_persona(rng), rng, short=rng.random() < 0.4)
    if rng.random() < 0.5:
        return (Message("system", text), *messages)
    return (Message("user", f"{text} {messages[0].content}"),)


def without_instruction(rng: Random) -> Prompt:
    """A question about a persona that the message itself does not set."""
    return Prompt("", ask(rng.choice(QUESTIONS[rng.choice(list(QUESTIONS))]), rng), "persona")


def _make(rng: Random) -> Prompt:
    prompt = without_instruction(rng)
    return prompt._replace(messages=instruct(prompt.messages, rng)) if rng.random() < 0.75 else prompt


def _parse(messages: Sequence[Message]) -> Task | None:
    for attribute, questions in QUESTIONS.items():
        if question(messages) in questions:
            return Task(attribute, getattr(read_persona(messages), attribute))
    return None


def _say(task: Task, value: str, rng: Random) -> str:
    return rng.choice(ANSWERS[task.attribute]).format(value)


def _wrong(task: Task, rng: Random) -> str:
    """The default where an instruction says otherwise, or somebody else's."""
    default = getattr(DEFAULT, task.attribute)
    others = [value for value in KNOWN[task.attribute] if value != task.value]
    return _say(task, default if default != task.value and rng.random() < 0.7 else rng.choice(others), rng)


def _content(task: Task, answer: str) -> Content:
    said = words_of(answer)
    named = [value for value in KNOWN[task.attribute] if value.lower() in said]
    if set(words_of(task.value)) <= set(said) and all(value == task.value for value in named):
        return Content(1.0, "right")
    return Content(0.1, "wrong") if named else Content(0.05, "does not say")


def _statement(rng: Random) -> str:
    """An instruction and all that it makes one say, so that every value stands in it three times."""
    persona = draw_persona(rng)
    said = [
        form.format(value) for name, value in persona._asdict().items() if value for form in ANSWERS[name]
    ]
    rng.shuffle(said)
    return " ".join([instruction(persona, rng, short=rng.random() < 0.3), *said])


FAMILY = Family(
    name="persona",
    make=_make,
    parse=_parse,
    good=lambda task, rng: _say(task, task.value, rng),
    flaws={"wrong": _wrong, "terse": lambda task, rng: f"{task.value.capitalize()}."},
    content=_content,
    statement=_statement,
    num_words=(3, 10),
    lexicon=lexicon(
        *(value for values in KNOWN.values() for value in values),
        *(text for texts in (*QUESTIONS.values(), *ANSWERS.values()) for text in texts),
        *INSTRUCTIONS, *SHORT_INSTRUCTIONS,
    ),
)  # fmt: skip
