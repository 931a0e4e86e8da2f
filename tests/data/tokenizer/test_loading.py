import hashlib
import json

import pytest
from sentencepiece import sentencepiece_model_pb2 as proto

from llama2_jax.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, TokenizerError, load_tokenizer


def test_save_and_load(tokenizer, tmp_path):
    path = tokenizer.save(tmp_path / "folder")
    again = load_tokenizer(tmp_path / "folder")
    assert isinstance(again, SentencePieceTokenizer)
    assert again.content_hash == tokenizer.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert again.encode("1984 rivers") == tokenizer.encode("1984 rivers")


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
    assert isinstance(load_tokenizer(tmp_path), JsonTokenizer)
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


def test_added_tokens_of_the_config_alone_give_control_pieces(tokenizer, tmp_path):
    """As the slow tokenizer of ``transformers`` writes them, BOS and EOS among them."""
    tokenizer.save(tmp_path)
    size = tokenizer.vocab_size
    path = tmp_path / "tokenizer_config.json"
    pieces = {1: "<s>", 2: "</s>", size + 1: "<|im_end|>", size: "<|im_start|>"}
    decoder = {str(token_id): {"content": piece, "special": True} for token_id, piece in pieces.items()}
    path.write_text(json.dumps({"add_bos_token": False, "added_tokens_decoder": decoder}))
    found = load_tokenizer(tmp_path)
    assert found.vocab_size == size + 2
    assert [found.special_id(piece) for piece in ("<|im_start|>", "<|im_end|>")] == [size, size + 1]
    assert not found.begins_with_bos
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))  # it says what it says
    assert load_tokenizer(tmp_path).vocab_size == size + 1
    (tmp_path / "added_tokens.json").unlink()
    for broken in ({"x": {"content": "a"}}, {"1": {}}, {"1": "<s>"}, [1]):
        path.write_text(json.dumps({"added_tokens_decoder": broken}))
        with pytest.raises(TokenizerError, match=r"config.json: its added_tokens_decoder is no object"):
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
