import pytest

from llama2_jax.data.tokenizer import StreamDecoder
from tests.data.conftest import STRINGS


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
