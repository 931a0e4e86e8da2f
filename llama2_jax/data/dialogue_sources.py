"""Fine-tuning data in the forms that other projects publish it in, as dialogues of ours.

Files are those of ``sources``. What cannot be a dialogue (functions that are called, roles out of turn, an
empty message) is a bad record, never mended; only what stands around the turns is cut off, see ``sharegpt``.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llama2_jax.config import require_choice
from llama2_jax.data.chat import Message, Template
from llama2_jax.data.records import BadLines, OnBadLine, Paths, check, read_records, text_of
from llama2_jax.data.sources import check_dialogue

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
"""Who speaks in ShareGPT's files."""


class DialogueForm(NamedTuple):
    """How to read one form."""

    keys: tuple[str, ...]  # fields of a row that are looked at
    parse: Callable[[dict[str, Any]], list[Message]]


def read_foreign_dialogues(
    name: str,
    paths: Paths,
    *,
    template: Template,
    on_bad_line: OnBadLine = "error",
    bad_lines: BadLines | None = None,
) -> Iterator[list[Message]]:
    """All dialogues of the files, in order.

    Args:
      name: one of ``DIALOGUE_FORMS``.
      template: its markers are refused in messages.
      bad_lines: filled with the records that are passed over, if given.

    Raises:
      ConfigError: unknown name.
      DataError: a record that is not of that form, or no dialogue (file, place, reason).
    """
    require_choice("form of dialogues", name, DIALOGUE_FORMS)
    form = DIALOGUE_FORMS[name]

    def parse(row: dict[str, Any]) -> list[Message]:
        dialogue = form.parse(row)
        check_dialogue(dialogue, template)
        return dialogue

    return read_records(paths, parse, keys=form.keys, on_bad_line=on_bad_line, bad_lines=bad_lines)


def alpaca(row: dict[str, Any]) -> list[Message]:
    """``instruction``, ``input`` and ``output``; before them ``system`` and ``history``, pairs of texts."""
    dialogue, history = _system(row), row.get("history") or []
    check(isinstance(history, list), f"'history' is {type(history).__name__}, not a list")
    for number, turn in enumerate(history):
        check(isinstance(turn, list) and len(turn) == 2, f"turn {number} of 'history' is no pair of texts")
        dialogue += _exchange(*turn)
    return [*dialogue, *_exchange(_with_context(row, "input"), text_of(row, "output"))]


def dolly(row: dict[str, Any]) -> list[Message]:
    """``instruction``, ``context`` and ``response``."""
    return _exchange(_with_context(row, "context"), text_of(row, "response"))


def prompt_completion(row: dict[str, Any]) -> list[Message]:
    """``prompt`` and ``completion``, or ``response``."""
    answer = "response" if "response" in row and "completion" not in row else "completion"
    return [*_system(row), *_exchange(text_of(row, "prompt"), text_of(row, answer))]


def sharegpt(row: dict[str, Any]) -> list[Message]:
    """``conversations`` of ``from`` and ``value``; ``system`` may come before.

    Answers before the first question and messages after the last answer, which shared conversations often
    begin and end with, are cut off.
    """
    said = row["conversations"]
    check(isinstance(said, list), f"'conversations' is {type(said).__name__}, not a list")
    dialogue = [_said(number, message) for number, message in enumerate(said)]
    first_system = dialogue[:1] if dialogue and dialogue[0].role == "system" else _system(row)
    turns = dialogue[1:] if dialogue and dialogue[0].role == "system" else dialogue
    while turns and turns[0].role == "assistant":
        turns = turns[1:]
    while turns and turns[-1].role != "assistant":
        turns = turns[:-1]
    return [*first_system, *turns]


def _said(number: int, message: Any) -> Message:
    check(isinstance(message, dict), f"message {number} is {type(message).__name__}, not an object")
    speaker = text_of(message, "from")
    check(speaker in ROLES, f"message {number} is from {speaker!r}; known: {', '.join(ROLES)}")
    return Message(ROLES[speaker], text_of(message, "value").strip())


def _system(row: dict[str, Any]) -> list[Message]:
    text = text_of(row, "system") if row.get("system") else ""
    return [Message("system", text.strip())] if text.strip() else []


def _with_context(row: dict[str, Any], context: str) -> str:
    """The instruction, and in a paragraph after it what it is about, if anything."""
    about = text_of(row, context).strip() if row.get(context) else ""
    return "\n\n".join(filter(None, (text_of(row, "instruction").strip(), about)))


def _exchange(asked: str, said: str) -> list[Message]:
    check(isinstance(asked, str) and isinstance(said, str), "a turn is no pair of texts")
    return [Message("user", asked.strip()), Message("assistant", said.strip())]


DIALOGUE_FORMS = {
    "alpaca": DialogueForm(("instruction", "input", "output", "system", "history"), alpaca),
    "dolly": DialogueForm(("instruction", "context", "response"), dolly),
    "prompt_completion": DialogueForm(("prompt", "completion", "response", "system"), prompt_completion),
    "sharegpt": DialogueForm(("conversations", "system"), sharegpt),
}
