"""Prompts to sample answers for: JSONL, one dialogue that ends with the user per row."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.config import to_plain
from llama2_jax.data.chat import Message, validate_dialogue
from llama2_jax.data.jsonl import parse_rows, write_rows
from llama2_jax.data.records import DataError, check_keys, text_of
from llama2_jax.data.sources import check_not_empty, to_messages


class Prompt(NamedTuple):
    """A dialogue to be answered. ``is_safety`` is the tag given beforehand (PPO-4)."""

    prompt_id: str  # unique within a file; what the archive is keyed by, never the text
    messages: tuple[Message, ...]
    family: str = ""
    is_safety: bool = False
    risk_category: str = ""
    attack_vector: str = ""


def read_prompts(path: str | Path) -> list[Prompt]:
    """All prompts of a file.

    Raises:
      DataError: a row that ``prompt_from_row`` refuses, or an id that stands twice (file, line, reason).
    """
    seen: set[str] = set()

    def parse(row: dict[str, Any]) -> Prompt:
        prompt = prompt_from_row(row)
        if prompt.prompt_id in seen:
            raise ValueError(f"prompt_id {prompt.prompt_id!r} stands twice; ids must be unique")
        seen.add(prompt.prompt_id)
        return prompt

    return parse_rows(path, parse)


def read_prompts_to_train_on(path: str | Path) -> list[Prompt]:
    """``read_prompts`` for a stage whose answers are trained on: sft and reward models take no empty message.

    Raises:
      DataError: which prompt has one; or what ``read_prompts`` raises.
    """
    prompts = read_prompts(path)
    for prompt in prompts:
        try:
            check_not_empty(prompt.messages)
        except ValueError as error:
            raise DataError(
                f"{path}: prompt {prompt.prompt_id!r}: {error}; leave it out, or fill in"
            ) from error
    return prompts


def prompt_from_row(row: dict[str, Any]) -> Prompt:
    """A checked prompt from its JSON form, which is ``to_plain`` of it.

    Raises:
      ValueError: no ``prompt_id`` or usable ``messages``, an unknown key, a value of another type.
    """
    check_keys(row, Prompt._fields)
    messages = to_messages(row.get("messages"))
    validate_dialogue(messages, ends_with="user")
    values = {**Prompt._field_defaults, **row, "messages": tuple(messages)}
    for key, kind in Prompt.__annotations__.items():
        if key != "messages" and not isinstance(values.get(key), kind):
            raise ValueError(f"{key!r} is {values.get(key)!r}; it must be of type {kind.__name__}")
    return Prompt(**values)


def asked_messages(row: dict[str, Any]) -> list[Message]:
    """The dialogue that a row asks to be answered: {"prompt": text of a user} or {"messages": [...]}.

    Raises:
      KeyError, ValueError: it has neither, or one that does not end with the user.
    """
    from_text = "prompt" in row
    messages = [Message("user", text_of(row, "prompt"))] if from_text else to_messages(row["messages"])
    validate_dialogue(messages, ends_with="user")
    return messages


def write_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write a prompt file; it appears when it is complete."""
    write_rows(path, map(to_plain, prompts))
