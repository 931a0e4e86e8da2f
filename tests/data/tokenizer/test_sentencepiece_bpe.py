import pytest
from sentencepiece import sentencepiece_model_pb2 as proto

from llama2_jax.data.records import DataError
from llama2_jax.data.sources import read_documents
from llama2_jax.data.tokenizer import TokenizerError, sentencepiece_from_pieces, train_sentencepiece
from tests.data.conftest import STRINGS, make_texts


def model_of(tokenizer, tmp_path) -> proto.ModelProto:
    return proto.ModelProto.FromString(tokenizer.save(tmp_path).read_bytes())


def test_trainer_spec_is_that_of_the_release(tokenizer, tmp_path):
    spec = model_of(tokenizer, tmp_path).trainer_spec
    expected = {
        "model_type": proto.TrainerSpec.BPE,
        "vocab_size": 400,
        "input_sentence_size": 200_000_000,
        "seed_sentencepiece_size": 1_000_000,
        "num_sub_iterations": 2,
        "max_sentence_length": 4192,
        "shuffle_input_sentence": True,
        "max_sentencepiece_length": 16,
        "split_by_unicode_script": True,
        "split_by_whitespace": True,
        "split_by_number": True,
        "split_digits": True,
        "treat_whitespace_as_suffix": False,
        "allow_whitespace_only_pieces": True,
        "vocabulary_output_piece_score": True,
        "hard_vocab_limit": True,
        "use_all_vocab": False,
        "byte_fallback": True,
        "required_chars": "",
        "unk_surface": " \u2047 ",
        "train_extremely_large_corpus": False,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
    }
    assert {name: getattr(spec, name) for name in expected} == expected
    assert spec.character_coverage == pytest.approx(0.99995)
    assert spec.shrinking_factor == pytest.approx(0.75)


def test_normalizer_spec_is_that_of_the_release(tokenizer, tmp_path):
    spec = model_of(tokenizer, tmp_path).normalizer_spec
    assert spec.name == "identity"
    assert spec.precompiled_charsmap == b""
    assert spec.add_dummy_prefix
    assert not spec.remove_extra_whitespaces


def test_ids_and_pieces_are_laid_out_as_in_the_release(tokenizer, tmp_path):
    pieces = [piece.piece for piece in model_of(tokenizer, tmp_path).pieces]
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    assert pieces[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, -1)
    assert tokenizer.vocab_size == len(pieces) == 400


def test_training_is_deterministic(tmp_path):
    texts = make_texts(200, seed=3)
    hashes = {train_sentencepiece(texts, tmp_path / "m", vocab_size=330).content_hash for _ in range(2)}
    assert len(hashes) == 1


def test_training_uses_long_lines(tmp_path):
    # The trainer skips what is longer than 4,192 bytes; these words occur nowhere else.
    texts = [*make_texts(100, seed=3), "zebra crossing " * 2000]
    trained = train_sentencepiece(texts, tmp_path / "m", vocab_size=340)
    assert len(trained.encode("zebra")) == 1


def test_training_sees_no_line_ends(tmp_path):
    trained = train_sentencepiece(["river\nstone\n" * 50], tmp_path / "m", vocab_size=270)
    assert trained.encode("river\nstone").count(3 + ord("\n")) == 1, (
        "a line end is the byte piece, as in the release"
    )


def test_training_too_many_pieces_names_the_fix(tmp_path):
    with pytest.raises(TokenizerError, match="add text for more pieces"):
        train_sentencepiece(["a b c"], tmp_path / "m", vocab_size=4000)


def test_a_mistake_in_the_text_is_not_blamed_on_the_vocabulary(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a sentence"}\nnot json\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: malformed JSON"):
        train_sentencepiece(read_documents(path), tmp_path / "t.model", vocab_size=300)


def test_round_trip_with_byte_fallback(tokenizer):
    for text in STRINGS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_fallback_spells_unknown_characters_in_utf8(tokenizer):
    ids = tokenizer.encode("a👩")
    assert ids[-4:] == [3 + byte for byte in "👩".encode()]


def test_digits_are_split(tokenizer):
    ids = tokenizer.encode("1984")
    assert [tokenizer.decode([i]) for i in ids[-4:]] == ["1", "9", "8", "4"]


def test_bos_and_eos_are_added_on_request(tokenizer):
    plain = tokenizer.encode("the river")
    assert tokenizer.encode("the river", bos=True, eos=True) == [1, *plain, 2]
    assert tokenizer.decode([1, *plain, 2]) == "the river"


def test_encoding_apart_differs_from_encoding_joined(tokenizer):
    assert tokenizer.encode("the") + tokenizer.encode("re") != tokenizer.encode("there")
    assert tokenizer.decode(tokenizer.encode("the") + tokenizer.encode("re")) == "the re"


def test_control_pieces_in_text_are_text(tokenizer):
    ids = tokenizer.encode("<s> river </s>")
    assert not {1, 2} & set(ids)
    assert tokenizer.decode(ids) == "<s> river </s>"


def test_pieces_are_the_vocabulary(tokenizer, tmp_path):
    expected = [(piece.piece, piece.score, piece.type) for piece in model_of(tokenizer, tmp_path).pieces]
    assert tokenizer.pieces() == expected
    assert tokenizer.unk_id == 0
    assert tokenizer.adds_space_prefix


def test_rebuilt_sentencepiece_encodes_alike(tokenizer, tmp_path):
    pieces = model_of(tokenizer, tmp_path).pieces
    rebuilt = sentencepiece_from_pieces(
        [piece.piece for piece in pieces], [piece.score for piece in pieces], [piece.type for piece in pieces]
    )
    assert (rebuilt.bos_id, rebuilt.eos_id, rebuilt.pad_id) == (1, 2, -1)
    for text in STRINGS + make_texts(20, seed=9):
        assert rebuilt.encode(text) == tokenizer.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == text


def test_rebuilt_sentencepiece_without_space_prefix(tokenizer, tmp_path):
    pieces = model_of(tokenizer, tmp_path).pieces
    lists = [[p.piece for p in pieces], [p.score for p in pieces], [p.type for p in pieces]]
    bare = sentencepiece_from_pieces(*lists, add_space_prefix=False)
    assert bare.encode("the") != tokenizer.encode("the")
    assert bare.encode(" the") == tokenizer.encode("the")
    with pytest.raises(TokenizerError, match="399 scores"):
        sentencepiece_from_pieces(lists[0], lists[1][:-1], lists[2])
    with pytest.raises(TokenizerError, match="eos_id 400"):
        sentencepiece_from_pieces(*lists, eos_id=400)
