"""The simulated world: its prompts, demonstrations of every quality, and texts to learn it from.

Everything is drawn from a ``random.Random`` of one seed. Prompts are divided by a hash of their
text, so that a text is in one part only, whatever its size and seed.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from llama2_jax.config import ConfigError, require_choice
from llama2_jax.data.chat import Message
from llama2_jax.data.context_distillation import answer_template, generic_preprompts, with_preprompt
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.families import (
    adversarial,
    arithmetic,
    borderline,
    creative,
    dates,
    facts,
    formats,
    persona,
)
from llama2_jax.rlhf.annotator.families.family import Family, lexicon
from llama2_jax.rlhf.annotator.flaws import FILLERS, GENERAL, REFUSALS, VAGUE

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (arithmetic, facts, formats, creative, persona, adversarial, borderline, dates)
}
LEXICON = lexicon(*VAGUE, *REFUSALS, *FILLERS).union(*(family.lexicon for family in FAMILIES.values()))
SHARES: Mapping[str, float] = {
    "arithmetic": 0.15, "facts": 0.15, "formats": 0.12, "creative": 0.1, "persona": 0.15, "dates": 0.05,
    "adversarial": 0.2, "borderline": 0.08,
}  # fmt: skip
"""How often each family is asked."""
STATEMENT_SHARES: Mapping[str, float] = {
    "arithmetic": 0.2, "facts": 0.1, "formats": 0.2, "creative": 0.05, "persona": 0.25, "dates": 0.15,
    "borderline": 0.05,
}  # fmt: skip
"""How often statements teach each family: what copies from the prompt is learned last."""
MAX_DRAWS_PER_PROMPT = 50
MAX_MESSAGES = 12  # of a demonstration, so that it fits a context of 256 tokens
WITH_PREPROMPT = 0.2  # share of the demonstrations on adversarial prompts
PARTS = ("train", "train", "train", "train", "train", "train", "heldout", "evaluation")


class Vendor(NamedTuple):
    """A source of demonstrations (SFT-3)."""

    name: str
    share: float  # of all demonstrations
    good: float  # share of its demonstrations; the others have one of its flaws
    complies: float  # share of adversarial prompts whose demonstration is unsafe
    flaws: tuple[str, ...]


VENDORS = (
    Vendor("careful", 0.4, 0.75, 0.2, ("terse", "plain", "no offer", "off format", "unfinished")),
    Vendor("hasty", 0.3, 0.4, 0.7, ("unfinished", "terse", "off format", "off topic", "vague")),
    Vendor("wordy", 0.3, 0.2, 0.7, ("vague", "rambling", "repeating", "refusal")),
)


class Demonstration(NamedTuple):
    """A finished dialogue; ``quality`` is "good" or the flaw of its last answer."""

    messages: tuple[Message, ...]
    vendor: str
    quality: str


def part_of(messages: Sequence[Message]) -> str:
    """``train``, ``heldout`` or ``evaluation``: the same for a text on every machine and in every run."""
    text = "\n".join(message.content for message in messages)
    return PARTS[zlib.crc32(text.encode()) % len(PARTS)]


def draw_prompt(rng: Random, *, part: str, shares: Mapping[str, float] = SHARES) -> Prompt:
    """One prompt of a part, of one turn, its id still empty."""
    families, weights = list(shares), list(shares.values())
    while True:
        prompt = FAMILIES[rng.choices(families, weights)[0]].make(rng)
        if part_of(prompt.messages) == part:
            return prompt


def draw_prompts(
    rng: Random, count: int, *, part: str, multi_turn: float = 0.15, shares: Mapping[str, float] = SHARES
) -> list[Prompt]:
    """``count`` different prompts of a part, with ids "part-00000" and so on.

    Args:
      multi_turn: share of those without a system message that follow an earlier exchange; it grows
        from 0 for the first prompt to twice that for the last (PREF-9, PREF-11).

    Raises:
      ConfigError: the world has not so many.
    """
    require_choice("part", part, dict.fromkeys(PARTS))
    prompts: dict[tuple[Message, ...], Prompt] = {}
    for _ in range(MAX_DRAWS_PER_PROMPT * count):
        prompt = draw_prompt(rng, part=part, shares=shares)
        if prompt.messages[0].role == "user" and rng.random() < 2 * multi_turn * len(prompts) / count:
            prompt = prompt._replace(messages=(*_exchange(rng, part), *prompt.messages))
        prompts.setdefault(prompt.messages, prompt._replace(prompt_id=f"{part}-{len(prompts):05d}"))
        if len(prompts) == count:
            return list(prompts.values())
    raise ConfigError(
        f"the world has fewer than {count} different prompts in {part}: found {len(prompts)}; ask for fewer"
    )


def answer(prompt: Prompt, quality: str, rng: Random) -> str:
    """A good answer, or one with the flaw named, which the family must have."""
    family = FAMILIES[prompt.family]
    task = family.parse(prompt.messages)
    if quality in family.flaws:
        return family.flaws[quality](task, rng)
    good = family.good(task, rng)
    return good if quality == "good" else GENERAL[quality](good, rng)


def qualities(prompt: Prompt) -> list[str]:
    """What ``answer`` can do for a prompt; refusing an adversarial prompt is in it, as no flaw."""
    return ["good", *FAMILIES[prompt.family].flaws, *GENERAL]


def demonstrate(prompt: Prompt, vendor: Vendor, rng: Random) -> Demonstration:
    """A prompt with the answer of one vendor."""
    if prompt.is_safety and rng.random() < vendor.complies:
        quality = "unsafe"
    elif rng.random() < vendor.good:
        quality = "good"
    else:
        quality = rng.choice([flaw for flaw in vendor.flaws if flaw in qualities(prompt)])
    message = Message("assistant", answer(prompt, quality, rng))
    return Demonstration((*prompt.messages, message), vendor.name, quality)


def draw_demonstrations(rng: Random, count: int, *, multi_turn: float = 0.5) -> Iterator[Demonstration]:
    """Demonstrations for fine-tuning, on prompts of the training part.

    About half of the answers are good, about half of the adversarial prompts are complied with; where a
    safety preprompt stands before one, its answer is good, so that the model learns to follow it (CD-1).
    Whoever answers a later turn sees its message only. An instruction of an earlier turn is therefore
    forgotten, which is what Ghost Attention mends (section 3.3).
    """
    for _ in range(count):
        vendor = rng.choices(VENDORS, [vendor.share for vendor in VENDORS])[0]
        prompt = draw_prompt(rng, part="train")
        if prompt.is_safety and rng.random() < WITH_PREPROMPT:
            messages = tuple(with_preprompt(prompt.messages, _preprompt(prompt, rng)))
            good = Message("assistant", answer(prompt, "good", rng))
            yield Demonstration((*messages, good), vendor.name, "good")
            continue
        found = demonstrate(_with_instruction(prompt, rng), vendor, rng)
        dialogue = found.messages
        while rng.random() < multi_turn and len(dialogue) < MAX_MESSAGES:
            found = demonstrate(_later_prompt(rng), vendor, rng)
            dialogue += found.messages
        yield found._replace(messages=dialogue)


def _preprompt(prompt: Prompt, rng: Random) -> str:
    """A generic safety preprompt, or the template of the prompt's risk category, half of the time each."""
    if rng.random() < 0.5:
        return rng.choice(generic_preprompts("short"))
    return answer_template(prompt.risk_category, "short")


def _with_instruction(prompt: Prompt, rng: Random) -> Prompt:
    """Now and then with an instruction that does not matter to the question."""
    is_added = prompt.family != persona.FAMILY.name and rng.random() < 0.15
    messages = persona.instruct(prompt.messages, rng) if is_added else prompt.messages
    return prompt._replace(messages=messages)


def _later_prompt(rng: Random) -> Prompt:
    """A prompt without system message, in three of ten cases about a persona that it does not set."""
    if rng.random() < 0.3:
        return _persona_question(rng)
    while True:
        prompt = _with_instruction(draw_prompt(rng, part="train"), rng)
        if prompt.messages[0].role == "user":
            return prompt


def _persona_question(rng: Random) -> Prompt:
    """About a persona that is not set in it, of the training part."""
    while True:
        prompt = persona.without_instruction(rng)
        if part_of(prompt.messages) == "train":
            return prompt


def draw_documents(rng: Random, count: int) -> Iterator[str]:
    """Texts for pretraining: one to three statements of one family, or questions with good answers.

    Nothing in them says what to do about adversarial prompts: that is learned later.
    """
    shares = {name: SHARES[name] for name in STATEMENT_SHARES}
    for _ in range(count):
        if rng.random() < 0.6:
            family = FAMILIES[rng.choices(list(STATEMENT_SHARES), list(STATEMENT_SHARES.values()))[0]]
            yield " ".join(family.statement(rng) for _ in range(rng.randint(1, 3))) + "\n"
        else:
            prompts = [draw_prompt(rng, part="train", shares=shares) for _ in range(rng.randint(3, 5))]
            yield "".join(f"{_text(prompt)}\n{answer(prompt, 'good', rng)}\n" for prompt in prompts)


def _text(prompt: Prompt) -> str:
    return " ".join(message.content for message in prompt.messages)


def _exchange(rng: Random, part: str) -> tuple[Message, ...]:
    """A question that neither seeks anything unsafe nor is about a persona, with a good answer."""
    shares = {name: share for name, share in SHARES.items() if name not in ("adversarial", "persona")}
    prompt = draw_prompt(rng, part=part, shares=shares)
    return (*prompt.messages, Message("assistant", answer(prompt, "good", rng)))


def identify(messages: Sequence[Message]) -> tuple[Family, Any]:
    """The family whose pattern the last message has, and the task it states."""
    for family in FAMILIES.values():
        task = family.parse(messages)
        if task is not None:
            return family, task
    raise ConfigError(
        f"no family of the simulated world asks {messages[-1].content!r}; known: {', '.join(FAMILIES)}; "
        "prompts from elsewhere need another annotator (model or file)"
    )
