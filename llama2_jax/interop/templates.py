"""Which chat template a foreign checkpoint means, and the text Hugging Face files spell it with.

The token-exact formats live in ``data/chat.py``; here are only their names and the Jinja
text that ``tokenizer_config.json`` and GGUF headers carry. What such a text means shows when it is
rendered: the only module that imports jinja2.
"""

from collections.abc import Mapping
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama2_jax.data.chat import (
    BOS,
    EOS,
    LLAMA2_SYSTEM,
    SMOLLM2,
    TEMPLATES,
    Marker,
    Message,
    Parts,
    Template,
    prompt_parts,
)
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.interop.imported import FormatError

_CHATML_LOOP = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA2_SYSTEM = "'<<SYS>>\n' + {text} + '\n<</SYS>>\n\n'"
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = " + _LLAMA2_SYSTEM.format(text="messages[0]['content']") + " %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set system = DEFAULT %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('after an optional system message, user and assistant must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

JINJA = {
    "llama2": _LLAMA2.replace("DEFAULT", "''"),
    "llama2_system": _LLAMA2.replace(
        "DEFAULT", _LLAMA2_SYSTEM.format(text=f'"{LLAMA2_SYSTEM.default_system}"')
    ),
    "chatml": _CHATML_LOOP,
    "chatml_bos": "{{ bos_token }}" + _CHATML_LOOP,
    "smollm2": (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\n"
        + str(SMOLLM2.default_system)
        + "<|im_end|>\n' }}{% endif %}"
        + _CHATML_LOOP
    ),
}

_SYSTEM = Message("system", "Be brief.")
_TURNS = (Message("user", "Hello there!"), Message("assistant", "Hi."), Message("user", "How are you?"))
# a default system prompt shows where none is given, the places of BOS and EOS where there are several turns
_DIALOGUES = (_TURNS[:1], _TURNS, (_SYSTEM, *_TURNS[:1]), (_SYSTEM, *_TURNS))


def guess_template(jinja: str | None, tokenizer: Tokenizer | None) -> str:
    """The name of the template that a checkpoint's Jinja text describes; "llama2" without one.

    It is the one that makes the same prompts of a few dialogues. What does not differ there does not count:
    whether spaces around messages are kept, and what follows the last answer of a finished dialogue.

    Args:
      tokenizer: of the checkpoint, for the BOS and EOS that the text may ask for; None if it has none.

    Raises:
      FormatError: a text that is none of the known formats.
    """
    if not jinja:
        return "llama2"
    pieces = _bos_and_eos(tokenizer)
    prompts = _render(jinja, pieces)
    found = (name for name, template in TEMPLATES.items() if prompts in _our_prompts(template, pieces))
    name = next(found, None)
    if name is None:
        raise FormatError(
            f"unknown chat template {jinja[:60]!r}...; known: {', '.join(JINJA)}. Load with template=NAME to "
            "say which of these to use instead (on a command line --template=NAME, or --config.template=NAME)"
        )
    return name


def _bos_and_eos(tokenizer: Tokenizer | None) -> dict[Marker, str]:
    """The pieces that stand for them in a text, of those that there are."""
    if tokenizer is None:
        return {BOS: "<s>", EOS: "</s>"}
    ids = {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}
    return {marker: tokenizer.piece(token_id) for marker, token_id in ids.items() if token_id >= 0}


def _render(jinja: str, pieces: Mapping[Marker, str]) -> list[str] | None:
    """The prompts that ``transformers`` makes of the dialogues; None where the text fails, or refuses one."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.globals["raise_exception"] = _raise_exception
    tokens = {f"{marker.piece}_token": piece for marker, piece in pieces.items()}
    values = {"add_generation_prompt": True, "tools": None, "documents": None, **tokens}
    try:
        template = environment.from_string(jinja)
        return [
            template.render(values, messages=[message._asdict() for message in dialogue])
            for dialogue in _DIALOGUES
        ]
    except Exception:  # a text of others can fail in any way
        return None


class _Generation(Extension):
    """A tag around what is learned, which leaves no trace in the text."""

    tags = {"generation"}  # noqa: RUF012 - a set, as the base class has it

    def parse(self, parser: Parser) -> list[Node]:
        """What the tag encloses."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    """What a text calls to refuse a dialogue."""
    raise TemplateError(message)


def _our_prompts(template: Template, pieces: Mapping[Marker, str]) -> tuple[list[str], list[str]]:
    """The prompts of this format, and the same without the beginning of an answer, which some texts omit."""
    prompts = [_as_text(prompt_parts(dialogue, template), pieces) for dialogue in _DIALOGUES]
    return prompts, [prompt.removesuffix(_as_text(template.answer_opening, pieces)) for prompt in prompts]


def _as_text(parts: Parts, pieces: Mapping[Marker, str]) -> str:
    """The parts joined; a BOS or EOS that there is not stands by its name, as no text would have it."""
    return "".join(part if isinstance(part, str) else pieces.get(part, part.piece) for part in parts)
