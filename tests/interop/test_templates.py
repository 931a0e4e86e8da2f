import pytest

from llama2_jax.interop.imported import FormatError
from llama2_jax.interop.templates import JINJA, guess_template

# other spellings of the same formats; line ends are a real one here and backslash and n there
SYSTEM_APART = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
)
ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Take turns') }}{% endif %}"
)
FOLDED = (
    "{% if loop.index0 == 0 and system != false %}"
    "{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set text = m['content'] %}{% endif %}"
)
USER = "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text | trim + ' [/INST]' }}"
ANSWER = "{% elif m['role'] == 'assistant' %}{{ ' ' + text | trim + ' ' + eos_token }}{% endif %}"
LLAMA2 = SYSTEM_APART + "{% for m in rest %}" + ALTERNATE + FOLDED + USER + ANSWER + "{% endfor %}"
TURN = "'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
LOOP = "{% for m in messages %}{{ " + TURN + " }}{% endfor %}"
CHATML = LOOP + OPENING
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}{% endif %}{{ " + TURN + " }}{% endfor %}" + OPENING
)  # fmt: skip
LAST_UNCLOSED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)

KNOWN = [
    *JINJA.items(),
    ("llama2", LLAMA2),
    ("chatml", CHATML),
    ("chatml", LOOP),  # older texts leave the opening of an answer to the model
    ("chatml", "{% if not add_generation_prompt is defined %}x{% endif %}" + CHATML),
    ("chatml", "{%- if tools is not none or documents is not none %}You have tools.{% endif %}" + CHATML),
    ("chatml", "{% for m in messages %}{% if m['content'] is not string %}{{ raise_exception('No text') }}"
     "{% endif %}{% generation %}{{ " + TURN + " }}{% endgeneration %}{% endfor %}" + OPENING),
    ("chatml", LAST_UNCLOSED + OPENING),
    ("chatml", "{% for m in messages %}\n    {% if not m.content %}\n    {% continue %}\n    {% endif %}\n"
     "{{ " + TURN + " }}{% endfor %}\n" + OPENING),
    ("chatml_bos", "{{- bos_token -}}\n" + CHATML + "\n"),
    ("chatml_bos", "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ " + TURN + " }}"
     "{% endfor %}" + OPENING),
    ("smollm2", SMOLLM2),
]  # fmt: skip

DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n' + text + '<|im_end|>\n' }}{% endif %}"
)
UNLESS_TAGGED = (
    "{% elif not '<<SYS>>' in messages[0]['content'] %}{% set rest = messages %}{% set system = 'Be kind.' %}"
)
UNKNOWN = {
    "no format": "<|user|>",
    "broken": "{% for m in messages %}[INST] <<SYS>> <|im_start|>",
    "another family": "{% for m in messages %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endfor %}",
    "BOS once": LLAMA2.replace("bos_token", "(bos_token if loop.first else '')"),
    "no space before EOS": LLAMA2.replace("' ' + eos_token", "eos_token"),
    "a default system prompt": LLAMA2.replace("system = false", "system = 'Vous êtes Bob.'"),
    "a default unless tagged": LLAMA2.replace("{% else %}", UNLESS_TAGGED + "{% else %}", 1),
    "a system prompt in the last turn": LLAMA2.replace("loop.index0 == 0 and", "loop.last and"),
    "a greeting": "{% if messages | length == 1 %}Hello.{% endif %}" + CHATML,
    "no system message": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('') }}{% endif %}"
    + CHATML,
    "a default of ChatML": "{% set text = 'You are Bob.' %}" + DEFAULT + CHATML,
    "an empty default of ChatML": DEFAULT + CHATML,
    "no line end after a turn": CHATML.replace("<|im_end|>\\n", "<|im_end|>"),
    "an answer begins with a thought": CHATML.replace("assistant\\n", "assistant\\n<think>\\n"),
    "BOS before every turn": CHATML.replace("'<|im_start|>' + m", "bos_token + '<|im_start|>' + m"),
}


class Pieces:
    """A tokenizer with these pieces for BOS and EOS, None for one that it lacks."""

    def __init__(self, *pieces: str | None) -> None:
        self._pieces = pieces
        self.bos_id, self.eos_id = (i if piece else -1 for i, piece in enumerate(pieces))

    def piece(self, token_id: int) -> str | None:
        return self._pieces[token_id]


def test_without_a_text_it_is_llama2():
    assert guess_template(None, None) == guess_template("", None) == "llama2"


@pytest.mark.parametrize("tokenizer", [None, Pieces("<s>", "</s>"), Pieces("<|im_start|>", "<|im_end|>")])
@pytest.mark.parametrize(("name", "text"), KNOWN)
def test_a_template_is_known_by_what_it_writes(name, text, tokenizer):
    assert guess_template(text, tokenizer) == name


@pytest.mark.parametrize("why", UNKNOWN)
def test_a_template_that_writes_something_else_is_refused(why):
    with pytest.raises(FormatError, match="unknown chat template .*known: .*chatml_bos.*template=NAME"):
        guess_template(UNKNOWN[why], None)


def test_bos_and_eos_are_those_of_the_tokenizer():
    by_name = LOOP.replace("<|im_end|>", "' + eos_token + '") + OPENING
    assert guess_template(by_name, Pieces("<s>", "<|im_end|>")) == "chatml"
    with pytest.raises(FormatError, match="unknown chat template"):
        guess_template(by_name, Pieces("<s>", "</s>"))
    assert guess_template("{{ bos_token }}" + CHATML, Pieces(None, "<|im_end|>")) == "chatml"
    with pytest.raises(
        FormatError, match="unknown chat template"
    ):  # with every other reading, it cannot be encoded
        guess_template(LLAMA2, Pieces(None, "</s>"))


def test_a_template_can_do_no_harm(tmp_path):
    file = tmp_path / "file"
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(file) + "') }}"
    with pytest.raises(FormatError, match="unknown chat template"):
        guess_template(escape + CHATML, None)
    assert not file.exists()
