import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from llama2_jax.data.chat import Message, encode_dialogue, encode_prompt, get_template
from llama2_jax.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, load_tokenizer
from llama2_jax.interop.hf_fast_tokenizer import fast_tokenizer
from llama2_jax.interop.huggingface import load_huggingface, save_huggingface
from llama2_jax.interop.imported import FormatError
from llama2_jax.interop.templates import JINJA
from tests.interop.models import SHAPES, random_params
from tools.fetch_assets import ASSETS

tokenizers = pytest.importorskip("tokenizers")

from tests.interop.tokenizers_for_tests import SAMPLES, byte_level_tokenizer, sentencepiece_tokenizer  # noqa: E402

MAKERS = {"sentencepiece": sentencepiece_tokenizer, "byte_level": byte_level_tokenizer}
DIALOGUE = [
    Message("system", "Be brief."),
    Message("user", "Hi there, 12 of you"),
    Message("assistant", "Hello!"),
    Message("user", "More?"),
    Message("assistant", "No."),
]


def _save(folder, tokenizer, template=None):
    config = dataclasses.replace(SHAPES["plain"], vocab_size=tokenizer.vocab_size)
    save_huggingface(folder, config, random_params(config), tokenizer=tokenizer, template=template)
    return folder


def test_fast_form_of_sentencepiece_gives_the_same_ids():
    ours = sentencepiece_tokenizer()
    fast = tokenizers.Tokenizer.from_str(json.dumps(fast_tokenizer(ours)))
    generator = np.random.default_rng(0)
    alphabet = list("the word was  12 Café漢🙂\n\tx")
    random_texts = ["".join(generator.choice(alphabet, 40)) for _ in range(200)]
    for text in (*SAMPLES, *random_texts):
        ids = ours.encode(text)
        assert fast.encode(text, add_special_tokens=False).ids == ids, text
        assert fast.encode(text).ids == [ours.bos_id, *ids]
        assert fast.decode(ids) == ours.decode(ids)
    halves = [[ours.bos_id, *ours.encode(text)] for text in ("the word", "was")]
    assert fast.encode("the word", "was").ids == halves[0] + halves[1]
    without = tokenizers.Tokenizer.from_str(json.dumps(fast_tokenizer(_without_bos("sentencepiece"))))
    assert without.encode("the word").ids == ours.encode("the word")


def test_unknown_characters_beside_one_another_are_one_token_without_bytes():
    ours = sentencepiece_tokenizer(byte_fallback=False, vocab_size=104)
    fast = tokenizers.Tokenizer.from_str(json.dumps(fast_tokenizer(ours)))
    ids = ours.encode("the ЖЖЖ word")
    assert ids.count(ours.unk_id) == 1
    assert fast.encode("the ЖЖЖ word", add_special_tokens=False).ids == ids


def test_fast_form_of_a_released_tokenizer():
    """32,000 pieces trained with the settings of Llama 2's; our own documentation as text."""
    path = ASSETS["mistral_tokenizer"].path
    if not path.is_file():
        pytest.skip(f"{path} is missing; fetch it with: python -m tools.fetch_assets mistral_tokenizer")
    ours = SentencePieceTokenizer.load(path)
    fast = tokenizers.Tokenizer.from_str(json.dumps(fast_tokenizer(ours)))
    for source in sorted(Path(__file__).parent.glob("*.py")):
        for line in source.read_text(encoding="utf-8").splitlines():
            # text to us, control tokens to them (TOK-6)
            if not any(piece in line for piece in ("<s>", "</s>", "<unk>")):
                assert fast.encode(line, add_special_tokens=False).ids == ours.encode(line), line


@pytest.mark.parametrize(
    ("kind", "template", "eos_id", "ends"),
    [
        ("byte_level", "chatml", 0, [2, 0]),  # the marker, and EOS, as we stop at both
        ("byte_level", "chatml", 2, 2),
        ("byte_level", "llama2", 0, 0),
        ("byte_level", None, 0, 0),
        ("byte_level", None, -1, None),
        ("byte_level", "chatml", -1, 2),
        ("byte_level", "llama2", -1, None),
        ("sentencepiece", "chatml", 2, 2),  # which it has no markers for
    ],
)
def test_others_stop_where_we_do(tmp_path, kind, template, eos_id, ends):
    tokenizer = MAKERS[kind]()
    tokenizer.eos_id = eos_id
    folder = _save(tmp_path / "m", tokenizer, template)
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    wanted = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends, **sampling}
    assert json.loads((folder / "generation_config.json").read_text()) == wanted
    named = json.loads((folder / "config.json").read_text())["eos_token_id"]
    assert named == (eos_id if eos_id >= 0 else None)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"model_type": "unigram", "vocab_size": 310}, "model_type unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_a_sentencepiece_model_that_is_more_than_bpe_has_no_fast_form(tmp_path, caplog, settings, rule):
    ours = sentencepiece_tokenizer(**settings)
    folder = _save(tmp_path / "m", ours, "llama2")
    assert f"tokenizer.model has {rule}, which our tokenizer.json cannot say" in caplog.text
    assert not (folder / "tokenizer.json").exists()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert [config[f"{role}_token"] for role in ("bos", "eos", "unk")] == ["<s>", "</s>", "<unk>"]
    assert config["tokenizer_class"] == "LlamaTokenizer"  # the other class needs a tokenizer.json
    found = load_huggingface(folder)
    assert (found.tokenizer.content_hash, found.template) == (ours.content_hash, "llama2")


def test_user_defined_pieces_are_said_to_be_read_otherwise(tmp_path, caplog):
    folder = _save(tmp_path / "m", sentencepiece_tokenizer(user_defined_symbols=["<|sep|>", "<|x|>"]))
    assert (folder / "tokenizer.json").exists()
    assert "has the user-defined piece(s) <|sep|>, <|x|>; where one stands in a text" in caplog.text
    caplog.clear()
    _save(tmp_path / "plain", sentencepiece_tokenizer())
    assert not caplog.text


@pytest.mark.parametrize("template", [None, *JINJA])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_tokenizer_and_template_survive_the_round_trip(tmp_path, kind, template):
    tokenizer = MAKERS[kind]()
    loaded = load_huggingface(_save(tmp_path / "m", tokenizer, template))
    assert loaded.template == (template or "llama2")
    assert loaded.tokenizer.content_hash == tokenizer.content_hash
    assert (loaded.tokenizer.bos_id, loaded.tokenizer.eos_id) == (1, 2)
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (1, 2)
    written = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert written["clean_up_tokenization_spaces"] is False


def test_ids_of_the_config_stand_in_for_unnamed_ones(tmp_path):
    folder = _save(tmp_path / "m", byte_level_tokenizer())
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_huggingface(folder).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    config, tokenizer = SHAPES["plain"], sentencepiece_tokenizer()
    save_huggingface(tmp_path / "m", config, random_params(config), tokenizer=tokenizer)
    with pytest.raises(FormatError, match="tokenizer has 360 tokens, the embedding 96 rows"):
        load_huggingface(tmp_path / "m")


def test_template_file_and_named_templates(tmp_path):
    folder = _save(tmp_path / "m", byte_level_tokenizer())
    path = folder / "tokenizer_config.json"
    named = [{"name": "tools", "template": "[INST]"}, {"name": "default", "template": JINJA["chatml"]}]
    path.write_text(json.dumps({"chat_template": named}))
    assert load_huggingface(folder).template == "chatml"
    (folder / "chat_template.jinja").write_text(JINJA["smollm2"])
    assert load_huggingface(folder).template == "smollm2"


def test_named_templates_without_a_default_are_refused(tmp_path):
    folder = _save(tmp_path / "m", byte_level_tokenizer())
    path = folder / "tokenizer_config.json"
    named = [{"name": "tools", "template": JINJA["chatml"]}, {"name": "rag", "template": JINJA["chatml"]}]
    path.write_text(json.dumps({"chat_template": named}))
    with pytest.raises(FormatError, match=r'chat_template has tools, rag and no "default"; load with templ'):
        load_huggingface(folder)
    assert load_huggingface(folder, template="chatml").template == "chatml"
    path.write_text(json.dumps({"chat_template": []}))
    assert load_huggingface(folder).template == "llama2"


@pytest.mark.parametrize("value", [5, {}, ["text"], [{"name": "default"}], [{"name": "a", "template": 5}]])
def test_a_template_that_is_no_text_is_refused(tmp_path, value):
    folder = _save(tmp_path / "m", byte_level_tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(
        FormatError, match=r"tokenizer_config\.json: chat_template is .*; it must be text, or"
    ):
        load_huggingface(folder)


def _without_ids(folder, **ids):
    """A folder whose tokenizer files name no BOS and EOS, and whose config.json has ``ids``."""
    _save(folder, byte_level_tokenizer())
    (folder / "tokenizer_config.json").write_text("{}")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ids))
    return folder


def test_ids_of_the_config_stand_in(tmp_path):
    folder = _without_ids(tmp_path / "m", bos_token_id=3, eos_token_id=[4, 5])  # several: none is the EOS
    tokenizer = load_huggingface(folder).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id) == (3, -1)


def test_ids_of_the_tokenizer_come_before_those_of_the_config(tmp_path):
    tokenizer = byte_level_tokenizer()
    tokenizer.bos_id = 0
    path = _save(tmp_path / "m", tokenizer) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": 5, "eos_token_id": 5}))
    found = load_huggingface(tmp_path / "m").tokenizer
    assert (found.bos_id, found.eos_id) == (0, 2)


def test_ids_of_the_config_are_control_pieces_too(tmp_path):
    folder = _without_ids(tmp_path / "m", bos_token_id=1, eos_token_id=2)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    (end,) = [token for token in content["added_tokens"] if token["id"] == 2]
    end["special"] = False
    path.write_text(json.dumps(content))
    tokenizer = load_huggingface(folder).tokenizer
    assert tokenizer.eos_id == 2
    assert 2 not in tokenizer.encode(f"hi{end['content']}hi"), "a user can type it"
    assert tokenizer.decode([*tokenizer.encode("hi"), 2]) == "hi"


@pytest.mark.parametrize("value", [True, 267, 9999, "3"])  # of 267 tokens
def test_ids_of_the_config_that_are_none_are_refused(tmp_path, value):
    folder = _without_ids(tmp_path / "m", bos_token_id=value)
    with pytest.raises(FormatError, match=r"config\.json: bos_token_id is .*; it must be the number of a"):
        load_huggingface(folder)


def _with_added_marker(folder):
    """As fine-tuned models ship it: the marker is in tokenizer.json, not in tokenizer.model."""
    plain = sentencepiece_tokenizer()
    plain.save(folder)
    fast = fast_tokenizer(plain)
    marker = {**fast["added_tokens"][-1], "id": plain.vocab_size, "content": "<|im_end|>", "special": True}
    fast["added_tokens"].append(marker)
    (folder / "tokenizer.json").write_text(json.dumps(fast))
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return plain


def test_tokens_added_to_a_sentencepiece_model_are_not_lost(tmp_path):
    config = dataclasses.replace(SHAPES["plain"], vocab_size=361)
    save_huggingface(tmp_path / "m", config, random_params(config), tokenizer=None)
    plain = _with_added_marker(tmp_path / "m")
    tokenizer = load_huggingface(tmp_path / "m").tokenizer
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (361, 1, 360)
    assert tokenizer.special_id("<|im_end|>") == 360
    for text in SAMPLES:
        assert tokenizer.encode(text) == plain.encode(text), text
        assert tokenizer.decode([1, *plain.encode(text), 360]) == plain.decode(plain.encode(text))


@pytest.mark.parametrize("kind", MAKERS)
def test_auto_tokenizer_gives_the_same_ids(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    ours = MAKERS[kind]()
    theirs = transformers.AutoTokenizer.from_pretrained(_save(tmp_path / "m", ours))
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert len(theirs) == ours.vocab_size
    for text in SAMPLES:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.decode(ids) == ours.decode(ids)
        assert theirs.encode(text) == ours.encode(text, bos=ours.begins_with_bos)


def _without_bos(kind):
    if kind == "byte_level":
        return byte_level_tokenizer()
    return SentencePieceTokenizer(sentencepiece_tokenizer()._model, add_bos=False)


@pytest.mark.parametrize("kind", MAKERS)
def test_auto_tokenizer_puts_bos_where_we_do(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    for ours in (_without_bos(kind), _without_bos(kind).with_bos()):
        folder = _save(tmp_path / str(ours.begins_with_bos), ours)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.encode("The rain") == ours.encode("The rain", bos=ours.begins_with_bos)
        assert load_tokenizer(folder).begins_with_bos == ours.begins_with_bos


def test_bos_joins_a_post_processor_that_does_not_add_it(tmp_path):
    """As GPT-2's, which only moves offsets."""
    content = json.loads(byte_level_tokenizer()._text)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    text = json.dumps(content | {"post_processor": byte_level})
    ours = JsonTokenizer(text, bos_id=1, eos_id=2).with_bos()
    path = _save(tmp_path / "m", ours) / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert theirs.encode("The rain").ids == ours.encode("The rain", bos=True)
    assert theirs.encode("The rain", add_special_tokens=False).ids == ours.encode("The rain")
    again = load_tokenizer(path.parent)
    assert again.begins_with_bos
    _save(tmp_path / "again", again)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == path.read_bytes()  # it is said once


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("says_bos", [True, False])
def test_for_auto_tokenizer_too_the_post_processor_decides(tmp_path, flag, says_bos):
    transformers = pytest.importorskip("transformers")
    ours = byte_level_tokenizer()
    folder = _save(tmp_path / "m", ours.with_bos() if says_bos else ours)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("begins_with_bos", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": flag}))
    found = load_tokenizer(folder)
    assert found.begins_with_bos == says_bos
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.encode("The rain") == found.encode("The rain", bos=says_bos)


@pytest.mark.parametrize("template", JINJA)
@pytest.mark.parametrize("dialogue", [DIALOGUE, DIALOGUE[1:]], ids=["system", "no system"])
def test_chat_template_text_renders_what_we_encode(tmp_path, template, dialogue):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    ours = MAKERS["sentencepiece" if template == "llama2" else "byte_level"]()
    theirs = transformers.AutoTokenizer.from_pretrained(_save(tmp_path / "m", ours, template))
    messages = [message._asdict() for message in dialogue]
    format_ = get_template(template)
    whole = theirs.apply_chat_template(messages, return_dict=False)
    assert whole == encode_dialogue(dialogue, ours, format_).tokens
    prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert prompt == encode_prompt(dialogue[:-1], ours, format_)
