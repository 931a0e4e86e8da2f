import copy
import random

import pytest

from llama2_jax.data.tokenizer.sentencepiece_bpe import (
    SentencePieceTokenizer,
    sentencepiece_from_pieces,
    train_sentencepiece,
)
from llama2_jax.data.tokenizer.words import LONGEST, pieces_end_with_words

TEXT = "the cat sat on the mat, the cat ran.\n\nThe   dogs  were 12 and 345:\n\tna na na! " * 20
PARTS = [
    " ", "  ", "\n", "\t", "\r\n", "the", "cat", " na", "12", "\u2581", "\u2581cat", "é", "漢", "🙂", "<s>",
    "[INST]", "\x00", "\u2028", "\u00a0", "\ufeff", "<0x0A>", "x" * (LONGEST + 1), " " * (LONGEST + 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_sentencepiece([TEXT], tmp_path_factory.mktemp("words") / "tokenizer.model", vocab_size=330)


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["", TEXT, *("".join(rng.choices(PARTS, k=rng.randrange(12))) for _ in range(count))]


def test_ids_are_those_of_the_whole_text(tokenizer):
    assert pieces_end_with_words(piece.text for piece in tokenizer.pieces())
    whole = tokenizer._processor.encode
    assert tokenizer._encode != whole
    for text in texts(3000):
        assert tokenizer.encode(text) == whole(text), repr(text)


def from_pieces(*more: str) -> SentencePieceTokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", *more]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)]
    return sentencepiece_from_pieces(pieces, [0.0] * 259 + [-1.0 * i for i in range(len(more) + 3)], types)


@pytest.mark.parametrize(("piece", "text"), [("a\u2581b", "a b"), ("a\u2581", "a b"), ("a\n", "a\nb")])
def test_a_piece_that_goes_on_into_the_next_word_is_found(piece, text):
    known = from_pieces("a\u2581", "a\u2581b") if piece == "a\u2581b" else from_pieces(piece)
    assert not pieces_end_with_words(one.text for one in known.pieces())
    assert known.encode(text) == known._processor.encode(text)
    assert len(known.encode(text)) < len(from_pieces().encode(text))  # it is used


def test_a_vocabulary_with_a_line_end_of_its_own_and_one_that_adds_no_space():
    known = from_pieces("\n", "\u2581a", "\u2581\u2581")
    assert pieces_end_with_words(one.text for one in known.pieces())
    for text in ("a\n a", "\n", "  a  \n\n b", "a  "):
        assert known.encode(text) == known._processor.encode(text)


def test_a_tokenizer_that_has_encoded_can_be_copied(tokenizer):
    assert copy.deepcopy(tokenizer).encode(TEXT) == tokenizer.encode(TEXT)
