"""The tokenizer in the header of a GGUF file: lists of pieces, scores, merges, and a few ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama2_jax.data.tokenizer import (
    Tokenizer,
    TokenizerError,
    byte_level_from_merges,
    sentencepiece_from_pieces,
)
from llama2_jax.interop.fields import read_field, read_flag, read_text
from llama2_jax.interop.imported import FormatError

_KEY = "tokenizer.ggml."
# how byte-level pre-tokenizers treat digits; their other rules are those of GPT-2
_SPLIT_DIGITS = {"gpt-2": False, "smollm": True}
_INSTEAD = "Take the Hugging Face folder of the model, whose tokenizer.json says all of its rules"


def header_tokenizer(metadata: dict[str, Any], *, where: Path) -> Tokenizer | None:
    """The tokenizer of the header; None if it has none.

    Raises:
      FormatError: an unknown kind, values that are missing, of the wrong type or at odds with
        each other, or the package that the tokenizer needs is missing.
    """
    kind = read_text(metadata, _KEY + "model", "none", where=where)
    if kind in ("none", "no_vocab"):
        return None
    if kind not in _KINDS:
        raise FormatError(
            f"{where}: its tokenizer is {kind!r}; known: 'llama' (SentencePiece), 'gpt2' (byte-level BPE). "
            + _INSTEAD
        )
    try:
        return _KINDS[kind](metadata, where)
    except TokenizerError as error:  # every value alone is right
        raise FormatError(f"{where}: {error}") from error


def _sentencepiece(metadata: dict[str, Any], where: Path) -> Tokenizer:
    tokens = _texts(metadata, "tokens", where)
    return sentencepiece_from_pieces(
        tokens,
        _list(
            metadata, "scores", of="decimal numbers", fits=lambda item: isinstance(item, float), where=where
        ),
        _types(metadata, len(tokens), where),
        bos_id=_token_id(metadata, "bos", 1, len(tokens), where),
        eos_id=_token_id(metadata, "eos", 2, len(tokens), where),
        unk_id=_token_id(metadata, "unknown", 0, len(tokens), where),
        add_space_prefix=read_flag(metadata, _KEY + "add_space_prefix", True, where=where),
    )


def _byte_level(metadata: dict[str, Any], where: Path) -> Tokenizer:
    before = read_text(metadata, _KEY + "pre", "gpt-2", where=where)
    if before not in _SPLIT_DIGITS:
        raise FormatError(
            f"{where}: its pre-tokenizer is {before!r}; known: {', '.join(_SPLIT_DIGITS)}. {_INSTEAD}"
        )
    tokens = _texts(metadata, "tokens", where)
    return byte_level_from_merges(
        tokens,
        _texts(metadata, "merges", where),
        token_types=_types(metadata, len(tokens), where),
        bos_id=_token_id(metadata, "bos", -1, len(tokens), where),
        eos_id=_token_id(metadata, "eos", -1, len(tokens), where),
        split_digits=_SPLIT_DIGITS[before],
    )


_KINDS = {"llama": _sentencepiece, "gpt2": _byte_level}


def _texts(metadata: dict[str, Any], name: str, where: Path) -> list[str]:
    return _list(metadata, name, of="texts", fits=lambda item: isinstance(item, str), where=where)


def _types(metadata: dict[str, Any], count: int, where: Path) -> list[int]:
    fits = range(1, 7).__contains__
    return _list(metadata, "token_type", [1] * count, of="types, 1 to 6", fits=fits, where=where)


def _list(
    metadata: dict[str, Any],
    name: str,
    default: list[Any] | None = None,
    *,
    of: str,
    fits: Callable[[Any], bool],
    where: Path,
) -> list[Any]:
    return read_field(
        metadata,
        _KEY + name,
        default,
        fits=lambda value: isinstance(value, list) and all(map(fits, value)),
        rule=f"a list of {of}",
        where=where,
    )


def _token_id(metadata: dict[str, Any], role: str, default: int, count: int, where: Path) -> int:
    return read_field(
        metadata,
        f"{_KEY}{role}_token_id",
        default,
        fits=lambda value: type(value) is int and -1 <= value < count,
        rule=f"the number of a token, below {count}, or -1 for none",
        where=where,
    )
