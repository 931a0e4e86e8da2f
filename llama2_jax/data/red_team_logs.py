"""Logs of a red-team exercise: JSONL of sessions, and of the dialogues in them (RED-1).

Sessions, one row for the time that one person gave to one version, also where nothing was found:

    {"session": "s1", "person": "p1", "version": "RLHF-V1", "hours": 1.5}

Dialogues with the model, each labelled as a whole:

    {"session": "s1",
     "messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}],
     "violating_turns": [1],             turns whose answer violates, from 1; [] if none does
     "risk_areas": ["self-harm"],        what was sought, the main one first
     "degree_of_risk": 4,                1 (none) to 5 (severe)
     "attack_vector": "hypothetical",    may be left out
     "topics": ["elections"]}            such as those of misinformation; may be left out
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from llama2_jax.data.chat import Message, validate_dialogue
from llama2_jax.data.jsonl import parse_rows
from llama2_jax.data.records import Paths, check, check_keys, is_number, text_of
from llama2_jax.data.sources import to_messages

DEGREES = range(1, 6)


class Session(NamedTuple):
    """The time that one person gave to one version of the model."""

    session: str  # unique
    person: str
    version: str  # of the model that was attacked
    hours: float


class Attack(NamedTuple):
    """A dialogue in which a person tries to make the model violate safety, and its labels."""

    session: Session
    messages: tuple[Message, ...]  # ends with the assistant
    violating_turns: tuple[int, ...]
    risk_areas: tuple[str, ...]
    degree_of_risk: int
    attack_vector: str = ""
    topics: tuple[str, ...] = ()

    @property
    def turns(self) -> int:
        """Messages of the user."""
        return sum(message.role == "user" for message in self.messages)

    @property
    def violating_prompts(self) -> list[tuple[Message, ...]]:
        """The dialogue up to each message whose answer violates."""
        asked = [index for index, message in enumerate(self.messages) if message.role == "user"]
        return [self.messages[: asked[turn - 1] + 1] for turn in self.violating_turns]


def read_sessions(paths: Paths) -> dict[str, Session]:
    """All sessions, by their names.

    Raises:
      DataError: a row of another form, no time, or a name that stands twice (file, line, reason).
    """
    seen: dict[str, Session] = {}

    def parse(row: dict[str, Any]) -> None:
        check_keys(row, Session._fields)
        session, person, version = (_name(row, key) for key in Session._fields[:3])
        check(session not in seen, f"session {session!r} stands twice; give each its own name")
        hours = row["hours"]
        check(
            is_number(hours) and 0 < hours < math.inf,
            f"'hours' is {hours!r}; it must be a number above 0: the time that the session took",
        )
        seen[session] = Session(session, person, version, float(hours))

    parse_rows(paths, parse)
    return seen


def read_attacks(
    paths: Paths, sessions: Mapping[str, Session], *, risk_areas: Collection[str] = ()
) -> list[Attack]:
    """All dialogues.

    Args:
      risk_areas: those that may stand there; any if empty.

    Raises:
      DataError: a row of another form, a session or risk area that is not known, or a label that is missing
        (file, line, reason).
    """

    def parse(row: dict[str, Any]) -> Attack:
        check_keys(row, Attack._fields)
        session = _name(row, "session")
        check(
            session in sessions, f"session {session!r} is not among the {len(sessions)} sessions; add its row"
        )
        messages = to_messages(row["messages"])
        validate_dialogue(messages, ends_with="assistant")
        areas = _names(row, "risk_areas")
        check(bool(areas), "'risk_areas' is empty; name what the dialogue sought")
        strange = [area for area in areas if risk_areas and area not in risk_areas]
        check(not strange, f"unknown risk area(s) {', '.join(strange)}; known: {', '.join(risk_areas)}")
        degree = row["degree_of_risk"]
        check(
            type(degree) is int and degree in DEGREES,
            f"'degree_of_risk' is {degree!r}; it must be a whole number from 1 to 5",
        )
        vector = text_of(row, "attack_vector") if "attack_vector" in row else ""
        topics = _names(row, "topics") if "topics" in row else ()
        attack = Attack(sessions[session], tuple(messages), (), areas, degree, vector, topics)
        return attack._replace(violating_turns=_violating_turns(row, attack.turns))

    return parse_rows(paths, parse)


def session_row(session: Session) -> dict[str, Any]:
    """Its JSON form."""
    return session._asdict()


def attack_row(attack: Attack) -> dict[str, Any]:
    """Its JSON form."""
    messages = [message._asdict() for message in attack.messages]
    return {**attack._asdict(), "session": attack.session.session, "messages": messages}


def _violating_turns(row: dict[str, Any], turns: int) -> tuple[int, ...]:
    found = row["violating_turns"]
    check(
        isinstance(found, list)
        and all(type(turn) is int and 1 <= turn <= turns for turn in found)
        and len(set(found)) == len(found),
        f"'violating_turns' is {found!r}; it must list turns from 1 to {turns}, each once; [] if none does",
    )
    return tuple(sorted(found))


def _name(row: dict[str, Any], key: str) -> str:
    name = text_of(row, key).strip()
    check(name, f"{key!r} is empty; give it a name")
    return name


def _names(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = row[key]
    check(
        isinstance(found, list) and all(isinstance(one, str) and one.strip() for one in found),
        f"{key!r} is {found!r}; it must be a list of texts, none of them empty",
    )
    return tuple(dict.fromkeys(one.strip() for one in found))
