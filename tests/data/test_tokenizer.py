import hashlib
import json
import sys

import pytest
from sentencepiece import sentencepiece_model_pb2 as proto

from llama2_jax.data.sources import DataError, read_documents
from llama2_jax.data.tokenizer import (
    ByteLevelTokenizer,
    SentencePieceTokenizer,
    StreamDecoder,
    TokenizerError,
    byte_level_from_merges,
    load_tokenizer,
    sentencepiece_from_pieces,
    train_sentencepiece,
)
from tests.data.conftest import MERGES, make_texts

STRINGS = [
    "the river",
    "  two  spaces ",
    "1984 and 42",
    "naïve café",
    "日本語",
    "👩‍🚀 flies",
    "<s> a </s>",
    "a\n\tb",
    "",
]


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
    with pytest.raises(TokenizerError, match="lower vocab_size"):
        train_sentencepiece(["a b c"], tmp_path / "m", vocab_size=4000)


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


def test_encode_needs_str(tokenizer, chatml_tokenizer):
    for each in (tokenizer, chatml_tokenizer):
        with pytest.raises(TypeError, match="str"):
            each.encode(b"bytes")


def test_decode_refuses_negative_ids(tokenizer, chatml_tokenizer):
    for each in (tokenizer, chatml_tokenizer):
        with pytest.raises(TokenizerError, match="token id -1 is negative"):
            each.decode([5, -1])


def test_ids_of_spare_rows_of_an_embedding_are_replacement_characters(tokenizer, chatml_tokenizer):
    for each in (tokenizer, chatml_tokenizer):
        spare, (before, after) = each.vocab_size, (each.encode(text) for text in ("the river", "the é"))
        ids = [each.bos_id, *before, spare, spare + 100, *after[:-1], spare, after[-1], each.eos_id]
        space = " " if each is tokenizer else ""  # the word boundary that encode added
        expected = f"the river\ufffd\ufffd{space}the \ufffd\ufffd\ufffd"  # the é was cut in two
        assert each.decode(ids) == expected
        decoder = StreamDecoder(each)
        assert "".join(decoder.push(i) for i in ids) + decoder.flush() == expected


def test_special_ids(tokenizer, chatml_tokenizer):
    assert tokenizer.special_id("</s>") == 2
    assert tokenizer.is_special(1)
    assert not tokenizer.is_special(300)
    assert chatml_tokenizer.special_id("<|im_end|>") == 2
    assert chatml_tokenizer.is_special(2)
    assert not chatml_tokenizer.is_special(3)
    for each, piece in ((tokenizer, "<|im_end|>"), (tokenizer, "the"), (chatml_tokenizer, "Ġthe")):
        with pytest.raises(TokenizerError, match="control piece"):
            each.special_id(piece)


def test_save_and_load(tokenizer, tmp_path):
    path = tokenizer.save(tmp_path / "folder")
    again = load_tokenizer(tmp_path / "folder")
    assert isinstance(again, SentencePieceTokenizer)
    assert again.content_hash == tokenizer.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert again.encode("1984 rivers") == tokenizer.encode("1984 rivers")


def test_byte_level_save_and_load(chatml_tokenizer, tmp_path):
    path = chatml_tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, ByteLevelTokenizer)
    assert (
        again.content_hash == chatml_tokenizer.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    assert (again.bos_id, again.eos_id, again.pad_id) == (1, 2, -1)


def test_byte_level_reads_both_forms_of_tokenizer_config(chatml_tokenizer, tmp_path):
    chatml_tokenizer.save(tmp_path)
    config = {"bos_token": None, "eos_token": {"content": "<|endoftext|>"}, "pad_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    again = load_tokenizer(tmp_path)
    assert (again.bos_id, again.eos_id, again.pad_id) == (-1, 0, 2)
    with pytest.raises(TokenizerError, match="no BOS"):
        again.encode("x", bos=True)


def test_sentencepiece_is_preferred_in_a_folder_with_both(tokenizer, chatml_tokenizer, tmp_path):
    chatml_tokenizer.save(tmp_path)
    tokenizer.save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)


def test_tokenizer_json_is_taken_where_it_adds_tokens_to_the_model(tokenizer, chatml_tokenizer, tmp_path):
    path = chatml_tokenizer.save(tmp_path)
    tokenizer.save(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": 10**6, "content": "<|new|>"})
    path.write_text(json.dumps(content), encoding="utf-8")
    assert isinstance(load_tokenizer(tmp_path), ByteLevelTokenizer)
    for broken in ("[]", '{"added_tokens": [{}]}', '{"added_tokens": 3}', '{"added_tokens": [{"id": null}]}'):
        path.write_text(broken)
        with pytest.raises(TokenizerError, match=r"tokenizer.json: its added_tokens are no list"):
            load_tokenizer(tmp_path)


def test_added_tokens_json_alone_gives_control_pieces(tokenizer, tmp_path):
    plain = tokenizer
    plain.save(tmp_path)
    size = plain.vocab_size
    path = tmp_path / "added_tokens.json"
    path.write_text(json.dumps({"<|im_end|>": size + 1, "<|im_start|>": size, "<s>": 1}))
    found = load_tokenizer(tmp_path)
    assert found.vocab_size == size + 2
    assert [found.special_id(piece) for piece in ("<|im_start|>", "<|im_end|>")] == [size, size + 1]
    text = "the river <|im_end|> said 12"
    assert found.encode(text) == plain.encode(text)  # never a control id
    assert found.decode([size, *plain.encode("the river"), size + 1]) == "the river"
    assert (found.bos_id, found.eos_id) == (plain.bos_id, plain.eos_id)
    found.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").content_hash == found.content_hash != plain.content_hash
    path.write_text(json.dumps({"<s>": 1}))
    assert load_tokenizer(tmp_path).content_hash == plain.content_hash
    path.write_text(json.dumps({"[PAD]": size + 1}))
    with pytest.raises(
        TokenizerError, match=rf"added_tokens.json: it adds ids {size + 1} to {size + 1}, .*gap"
    ):
        load_tokenizer(tmp_path)
    path.write_text(json.dumps(["[PAD]"]))
    with pytest.raises(TokenizerError, match=r"added_tokens.json: it is no object"):
        load_tokenizer(tmp_path)


def test_missing_or_broken_files(tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_text("not one")
        with pytest.raises(TokenizerError, match="not a"):
            load_tokenizer(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", b""),
        ("tokenizer.model", proto.ModelProto(trainer_spec={"model_type": 2}).SerializeToString()),
        ("tokenizer.json", b""),
        ("tokenizer.json", b"\xff"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
    ],
)
def test_a_tokenizer_without_pieces_is_refused(tmp_path, name, content):
    if name.endswith(".json"):
        pytest.importorskip("tokenizers", reason="pip install 'llama2_jax[import]'")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{name}: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("config", ["[]", "{", '{"bos_token": 3}', '{"bos_token": {}}'])
def test_a_broken_tokenizer_config_is_named(chatml_tokenizer, tmp_path, config):
    chatml_tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: "):
        load_tokenizer(tmp_path)


def test_lone_surrogates_are_refused(tokenizer, chatml_tokenizer):
    for each in (tokenizer, chatml_tokenizer):
        with pytest.raises(
            TokenizerError, match=r"character 4 of the text is a lone surrogate \('\\ud800'\)"
        ):
            each.encode("the \ud800 river")


def test_pieces_are_the_vocabulary(tokenizer, tmp_path):
    expected = [(piece.piece, piece.score, piece.type) for piece in model_of(tokenizer, tmp_path).pieces]
    assert tokenizer.pieces() == expected
    assert tokenizer.unk_id == 0
    assert tokenizer.adds_space_prefix


def test_missing_tokenizers_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"llama2_jax\[import\]"):
        ByteLevelTokenizer("{}")


def test_byte_level_round_trip_merges_and_digits(chatml_tokenizer):
    for text in STRINGS:
        assert chatml_tokenizer.decode(chatml_tokenizer.encode(text)) == text
    assert len(chatml_tokenizer.encode(" the")) == 1
    assert [chatml_tokenizer.decode([i]) for i in chatml_tokenizer.encode("19")] == ["1", "9"]


def test_byte_level_reads_markers_in_text_as_text(chatml_tokenizer):
    ids = chatml_tokenizer.encode("a<|im_end|>b")
    assert not {0, 1, 2} & set(ids)
    assert chatml_tokenizer.decode(ids) == "a<|im_end|>b"
    assert chatml_tokenizer.decode([1, *ids, 2]) == "a<|im_end|>b"


def test_byte_level_digits_can_merge_without_the_split():
    pytest.importorskip("tokenizers")
    merges = [*MERGES, "1 9"]
    tokens = [*dict.fromkeys("".join(merges).replace(" ", "")), *(m.replace(" ", "") for m in merges)]
    types = [1] * len(tokens)
    split = byte_level_from_merges(tokens, merges, token_types=types, split_digits=True)
    joined = byte_level_from_merges(tokens, merges, token_types=types, split_digits=False)
    assert (len(split.encode("19")), len(joined.encode("19"))) == (2, 1)


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


@pytest.mark.parametrize("text", [*STRINGS, "the 👩‍🚀 reads 日本 and \ufffd too"])
def test_stream_pushes_join_to_the_decoded_text(tokenizer, chatml_tokenizer, text):
    for each in (tokenizer, chatml_tokenizer):
        ids = each.encode(text, bos=True, eos=True)
        decoder = StreamDecoder(each)
        pushes = [decoder.push(i) for i in ids]
        assert "".join(pushes) + decoder.flush() == each.decode(ids) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in push for push in pushes)


def test_stream_prints_a_character_as_soon_as_it_is_whole(tokenizer):
    decoder = StreamDecoder(tokenizer)
    pushes = [decoder.push(i) for i in tokenizer.encode("the é")]
    assert pushes[0] == "the"
    assert pushes[-1] == "é"


def test_stream_flush_shows_an_unfinished_character(tokenizer):
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(3 + 0xE6) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_a_mistake_in_the_text_is_not_blamed_on_the_vocabulary(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a sentence"}\nnot json\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: malformed JSON"):
        train_sentencepiece(read_documents(path), tmp_path / "t.model", vocab_size=300)
