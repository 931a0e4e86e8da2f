"""Dialogues as token ids: the only module that knows ``[INST]``, ``<<SYS>>`` and ChatML.

A template is data: what stands before and after the text of each role. One path renders all
of them. Neighbouring text is joined and encoded in one call, control markers are ids of their
own, so nothing a user types can become a marker. Source: Llama 2's released ``generation.py``
(CHAT-1..8); the loss mask follows section 3.1 (SFT-5), all assistant turns by default (D25).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from llama2_jax.config import UserError, require_choice
from llama2_jax.data.tokenizer import Tokenizer, shared_prefix

TrainOn = Literal["all", "last"]
"""Which answers of a dialogue are learned: of all assistant turns (D25), or the last one (GATT-2)."""
TRAIN_ON = get_args(TrainOn)
UNFINISHED = ("exclude", "keep")
"""What may be done with sampled answers that the limit cut off."""

SPECIAL_TAGS_ERROR = "Error: special tags are not allowed as part of the prompt."


class DialogueError(UserError, ValueError):
    """A dialogue whose roles are in the wrong order; the message shows them."""


class SpecialTagError(DialogueError):
    """A message contains the template's own markers (CHAT-5)."""


class Message(NamedTuple):
    """One turn. ``role`` is system, user or assistant."""

    role: str
    content: str


class Marker(NamedTuple):
    """A control token of a template: ``bos``, ``eos``, or a piece of the vocabulary."""

    piece: str


Parts = tuple[str | Marker, ...]
BOS, EOS = Marker("bos"), Marker("eos")


@dataclass(frozen=True)
class Turn:
    """What stands around the text of one role."""

    before: Parts
    after: Parts


@dataclass(frozen=True)
class Template:
    """A chat format. In ``assistant.after`` everything up to the marker ``stop`` is learned."""

    name: str
    user: Turn
    assistant: Turn
    system: Turn | None  # None: the system text goes inside the first user message
    system_tags: tuple[str, str]  # around it there; unused if the system has its own turn
    answer_opening: Parts  # what a prompt ends with, after the last user turn
    stop: Marker
    forbidden: tuple[str, ...]  # texts no message may contain
    default_system: str | None = None  # of "llama2" none, as released since August 2023 (CHAT-6, D82)
    opening: Parts = ()  # what every dialogue begins with, before the first turn


LLAMA2 = Template(
    name="llama2",
    user=Turn((BOS, "[INST] "), (" [/INST]",)),
    assistant=Turn((" ",), (" ", EOS)),
    system=None,
    system_tags=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    answer_opening=(),
    stop=EOS,
    forbidden=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
)
LLAMA2_SYSTEM = replace(
    LLAMA2,
    name="llama2_system",
    # Table 31: of the human evaluation, and of the release in its first weeks
    default_system=(
        "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while "
        "being safe. Your answers should not include any harmful, unethical, racist, sexist, toxic, "
        "dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive "
        "in nature.\n\n"
        "If a question does not make any sense, or is not factually coherent, explain why instead of "
        "answering something not correct. If you don't know the answer to a question, please don't share "
        "false information."
    ),
)
IM_START, IM_END = Marker("<|im_start|>"), Marker("<|im_end|>")
CHATML = Template(
    name="chatml",
    user=Turn((IM_START, "user\n"), (IM_END, "\n")),
    assistant=Turn((IM_START, "assistant\n"), (IM_END, "\n")),
    system=Turn((IM_START, "system\n"), (IM_END, "\n")),
    system_tags=("", ""),
    answer_opening=(IM_START, "assistant\n"),
    stop=IM_END,
    forbidden=(IM_START.piece, IM_END.piece),
)
CHATML_BOS = replace(CHATML, name="chatml_bos", opening=(BOS,))
SMOLLM2 = replace(
    CHATML,
    name="smollm2",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)
TEMPLATES = {template.name: template for template in (LLAMA2, LLAMA2_SYSTEM, CHATML, CHATML_BOS, SMOLLM2)}


class EncodedDialogue(NamedTuple):
    """Ids of a whole dialogue; ``loss_mask[i]`` is 1 iff ``tokens[i]`` is to be learned."""

    tokens: list[int]
    loss_mask: list[int]


class _Piece(NamedTuple):
    part: str | Marker
    learned: bool


def get_template(name: str) -> Template:
    """Look a template up by name. Raises ``ConfigError`` that lists the known ones."""
    require_choice("chat template", name, TEMPLATES)
    return TEMPLATES[name]


def validate_dialogue(dialogue: Sequence[Message], *, ends_with: Literal["user", "assistant"]) -> None:
    """Check the order of roles (CHAT-2): system at most once and first, then user and assistant in turn.

    Raises:
      DialogueError: with the roles found.
    """
    for index, message in enumerate(dialogue):
        if not isinstance(message, Message):
            raise DialogueError(
                f"message {index} is a {type(message).__name__}, not a llama2_jax.data.chat.Message(role, "
                "content)"
            )
    roles = [message.role for message in dialogue]
    shown = ", ".join(roles) or "no messages"
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if not turns or turns != expected:
        raise DialogueError(
            f"roles are {shown}; a dialogue is an optional system message, then user and assistant in turn, "
            "beginning with user"
        )
    if turns[-1] != ends_with:
        raise DialogueError(f"roles are {shown}; the last message must be from the {ends_with}")


def check_special_tags(dialogue: Sequence[Message], template: Template) -> None:
    """Refuse messages that contain the template's markers, in any role (CHAT-5).

    Raises:
      SpecialTagError: its text begins with the fixed sentence of the release.
    """
    for number, message in enumerate(dialogue):
        if found := special_tags(message.content, template):
            raise SpecialTagError(
                f"{SPECIAL_TAGS_ERROR} Message {number} ({message.role}) contains {', '.join(found)}"
            )


def special_tags(text: str, template: Template) -> list[str]:
    """The template's markers that are in a text; an answer that has one cannot be read again."""
    return [tag for tag in template.forbidden if tag in text]


def without_special_tags(text: str, template: Template) -> str:
    """The text without the template's markers."""
    while found := special_tags(text, template):  # taking one out can make another
        for tag in found:
            text = text.replace(tag, "")
    return text


def answer_flaw(text: str, template: Template, *, stopped: bool = True, unfinished: str = "exclude") -> str:
    """Why a sampled answer cannot be used: "unfinished", "empty" or "special tags"; "" if it can.

    Args:
      stopped: it ended by itself.
      unfinished: one of ``UNFINISHED``.
    """
    if not stopped and unfinished == "exclude":
        return "unfinished"
    if not text.strip():
        return "empty"
    return "special tags" if special_tags(text, template) else ""


def encode_prompt(dialogue: Sequence[Message], tokenizer: Tokenizer, template: Template) -> list[int]:
    """Ids of a dialogue whose last message, from the user, is to be answered (CHAT-4).

    Raises:
      DialogueError, SpecialTagError: see ``validate_dialogue`` and ``check_special_tags``.
    """
    return encode_parts(prompt_parts(dialogue, template), tokenizer)


def prompt_parts(dialogue: Sequence[Message], template: Template) -> Parts:
    """What ``encode_prompt`` encodes: texts, and the markers that no text can stand for."""
    validate_dialogue(dialogue, ends_with="user")
    check_special_tags(dialogue, template)
    pieces = _render(_with_system(dialogue, template), template, learned_turns=set())
    return (*(piece.part for piece in pieces), *template.answer_opening)


def encode_parts(parts: Sequence[str | Marker], tokenizer: Tokenizer) -> list[int]:
    """Ids of texts and markers; neighbouring texts are encoded in one call."""
    return _encode([_Piece(part, False) for part in parts], tokenizer).tokens


def encode_dialogue(
    dialogue: Sequence[Message],
    tokenizer: Tokenizer,
    template: Template,
    *,
    train_on: TrainOn = "all",
) -> EncodedDialogue:
    """Ids and loss mask of a finished dialogue (SFT-5, D25).

    Learned are the answers of all assistant turns, or of the last one only (Ghost Attention),
    each with the stop token that ends it.

    Raises:
      DialogueError, SpecialTagError: see ``validate_dialogue`` and ``check_special_tags``.
    """
    require_choice("train_on", train_on, TRAIN_ON)
    validate_dialogue(dialogue, ends_with="assistant")
    check_special_tags(dialogue, template)
    dialogue = _with_system(dialogue, template)
    answers = [i for i, message in enumerate(dialogue) if message.role == "assistant"]
    learned = set(answers if train_on == "all" else answers[-1:])
    return _encode(_render(dialogue, template, learned_turns=learned), tokenizer)


def dialogue_text(dialogue: Sequence[Message], template: Template) -> str:
    """A dialogue in its format, without control tokens: text to train a tokenizer on."""
    pieces = _render(_with_system(dialogue, template), template, learned_turns=set())
    return "".join(piece.part for piece in pieces if isinstance(piece.part, str))


def stop_ids(tokenizer: Tokenizer, template: Template) -> tuple[int, ...]:
    """Ids that end an answer: the template's stop marker, and EOS where there is one."""
    ids = [_marker_id(template.stop, tokenizer), tokenizer.eos_id]
    return tuple(dict.fromkeys(i for i in ids if i >= 0))


def _with_system(dialogue: Sequence[Message], template: Template) -> list[Message]:
    """Add the default system prompt, then fold it into the first user message if need be (CHAT-3)."""
    messages = list(dialogue)
    if messages[0].role != "system" and template.default_system is not None:
        messages.insert(0, Message("system", template.default_system))
    if messages[0].role == "system" and template.system is None:
        before, after = template.system_tags
        # Stripping happens after this, to the joined text, as in the release.
        text = before + messages[0].content + after + messages[1].content
        messages[:2] = [Message("user", text)]
    return messages


def _render(dialogue: Sequence[Message], template: Template, *, learned_turns: set[int]) -> list[_Piece]:
    """Text and markers in order, each with whether it is to be learned."""
    turns = {"system": template.system, "user": template.user, "assistant": template.assistant}
    pieces = [_Piece(part, False) for part in template.opening]
    for number, message in enumerate(dialogue):
        turn = turns[message.role]
        assert turn is not None  # _with_system has folded it
        learned = number in learned_turns
        learned_after = turn.after.index(template.stop) + 1 if learned else 0
        # what a prompt does not end with, the model has to write: in Llama 2's format a space, which is
        # a token of its own before digits
        pieces += [_Piece(part, learned and not template.answer_opening) for part in turn.before]
        pieces.append(_Piece(message.content.strip(), learned))
        pieces += [_Piece(part, i < learned_after) for i, part in enumerate(turn.after)]
    return pieces


def _encode(pieces: Sequence[_Piece], tokenizer: Tokenizer) -> EncodedDialogue:
    """Encode runs of text between markers in one call each."""
    tokens: list[int] = []
    loss_mask: list[int] = []
    run: list[_Piece] = []
    for piece in [*pieces, None]:
        if piece is not None and isinstance(piece.part, str):
            run.append(piece)
            continue
        ids, mask = _encode_run(run, tokenizer, after_marker=bool(tokens))
        run = []
        if piece is not None and isinstance(piece.part, Marker):
            ids, mask = [*ids, _marker_id(piece.part, tokenizer)], [*mask, int(piece.learned)]
        tokens += ids
        loss_mask += mask
    return EncodedDialogue(tokens, loss_mask)


def _encode_run(
    run: Sequence[_Piece], tokenizer: Tokenizer, *, after_marker: bool
) -> tuple[list[int], list[int]]:
    """Encode joined text whose learned part, if any, is its end.

    The boundary is where the encoding of the part before the answer stops being a prefix of the
    encoding of the whole: exact for pieces that end at words, and where one piece spans both
    sides it counts as answer, because the model has to produce it.
    """
    encode = functools.partial(tokenizer.encode, after_marker=after_marker)
    ids = encode("".join(str(piece.part) for piece in run)) if run else []
    if not any(piece.learned for piece in run):
        return ids, [0] * len(ids)
    before = "".join(str(piece.part) for piece in run if not piece.learned)
    shared = shared_prefix(encode(before), ids) if before else 0
    return ids, [0] * shared + [1] * (len(ids) - shared)


def _marker_id(marker: Marker, tokenizer: Tokenizer) -> int:
    if marker in (BOS, EOS):
        return (tokenizer.encode("", bos=True) if marker == BOS else tokenizer.encode("", eos=True))[0]
    return tokenizer.special_id(marker.piece)
