"""Text to token ids and back.

Two kinds behind one protocol. ``SentencePieceTokenizer`` is Llama 2's own (BPE with byte fallback, split
digits). ``JsonTokenizer`` serves imported models, whose vocabulary is mostly byte-level BPE. Neither ever
turns user text into a control id: ``"</s>"`` in a document is ordinary text (TOK-6); only
``special_id`` gives control ids, and only ``chat`` asks for them.
"""

from llama2_jax.data.tokenizer.base import (
    Tokenizer,
    TokenizerError,
    encode_pair,
    shared_prefix,
    split_ids,
    text_after,
    wants_bos,
)
from llama2_jax.data.tokenizer.json_file import JsonTokenizer, byte_level_from_merges
from llama2_jax.data.tokenizer.loading import load_tokenizer
from llama2_jax.data.tokenizer.sentencepiece_bpe import (
    Piece,
    SentencePieceTokenizer,
    sentencepiece_from_pieces,
    train_sentencepiece,
)
from llama2_jax.data.tokenizer.streaming import StreamDecoder

__all__ = [
    "JsonTokenizer",
    "Piece",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "byte_level_from_merges",
    "encode_pair",
    "load_tokenizer",
    "sentencepiece_from_pieces",
    "shared_prefix",
    "split_ids",
    "text_after",
    "train_sentencepiece",
    "wants_bos",
]
