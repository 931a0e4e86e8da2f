import pytest

from llama2_jax.data.tokenizer import (
    StreamDecoder,
    TokenizerError,
    byte_level_from_merges,
    sentencepiece_from_pieces,
)


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


def test_pieces_show_word_boundaries_and_control_tokens(tokenizer, chatml_tokenizer):
    for each, word, end in ((tokenizer, "▁the", "</s>"), (chatml_tokenizer, "Ġthe", "<|im_end|>")):
        ids = [each.encode("a the")[-1], 2, each.vocab_size]
        assert [each.piece(i) for i in ids] == [word, end, "\ufffd"]
        with pytest.raises(TokenizerError, match="token id -1 is negative"):
            each.piece(-1)


def test_special_ids(tokenizer, chatml_tokenizer):
    assert tokenizer.special_id("</s>") == 2
    assert chatml_tokenizer.special_id("<|im_end|>") == 2
    for each, piece in ((tokenizer, "<|im_end|>"), (tokenizer, "the"), (chatml_tokenizer, "Ġthe")):
        with pytest.raises(TokenizerError, match="control piece"):
            each.special_id(piece)


def test_user_defined_pieces_can_be_markers():
    """As headers of GGUF files have them: type 4."""
    pytest.importorskip("tokenizers", reason="pip install 'llama2_jax[import]'")
    pieces, types = ["<unk>", "<s>", "</s>", "<|im_start|>", "a"], [2, 3, 3, 4, 1]
    for each in (
        sentencepiece_from_pieces(pieces, [0.0] * 5, types),
        byte_level_from_merges(pieces, [], token_types=types),
    ):
        assert each.special_id("<|im_start|>") == 3
        with pytest.raises(TokenizerError, match="control piece"):
            each.special_id("a")


def test_lone_surrogates_are_refused(tokenizer, chatml_tokenizer):
    for each in (tokenizer, chatml_tokenizer):
        with pytest.raises(
            TokenizerError, match=r"character 4 of the text is a lone surrogate \('\\ud800'\)"
        ):
            each.encode("the \ud800 river")
