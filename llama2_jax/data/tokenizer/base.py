"""What a tokenizer is, and what both kinds check of their input."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from llama2_jax.files import written_whole


class TokenizerError(ValueError):
    """A tokenizer file, piece or id that cannot be used; the message says what to do."""


class Tokenizer(Protocol):
    """What the rest of the code may ask of a tokenizer."""

    vocab_size: int
    bos_id: int  # -1 when the vocabulary has none, likewise below
    eos_id: int
    pad_id: int
    content_hash: str  # sha256 of the tokenizer file, hex

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of ``text``, with the BOS id before and the EOS id after on request."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; control ids (BOS, EOS, chat markers) leave no trace in it.

        Ids from ``vocab_size`` on, of spare rows of an embedding, are U+FFFD, as bytes that are no
        UTF-8 are. Raises ``TokenizerError`` if one is negative.
        """
        ...

    def special_id(self, piece: str) -> int:
        """Id of the control piece ``piece``. Raises ``TokenizerError`` if there is none."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether ``token_id`` is a control piece."""
        ...

    def save(self, folder: str | Path) -> Path:
        """Write what ``load_tokenizer(folder)`` needs to return an equal tokenizer."""
        ...


def wrap(tokenizer: Tokenizer, ids: list[int], *, bos: bool, eos: bool) -> list[int]:
    """The ids with BOS before and EOS behind. Raises ``TokenizerError`` for one that there is not."""
    for name, wanted, token_id in (("BOS", bos, tokenizer.bos_id), ("EOS", eos, tokenizer.eos_id)):
        if wanted and token_id < 0:
            raise TokenizerError(f"{name} was asked for, but this tokenizer has no {name} token")
    return [tokenizer.bos_id] * bos + ids + [tokenizer.eos_id] * eos


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with.

    Of a text and of a longer one that begins with it: the tokens of the longer one that are the shorter one's
    own. A token that spans its end is not among them.
    """
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)


def encode_pair(prompt: str, completion: str, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Ids of the joined text after BOS, and the number of them that are the prompt's own, from the first."""
    stripped = prompt.rstrip(" ")
    completion = prompt[len(stripped) :] + completion
    bos = tokenizer.bos_id >= 0
    ids = tokenizer.encode(stripped + completion, bos=bos)
    return ids, shared_prefix(tokenizer.encode(stripped, bos=bos), ids)


def text_after(prompt: Sequence[int], ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """What ``ids`` add to the text of the prompt: alone they would lose a leading space (TOK-5)."""
    before, joined = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    return joined[len(before) :] if joined.startswith(before) else tokenizer.decode(ids)


def require_str(text: object) -> str:
    """The text, if it is one that UTF-8 can express; else ``TypeError`` or ``TokenizerError``."""
    if not isinstance(text, str):
        raise TypeError(f"encode needs a str, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is a lone surrogate ({text[error.start]!a}), which UTF-8 "
            "cannot express; remove it"
        ) from error
    return text


def require_ids(ids: Sequence[int]) -> list[int]:
    """The ids as Python numbers. Raises ``TokenizerError`` if one is negative."""
    plain = [int(i) for i in ids]
    if min(plain, default=0) < 0:
        raise TokenizerError(f"token id {min(plain)} is negative; an id is at least 0: drop padding first")
    return plain


def no_special(piece: str) -> str:
    """What to say of a control piece that is not in the vocabulary."""
    return (
        f"the tokenizer has no control piece {piece!r}; use a chat template whose markers it knows "
        "(llama2 needs only BOS and EOS)"
    )


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except (ValueError, RecursionError) as error:  # Unicode and JSON errors are ValueErrors
        raise TokenizerError(f"{path}: {error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a tokenizer's file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_bytes(content)
