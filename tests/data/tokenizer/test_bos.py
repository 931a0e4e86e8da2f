"""Whether a model's texts begin with BOS, as its own tokenizer would have it."""

import json

import pytest

from llama2_jax.data.tokenizer import JsonTokenizer, TokenizerError, load_tokenizer, wants_bos

BOS_FIRST = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
    },
}


def folder_with(tokenizer, tmp_path, **config):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>"} | config))
    return tmp_path


def test_sentencepiece_does_unless_its_config_says_no(tokenizer, tmp_path):
    assert tokenizer.begins_with_bos
    assert load_tokenizer(tokenizer.save(tmp_path).parent).begins_with_bos
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    without = load_tokenizer(tmp_path)
    assert not without.begins_with_bos
    assert without.content_hash == tokenizer.content_hash
    again = load_tokenizer(without.save(tmp_path / "again").parent)
    assert not again.begins_with_bos
    assert not again.with_control_pieces(["<x>"]).begins_with_bos


def test_tokenizer_json_says_it_in_its_post_processor(chatml_tokenizer, tmp_path):
    assert not load_tokenizer(folder_with(chatml_tokenizer, tmp_path)).begins_with_bos
    content = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": BOS_FIRST}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    found = load_tokenizer(tmp_path)
    assert found.begins_with_bos
    assert found.encode("hi") == chatml_tokenizer.encode("hi")  # which does nothing to what we encode
    assert load_tokenizer(found.save(tmp_path / "again").parent).begins_with_bos
    assert not JsonTokenizer(json.dumps(content)).begins_with_bos  # no BOS is named


@pytest.mark.parametrize("flag", [True, False])
def test_the_config_does_not_overrule_the_post_processor(chatml_tokenizer, tmp_path, flag):
    """``transformers`` does not ask it either (tests/interop/test_hf_tokenizer.py)."""
    folder = folder_with(chatml_tokenizer, tmp_path, add_bos_token=flag)
    assert not load_tokenizer(folder).begins_with_bos


def test_a_flag_that_is_none_is_refused(tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match="add_bos_token is 'yes'; it must be true or false"):
        load_tokenizer(folder_with(tokenizer, tmp_path, add_bos_token="yes"))


def test_a_model_trained_on_documents_after_bos_reads_texts_so(tokenizer, chatml_tokenizer, tmp_path):
    assert tokenizer.with_bos() is tokenizer
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    without = load_tokenizer(tokenizer.save(tmp_path / "new").parent)
    assert without.with_bos().begins_with_bos
    assert load_tokenizer(tokenizer.save(tmp_path).parent).begins_with_bos  # what stood there is overruled
    found = chatml_tokenizer.with_bos()
    assert found.begins_with_bos
    assert load_tokenizer(found.save(tmp_path / "found").parent).begins_with_bos
    assert (found.bos_id, found.eos_id, found.content_hash) == (1, 2, chatml_tokenizer.content_hash)
    with pytest.raises(TokenizerError, match="no BOS"):
        JsonTokenizer(chatml_tokenizer._text).with_bos()


def test_an_empty_prompt_wants_bos_from_any_model_that_has_it(tokenizer, chatml_tokenizer):
    assert [wants_bos(text, tokenizer) for text in ("", "hi")] == [True, True]
    assert [wants_bos(text, chatml_tokenizer) for text in ("", "hi")] == [True, False]
    assert not wants_bos("", JsonTokenizer(chatml_tokenizer._text))
