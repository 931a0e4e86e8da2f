"""The tokenizer in the header of a GGUF file: lists of pieces, scores, merges, and a few ids."""

import functools
from pathlib import Path
from typing import Any

from llama2_jax.data.tokenizer import (
    Tokenizer,
    TokenizerError,
    byte_level_from_merges,
    sentencepiece_from_pieces,
)
from llama2_jax.interop.fields import is_a, read_flag, read_list, read_text, read_token_id
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
    scores = read_list(metadata, _KEY + "scores", fits=is_a(float), of="decimal numbers", where=where)
    token_id = functools.partial(read_token_id, metadata, count=len(tokens), where=where)
    return sentencepiece_from_pieces(
        tokens,
        scores,
        _types(metadata, len(tokens), where),
        bos_id=token_id(_KEY + "bos_token_id", 1),
        eos_id=token_id(_KEY + "eos_token_id", 2),
        unk_id=token_id(_KEY + "unknown_token_id", 0),
        add_bos=read_flag(metadata, _KEY + "add_bos_token", True, where=where),
        add_space_prefix=read_flag(metadata, _KEY + "add_space_prefix", True, where=where),
    )


def _byte_level(metadata: dict[str, Any], where: Path) -> Tokenizer:
    before = read_text(metadata, _KEY + "pre", "gpt-2", where=where)
    if before not in _SPLIT_DIGITS:
        raise FormatError(
            f"{where}: its pre-tokenizer is {before!r}; known: {', '.join(_SPLIT_DIGITS)}. {_INSTEAD}"
        )
    tokens = _texts(metadata, "tokens", where)
    token_id = functools.partial(read_token_id, metadata, count=len(tokens), where=where)
    return byte_level_from_merges(
        tokens,
        _texts(metadata, "merges", where),
        token_types=_types(metadata, len(tokens), where),
        bos_id=token_id(_KEY + "bos_token_id", -1),
        eos_id=token_id(_KEY + "eos_token_id", -1),
        add_bos=read_flag(metadata, _KEY + "add_bos_token", False, where=where),
        split_digits=_SPLIT_DIGITS[before],
    )


_KINDS = {"llama": _sentencepiece, "gpt2": _byte_level}


def _texts(metadata: dict[str, Any], name: str, where: Path) -> list[str]:
    return read_list(metadata, _KEY + name, fits=is_a(str), of="texts", where=where)


def _types(metadata: dict[str, Any], count: int, where: Path) -> list[int]:
    """GGUF's token types, which are SentencePiece's; all normal where there are none."""
    key, fits = _KEY + "token_type", range(1, 7).__contains__
    return read_list(metadata, key, [1] * count, fits=fits, of="types, 1 to 6", where=where)
