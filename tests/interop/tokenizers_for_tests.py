"""A small SentencePiece BPE and a small byte-level BPE, made on the spot."""

import io
from typing import Any

import sentencepiece
import tokenizers

from llama2_jax.data.tokenizer import (
    JsonTokenizer,
    SentencePieceTokenizer,
    byte_level_from_merges,
)

TEXT = (
    "In the beginning was the word, and the word was with 2023 numbers: 1, 22 and 333.\n"
    "  Indented lines stay   as they are; naïve café words too, and 漢字.\n"
    "The tokenizer merges the most frequent neighbours, then the next, and then the rest of them.\n"
)
SAMPLES = (
    "Hello world",
    "the beginning of the rest",
    " one space first",
    "  two  spaces, and  more   inside ",
    "2023 is 12,345",
    "naïve 漢字 🙂 \u200d",
    "a\n\nb\t c",
    "▁ is the boundary itself",
    "",
)

_SETTINGS: dict[str, Any] = {
    "vocab_size": 360,
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "num_threads": 1,
    "minloglevel": 2,
}


def sentencepiece_tokenizer(**settings: Any) -> SentencePieceTokenizer:
    """One like Llama 2's, but for these settings of the trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 3),
        model_writer=model,
        **_SETTINGS | settings,
    )
    return SentencePieceTokenizer(model.getvalue())


def byte_level_tokenizer() -> JsonTokenizer:
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = ["t h", "th e", "Ġ the", "i n", "e r", "Ġ a", "a n", "an d"]
    tokens = [*markers, *alphabet, *(merge.replace(" ", "") for merge in merges)]
    types = [3] * len(markers) + [1] * (len(tokens) - len(markers))
    return byte_level_from_merges(tokens, merges, token_types=types, bos_id=1, eos_id=2)
