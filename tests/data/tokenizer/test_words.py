import copy
import random
from types import SimpleNamespace

import pytest
from sentencepiece import sentencepiece_model_pb2 as proto

from llama2_jax.data.tokenizer import words
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
    for text in [TEXT] * 2 + texts(3000):
        assert tokenizer.encode(text) == whole(text), repr(text)


def from_pieces(*more: str, **settings: bool) -> SentencePieceTokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", *more]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)]
    scores = [0.0] * 259 + [-1.0 * i for i in range(len(more) + 3)]
    return sentencepiece_from_pieces(pieces, scores, types, **settings)


@pytest.mark.parametrize(("piece", "text"), [("a\u2581b", "a b"), ("a\u2581", "a b"), ("a\n", "a\nb")])
def test_a_piece_that_goes_on_into_the_next_word_is_found(piece, text):
    known = from_pieces("a\u2581", "a\u2581b") if piece == "a\u2581b" else from_pieces(piece)
    assert not pieces_end_with_words(one.text for one in known.pieces())
    assert known.encode(text) == known._processor.encode(text)
    assert len(known.encode(text)) < len(from_pieces().encode(text))  # it is used


@pytest.mark.parametrize("adds_space", [True, False])
def test_a_vocabulary_with_a_line_end_of_its_own_that_adds_a_space_or_none(adds_space):
    known = from_pieces("\n", "\u2581a", "\u2581\u2581", add_space_prefix=adds_space)
    assert pieces_end_with_words(one.text for one in known.pieces())
    assert known._encode != known._processor.encode
    for text in ("a\n a", "\n", "  a  \n\n b", "a  ", "a", ""):
        assert known.encode(text) == known._processor.encode(text)
    assert (known.encode("a") == [len(known.pieces()) - 2]) == adds_space  # "\u2581a"


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("trainer_spec", "model_type", 1),  # unigram
        ("normalizer_spec", "escape_whitespaces", False),
        ("normalizer_spec", "remove_extra_whitespaces", True),
    ],
)
def test_a_tokenizer_with_other_rules_takes_the_whole_text(tokenizer, tmp_path, part, field, value):
    model = proto.ModelProto.FromString(tokenizer.save(tmp_path).read_bytes())
    setattr(getattr(model, part), field, value)
    other = SentencePieceTokenizer(model.SerializeToString())
    assert other._encode == other._processor.encode


def test_unknown_characters_side_by_side_are_one_id_where_bytes_do_not_stand_for_them():
    known = sentencepiece_from_pieces(["<unk>", "<s>", "</s>", "\u2581", "a"], [0.0] * 5, [2, 3, 3, 1, 1])
    assert known.encode("a漢\n漢a") == known._processor.encode("a漢\n漢a") == [3, 4, 0, 4]


def test_texts_that_repeat_nothing_are_encoded_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(words, "LEARNED", 50)
    other, whole, calls = copy.deepcopy(tokenizer), tokenizer._processor.encode, []
    monkeypatch.setattr(
        other, "_processor", SimpleNamespace(encode=lambda text: calls.append(text) or whole(text))
    )
    numbers = [" ".join(str(n * k) for k in range(1, 80)) for n in range(1000, 1010)]
    for text in (TEXT, *numbers, TEXT):
        calls.clear()
        assert other.encode(text) == whole(text)
    assert calls == []  # all of its words are known
    other.encode(numbers[-1])
    assert calls == [numbers[-1]]


def test_a_tokenizer_that_has_encoded_can_be_copied(tokenizer):
    assert copy.deepcopy(tokenizer).encode(TEXT) == tokenizer.encode(TEXT)
