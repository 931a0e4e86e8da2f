"""Which chat template a foreign checkpoint means, and the text Hugging Face files spell it with.

The token-exact formats live in ``data/chat.py``; here are only their names and the Jinja
text that ``tokenizer_config.json`` and GGUF headers carry.
"""

import re

from llama2_jax.data.chat import SMOLLM2
from llama2_jax.interop.imported import FormatError

_SMOLLM2_SYSTEM = str(SMOLLM2.default_system)

_CHATML_LOOP = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('after an optional system message, user and assistant must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

JINJA = {
    "llama2": _LLAMA2,
    "chatml": _CHATML_LOOP,
    "chatml_bos": "{{ bos_token }}" + _CHATML_LOOP,
    "smollm2": (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\n" + _SMOLLM2_SYSTEM + "<|im_end|>\n' }}{% endif %}" + _CHATML_LOOP
    ),
}

# A default system prompt: text after the system marker, or words in quotes (the value of a variable, say).
# Line ends are spelled backslash and n in some files. Error messages are no prompt.
_OWN_TEXT = re.compile(r"""<\|im_start\|>system(?:\\n|\s)*[^\s\\'"{<]|(?<!raise_exception\()['"]\w+,? \w""")
_LOOP = re.compile(r"\{%-?\s*for\b")


def guess_template(jinja: str | None) -> str:
    """The name of the template that a checkpoint's Jinja text describes; "llama2" without one.

    Raises:
      FormatError: a text that is none of the known formats.
    """
    if not jinja:
        return "llama2"
    if "<|im_start|>" in jinja:
        found = _guess_chatml(jinja)
    else:  # others with [INST], as Mistral's, have other spaces and BOS
        found = "llama2" if "[INST]" in jinja and "<<SYS>>" in jinja else None
    if found is not None:
        return found
    raise FormatError(
        f"unknown chat template {jinja[:60]!r}...; known: {', '.join(JINJA)}. Load with template=NAME to say "
        "which of these to use instead (on a command line --template=NAME, or --config.template=NAME)"
    )


def _guess_chatml(jinja: str) -> str | None:
    """Which ChatML template the text is; None where it would add what none of them has."""
    if _SMOLLM2_SYSTEM in jinja:
        return "smollm2"
    if _OWN_TEXT.search(jinja):
        return None
    if "bos_token" not in jinja:
        return "chatml"
    first_only = jinja.count("bos_token") == 1 and "bos_token" in _LOOP.split(jinja)[0]
    return "chatml_bos" if first_only else None
