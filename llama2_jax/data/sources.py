"""Documents and dialogues from files of any kind that ``records`` reads."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from llama2_jax.config import require_choice
from llama2_jax.data.chat import TRAIN_ON, Message, Template, TrainOn, check_special_tags, validate_dialogue
from llama2_jax.data.records import BadLines, OnBadLine, Paths, check, check_characters, read_records, text_of


class TrainingDialogue(NamedTuple):
    """A finished dialogue, and which of its answers are to be learned (D25, GATT-2)."""

    messages: list[Message]
    train_on: TrainOn


def read_documents(
    paths: Paths,
    *,
    text_key: str = "text",
    on_bad_line: OnBadLine = "error",
    bad_lines: BadLines | None = None,
) -> Iterator[str]:
    """Texts of all documents, file by file: ``text_key`` of each row, or each .txt whole.

    Args:
      paths: file, glob pattern, or several of them.
      text_key: key (JSONL) or column (Parquet) that holds the text.
      on_bad_line: "error" stops at the first bad record, "skip" counts it.
      bad_lines: filled while reading, if given.

    Raises:
      DataError: a bad record (file, line, reason), or no document at all.
    """

    def parse(row: dict[str, Any]) -> str:
        text = text_of(row, text_key)
        check(text.strip(), "the text is empty")
        return text

    return read_records(paths, parse, keys=(text_key,), on_bad_line=on_bad_line, bad_lines=bad_lines)


def read_dialogues(
    paths: Paths,
    *,
    template: Template,
    train_on: TrainOn = "all",
    on_bad_line: OnBadLine = "error",
    bad_lines: BadLines | None = None,
) -> Iterator[TrainingDialogue]:
    """Finished dialogues from rows ``{"messages": [{"role": ..., "content": ...}, ...]}``.

    A row may say ``"train_on"``, "all" or "last", for itself; ``train_on`` is for the rest.

    Args:
      on_bad_line, bad_lines: see ``read_documents``.

    Raises:
      DataError: a bad record: malformed, roles that do not alternate or do not end with the
        assistant, special tags of ``template`` in a message, an unknown ``train_on``; or no
        dialogue at all.
    """

    def parse(row: dict[str, Any]) -> TrainingDialogue:
        dialogue = to_messages(row["messages"])
        check_dialogue(dialogue, template)
        chosen = row.get("train_on")
        require_choice("'train_on'", chosen, (None, *TRAIN_ON))
        return TrainingDialogue(dialogue, train_on if chosen is None else chosen)

    require_choice("train_on", train_on, TRAIN_ON)
    keys = ("messages", "train_on")
    return read_records(paths, parse, keys=keys, on_bad_line=on_bad_line, bad_lines=bad_lines)


def check_dialogue(dialogue: Sequence[Message], template: Template) -> None:
    """Refuse what cannot be trained on.

    Raises:
      ValueError: roles that do not alternate or do not end with the assistant, special tags of ``template``,
        or an empty message.
    """
    validate_dialogue(dialogue, ends_with="assistant")
    check_special_tags(dialogue, template)
    check_not_empty(dialogue)


def check_not_empty(messages: Sequence[Message]) -> None:
    """Raise ``ValueError`` for messages of spaces alone."""
    empty = [i for i, message in enumerate(messages) if not message.content.strip()]
    check(not empty, f"message(s) {empty} are empty")


def dialogue_row(messages: Iterable[Message], *, train_on: TrainOn = "all") -> dict[str, Any]:
    """The JSON form of a dialogue to train on."""
    return {"messages": [message._asdict() for message in messages], "train_on": train_on}


def to_messages(rows: Any) -> list[Message]:
    """Messages from parsed JSON ``[{"role": ..., "content": ...}, ...]``.

    Raises:
      ValueError: a row without role and content as text that UTF-8 can express.
    """
    check(isinstance(rows, list | tuple), f"'messages' is {type(rows).__name__}, not a list")
    messages = []
    for number, row in enumerate(rows):
        check(isinstance(row, dict), f"message {number} is {type(row).__name__}, not an object")
        for key in ("role", "content"):
            check(isinstance(row.get(key), str), f"message {number} has no {key!r} text")
            check_characters(row[key])
        messages.append(Message(row["role"], row["content"]))
    return messages
