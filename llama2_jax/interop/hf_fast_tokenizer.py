"""A SentencePiece BPE as the ``tokenizer.json`` that Hugging Face's fast tokenizers read.

``transformers`` 5 rebuilds a Llama tokenizer from ``tokenizer.model`` with rules of its own (no
word boundary before text that begins with a space, none after control tokens); this file
says what SentencePiece does instead, so that both give the same ids (TOK-5). Only beside user-defined
pieces do word boundaries differ.
"""

from collections.abc import Sequence
from typing import Any

from llama2_jax.data.tokenizer import Piece, SentencePieceTokenizer
from llama2_jax.data.tokenizer.words import SPACE

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # SentencePiece's piece types


def fast_tokenizer(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The ``tokenizer.json`` content equal to a SentencePiece BPE without rules of its own."""
    pieces, prefix, bos_id = tokenizer.pieces(), tokenizer.adds_space_prefix, tokenizer.bos_id
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(pieces),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(prefix)},
        "pre_tokenizer": None,
        "post_processor": bos_first(pieces[bos_id].text, bos_id) if tokenizer.begins_with_bos else None,
        "decoder": {"type": "Sequence", "decoders": _decoders(prefix)},
        "model": {
            "type": "BPE",
            "unk_token": pieces[tokenizer.unk_id].text,
            "fuse_unk": True,
            "byte_fallback": any(piece.type == _BYTE for piece in pieces),
            "vocab": {piece.text: i for i, piece in enumerate(pieces)},
            "merges": _merges(pieces),
        },
    }


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
    """Every way to put a piece together from two others, best score first.

    SentencePiece merges the neighbours whose union scores highest; a merge list says the same.
    """
    parts = {piece.text: i for i, piece in enumerate(pieces) if piece.type in (_NORMAL, _USER_DEFINED)}
    ranked = []
    for text, i in parts.items():
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [(left, right) for left, right in splits if left in parts and right in parts]
        ranked += [(-pieces[i].score, i, parts[left], parts[right], left, right) for left, right in known]
    return [[left, right] for *_, left, right in sorted(ranked)]


def _added_tokens(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    kinds = (_UNKNOWN, _CONTROL, _USER_DEFINED)
    rest = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": piece.text, "special": piece.type != _USER_DEFINED, **rest}
        for i, piece in enumerate(pieces)
        if piece.type in kinds
    ]


def _normalizers(prefix: bool) -> list[dict[str, Any]]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]


def _decoders(prefix: bool) -> list[dict[str, Any]]:
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return [*decoders, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else decoders


def bos_first(piece: str, token_id: int) -> dict[str, Any]:
    """``tokenizer(text)`` begins with BOS, as in Hugging Face's own Llama folders."""
    bos = {"SpecialToken": {"id": piece, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": piece, "type_id": 1}}, second],
        "special_tokens": {piece: {"id": piece, "ids": [token_id], "tokens": [piece]}},
    }
