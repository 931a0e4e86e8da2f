"""Rendered chats as strings, which is how lm_eval hands them on.

Control tokens are no text here (TOK-6): in such a string each stands as a mark that no document holds by
accident, and only ``encode_text`` turns marks into ids.
"""

import re
from collections.abc import Sequence

from llama2_jax.config import require
from llama2_jax.data.chat import Marker, Message, Template, encode_parts, prompt_parts
from llama2_jax.data.tokenizer import Tokenizer

_MARK = re.compile("\ue000control token:([^\ue000]+)\ue000")  # a character for private use


def chat_text(dialogue: Sequence[Message], template: Template) -> str:
    """The dialogue, up to where the model writes on: the beginning of an answer, or the end of one begun.

    Raises:
      DialogueError, SpecialTagError: see ``prompt_parts``.
      ConfigError: a message holds a mark.
    """
    begun = dialogue[-1].content if dialogue[-1].role == "assistant" else ""
    parts = prompt_parts(dialogue[:-1] if begun else dialogue, template)
    if not template.answer_opening:  # Llama 2's answers begin with a space; lm_eval joins without one
        parts += template.assistant.before
    return "".join(_as_text(part) for part in (*parts, begun))


def is_chat(text: str) -> bool:
    """Whether the text is (the beginning of) a rendered chat."""
    return _MARK.search(text) is not None


def encode_text(text: str, tokenizer: Tokenizer, *, bos: bool) -> list[int]:
    """Ids of a text, after BOS if asked, or of a rendered chat, which says itself where BOS stands."""
    if not is_chat(text):
        return tokenizer.encode(text, bos=bos)
    texts_and_names = _MARK.split(text)
    parts = [Marker(part) if index % 2 else part for index, part in enumerate(texts_and_names)]
    return encode_parts([part for part in parts if part], tokenizer)


def _as_text(part: str | Marker) -> str:
    if isinstance(part, Marker):
        return f"\ue000control token:{part.piece}\ue000"
    require(not is_chat(part), "a message holds the mark of a control token in a rendered chat; remove it")
    return part
