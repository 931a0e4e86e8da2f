"""What a tokenizer is, and what both kinds check of their input."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from llama2_jax.config import UserError
from llama2_jax.files import written_whole

CONFIG = "tokenizer_config.json"


class TokenizerError(UserError, ValueError):
    """A tokenizer file, piece or id that cannot be used; the message says what to do."""


class Tokenizer(Protocol):
    """What the rest of the code may ask of a tokenizer."""

    vocab_size: int
    bos_id: int  # -1 when the vocabulary has none, likewise below
    eos_id: int
    pad_id: int
    content_hash: str  # sha256 of the tokenizer file, hex

    @property
    def begins_with_bos(self) -> bool:
        """Whether the model read its texts after BOS; chat formats say themselves where BOS stands."""
        ...

    def encode(
        self, text: str, *, bos: bool = False, eos: bool = False, after_marker: bool = False
    ) -> list[int]:
        """Token ids of ``text``, with the BOS id before and the EOS id after on request.

        ``after_marker``: a control id stands before the text, which to some tokenizers makes a difference.
        That of ``bos`` is none: they put it before a text that is encoded already.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; control ids (BOS, EOS, chat markers) leave no trace in it.

        Ids from ``vocab_size`` on, of spare rows of an embedding, are U+FFFD, as bytes that are no
        UTF-8 are. Raises ``TokenizerError`` if one is negative.
        """
        ...

    def piece(self, token_id: int) -> str:
        """One token as it stands in the vocabulary, for people to read: "▁the", "<0x0A>", "</s>".

        Unlike the text of ``decode`` it shows word boundaries and control pieces; else the same.
        """
        ...

    def special_id(self, piece: str) -> int:
        """Id of a control piece, or of an added, user-defined one, which is found in text as well.

        Whoever takes one of the latter for a marker has to keep it out of texts. Raises ``TokenizerError``
        if there is none.
        """
        ...

    def with_bos(self) -> "Tokenizer":
        """The same for a model that is trained on texts after BOS. Raises ``TokenizerError`` without BOS."""
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


def shared_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """How many ids, or characters, both begin with.

    Of a text and of a longer one that begins with it: the tokens of the longer one that are the shorter one's
    own. A token that spans its end is not among them.
    """
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)


def wants_bos(prompt: str, tokenizer: Tokenizer) -> bool:
    """Whether BOS belongs before a prompt: as the model was trained, or for want of anything else."""
    return tokenizer.begins_with_bos or (not prompt and tokenizer.bos_id >= 0)


def encode_pair(prompt: str, completion: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of both joined, after BOS if the prompt wants it: the prompt's own, and the completion's."""
    bos = wants_bos(prompt.rstrip(" "), tokenizer)
    return split_ids(lambda text: tokenizer.encode(text, bos=bos), prompt, completion, spaces=" ")


def split_ids(
    encode: Callable[[str], list[int]], context: str, continuation: str, *, spaces: str | None
) -> tuple[list[int], list[int]]:
    """Ids of both joined: the context's own, and the rest, among it a token that spans both.

    Args:
      spaces: characters at the end of the context that belong to the continuation; None for all white space.
    """
    ids = encode(context + continuation)
    own = shared_prefix(encode(context.rstrip(spaces)), ids)
    return ids[:own], ids[own:]


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


def adds_bos(folder: Path) -> bool | None:
    """``add_bos_token`` of the ``tokenizer_config.json`` in a folder; None if nothing is said.

    Raises:
      TokenizerError: it is neither true nor false, or the file no JSON.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    with naming(path):
        config = json.loads(path.read_text(encoding="utf-8"))
        flag = config.get("add_bos_token") if isinstance(config, dict) else None
        if flag is not None and not isinstance(flag, bool):
            raise TokenizerError(f"add_bos_token is {flag!r}; it must be true or false")
        return flag


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
