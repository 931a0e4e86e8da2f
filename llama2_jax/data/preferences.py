"""Human preferences: one binary comparison per JSONL row (Llama 2, section 3.2.1; PREF-1..10).

A row holds these keys (PREF-7); ``messages``, ``chosen``, ``rejected`` and ``track`` must be there,
the others have the defaults of ``Preference``, and any other key is an error:

    {"messages": [{"role": "user", "content": "..."}],  the dialogue so far; the last is the prompt
     "chosen": "...", "rejected": "...",                the two answers
     "rating": "better",                                one of RATINGS, or null where nobody graded
     "safety": "both_safe",                             one of SAFETY_BINS, "rejected_safe" or null
     "track": "safety",                                 what annotators were asked: one of TRACKS
     "batch": 3,                                        number of the week it was collected in
     "chosen_model": "V2", "rejected_model": "V1",      who wrote the answers
     "chosen_temperature": 1.2, "rejected_temperature": 0.9,
     "annotator_id": "rater 4", "risk_category": "", "prompt_id": "p17", "source": "simulated"}

The number of turns is that of the user's messages. A pair whose chosen answer is unsafe while the
rejected one is safe ("rejected_safe") may stand in a file and is left out when it is read (PREF-4).
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from llama2_jax.config import require, to_plain
from llama2_jax.data.chat import Message, Template, check_special_tags, validate_dialogue
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.packing import shuffled_order
from llama2_jax.data.records import DataError, OnBadLine, Paths, check, check_keys, read_records
from llama2_jax.data.sources import check_not_empty, to_messages
from llama2_jax.data.tokenizer import Tokenizer

T = TypeVar("T")

RATINGS = ("significantly_better", "better", "slightly_better", "unsure")
"""How much better the chosen answer is (PREF-2); "unsure" is the paper's negligibly better or unsure."""

SAFETY_BINS = ("chosen_safe", "both_safe", "both_unsafe")
"""PREF-4; "chosen_safe" means that only the chosen answer is safe."""

REJECTED_SAFE = "rejected_safe"
"""The fourth case: never trained on, because a safer answer is a better one."""

UNSAFE = {"chosen_safe": (False, True), "both_safe": (False, False), "both_unsafe": (True, True)}
"""Safety bin to whether (chosen, rejected) is unsafe."""

TRACKS = ("helpfulness", "safety")


log = logging.getLogger(__name__)


class Preference(NamedTuple):
    """One comparison. ``messages`` ends with the user; both answers continue it."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    track: str
    rating: str | None = None
    safety: str | None = None
    batch: int = 0
    chosen_model: str = ""
    rejected_model: str = ""
    chosen_temperature: float | None = None  # None: unknown
    rejected_temperature: float | None = None
    annotator_id: str = ""
    risk_category: str = ""
    prompt_id: str = ""
    source: str = ""


class Split(NamedTuple):
    """Preferences to train on and to test with; no prompt is in both."""

    train: list[Preference]
    heldout: list[Preference]


class Statistics(NamedTuple):
    """A row of Table 6 or 26: number of comparisons, then means over them.

    An example is what the reward model reads: earlier dialogue, prompt and one answer. Tokens are
    those of the texts, without the template's markers. Counted so, the 2,299 usable pairs of
    Anthropic's harmless-base test file have 153.3, 15.0 and 46.4 tokens with a Llama-like tokenizer;
    Table 6 says 152.5, 15.7 and 46.4 of the whole set, but 3.0 turns, where we count 2.5.
    """

    comparisons: int
    turns: float  # messages of the user
    tokens_per_example: float
    tokens_per_prompt: float  # last message of the user
    tokens_per_response: float  # mean of chosen and rejected


def read_preferences(
    paths: Paths,
    *,
    template: Template | None,
    on_bad_line: OnBadLine = "error",
    excluded: Counter[str] | None = None,
) -> list[Preference]:
    """All usable pairs of the files, in order.

    Args:
      template: its markers are refused in every text (CHAT-5); None where models of several templates read
        the file, and each says which pairs it cannot read.
      on_bad_line: "error" stops at the first bad row, "skip" counts it and passes over it.
      excluded: number of pairs left out on purpose, by reason; added to, if given.

    Raises:
      DataError: a row that breaks the schema (file, line, reason), or no usable pair at all.
    """
    pairs = list(
        read_records(
            paths,
            lambda row: parse_preference(row, template),
            keys=Preference._fields,
            on_bad_line=on_bad_line,
        )
    )
    kept = [pair for pair in pairs if pair.safety != REJECTED_SAFE]
    left_out = len(pairs) - len(kept)
    if not kept:
        raise DataError(
            f"{paths}: all {left_out} pair(s) are {REJECTED_SAFE!r}, which are never used (PREF-4)"
        )
    if left_out:
        log.warning("%d of %d pair(s) excluded: chosen unsafe, rejected safe", left_out, len(pairs))
    if excluded is not None:
        excluded[REJECTED_SAFE] += left_out
    return kept


def parse_preference(row: dict[str, Any], template: Template | None) -> Preference:
    """A checked pair from parsed JSON.

    Raises:
      ValueError: with the reason.
    """
    hint = "; public sets come into this form by tools.prepare_preferences"
    check_keys(row, Preference._fields, hint=hint)
    missing = [key for key in ("messages", "chosen", "rejected", "track") if key not in row]
    check(not missing, f"key(s) {', '.join(missing)} missing")
    pair = Preference(**{**row, "messages": tuple(to_messages(row["messages"]))})
    pair = pair._replace(**{key: _as_float(getattr(pair, key)) for key in _TEMPERATURES})
    for key, kind in Preference.__annotations__.items():
        value = getattr(pair, key)
        right = key == "messages" or (isinstance(value, kind) and not isinstance(value, bool))
        check(right, f"{key!r} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}")
    _check_choice("rating", pair.rating, (*RATINGS, None))
    _check_choice("safety", pair.safety, (*SAFETY_BINS, REJECTED_SAFE, None))
    _check_choice("track", pair.track, TRACKS)
    check_pair(pair, template)
    return pair


def check_pair(pair: Preference, template: Template | None) -> None:
    """Refuse texts that no reward model can learn from.

    Raises:
      ValueError: roles in the wrong order, an empty text, special tags of ``template``, or equal answers.
    """
    validate_dialogue(pair.messages, ends_with="user")
    answers = to_messages([{"role": name, "content": getattr(pair, name)} for name in ("chosen", "rejected")])
    for name, answer in answers:
        check(answer.strip(), f"the {name} answer is empty")
    if template is not None:
        check_special_tags(answers, template)
        check_special_tags(pair.messages, template)
    check_not_empty(pair.messages)
    # the chat format strips texts, so these two would be the same tokens
    check(pair.chosen.strip() != pair.rejected.strip(), "the chosen and the rejected answer are equal")


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Write a preference file; it appears when it is complete."""
    write_rows(path, map(to_plain, preferences))


def require_ratings(preferences: Sequence[Preference], *, unrated_sources: Sequence[str] = ()) -> None:
    """Make sure that the margin loss has what it needs; a missing rating is never taken as margin 0.

    Args:
      unrated_sources: sources whose pairs nobody graded; only for these margin 0 is meant (D34).

    Raises:
      DataError: pairs without a rating, with how many, of which sources.
    """
    unrated = Counter(
        pair.source for pair in preferences if pair.rating is None and pair.source not in unrated_sources
    )
    if unrated:
        sources = ", ".join(
            f"{source or '(no source)'}: {count}" for source, count in sorted(unrated.items())
        )
        raise DataError(
            f"margins need a rating, but {unrated.total()} of {len(preferences)} pair(s) have none "
            f"({sources}); "
            "train without margins (config.loss.margin=none), or name the sources that nobody graded in "
            "config.data.unrated_sources: they get margin 0"
        )


def prompt_key(messages: Sequence[Message]) -> tuple[str, ...]:
    """What makes two prompts the same: all messages, without regard to case and spaces."""
    return tuple(" ".join(message.content.casefold().split()) for message in messages)


def is_heldout(messages: Sequence[Message], *, heldout_fraction: float, seed: int) -> bool:
    """Whether a prompt is among the ``heldout_fraction`` that is not trained on.

    It depends on its text and the seed alone, so it is the same in every batch and file.
    """
    text = "\x00".join((str(seed), *prompt_key(messages)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return number / 2**48 < heldout_fraction


def split_by_prompt(preferences: Sequence[Preference], *, heldout_fraction: float, seed: int) -> Split:
    """Hold out about ``heldout_fraction`` of the prompts, with all their pairs (PREF-6, ``is_heldout``).

    Raises:
      DataError: one side is empty.
    """
    prompts = [pair.messages for pair in preferences]
    return Split(*hold_out(preferences, prompts, heldout_fraction=heldout_fraction, seed=seed, what="pair"))


def hold_out(
    items: Sequence[T], prompts: Sequence[Sequence[Message]], *, heldout_fraction: float, seed: int, what: str
) -> tuple[list[T], list[T]]:
    """What is trained on and what is held out: the items of about ``heldout_fraction`` of the prompts.

    Args:
      prompts: of each item.
      what: an item is, for messages.

    Raises:
      DataError: one side is empty.
    """
    require(0 < heldout_fraction < 1, f"heldout_fraction = {heldout_fraction} must be between 0 and 1")
    sides: tuple[list[T], list[T]] = ([], [])
    for item, prompt in zip(items, prompts, strict=True):
        sides[is_heldout(prompt, heldout_fraction=heldout_fraction, seed=seed)].append(item)
    if not all(sides):
        raise DataError(
            f"{len(items)} {what}(s) of {len(set(map(prompt_key, prompts)))} prompt(s) leave nothing "
            f"{'held out' if sides[0] else 'to train on'} with heldout_fraction = {heldout_fraction} and "
            f"seed {seed}; give more prompts or change the fraction"
        )
    return sides


def mix(
    main: Sequence[Preference], rest: Sequence[Preference], *, main_fraction: float, seed: int
) -> list[Preference]:
    """All of ``main`` plus pairs drawn uniformly from ``rest``, shuffled.

    ``main`` makes up ``main_fraction`` of the result. A ``rest`` that is too small for that is used
    up, with a warning: nothing is repeated, because a second epoch over-fits (RM-10).
    """
    require(0 < main_fraction <= 1, f"main_fraction = {main_fraction} must be in (0, 1]")
    wanted = round(len(main) * (1 - main_fraction) / main_fraction)
    drawn = min(wanted, len(rest))
    if drawn < wanted:
        log.warning("the mixture wants %d other pair(s), there are %d; all are used", wanted, drawn)
    # three numbers, so that no order is one of those of epochs, which have (seed, epoch)
    chosen = sorted(shuffled_order(len(rest), (seed, 0, 1))[:drawn])
    mixed = [*main, *(rest[index] for index in chosen)]
    return [mixed[index] for index in shuffled_order(len(mixed), (seed, 0, 2))]


def statistics(preferences: Sequence[Preference], tokenizer: Tokenizer) -> Statistics:
    """Size and lengths of a set of pairs, as in Tables 6 and 26.

    Raises:
      DataError: there is no pair.
    """
    if not preferences:
        raise DataError("there are no preferences to describe")
    history, prompt, response = np.mean([_lengths(pair, tokenizer) for pair in preferences], axis=0)
    return Statistics(
        comparisons=len(preferences),
        turns=float(np.mean([_turns(pair) for pair in preferences])),
        tokens_per_example=float(history + prompt + response),
        tokens_per_prompt=float(prompt),
        tokens_per_response=float(response),
    )


def rating_shares(preferences: Iterable[Preference]) -> dict[str, float]:
    """Share of each rating among the pairs that have one (Figure 25, PREF-10); empty if none has."""
    counts = Counter(pair.rating for pair in preferences if pair.rating is not None)
    return {rating: counts[rating] / counts.total() for rating in RATINGS} if counts else {}


def group_by(
    preferences: Iterable[Preference], key: Callable[[Preference], Hashable]
) -> dict[Any, list[Preference]]:
    """Pairs by batch, source or track, in the order of the keys."""
    groups: dict[Any, list[Preference]] = {}
    for pair in preferences:
        groups.setdefault(key(pair), []).append(pair)
    return dict(sorted(groups.items()))


_TEMPERATURES = ("chosen_temperature", "rejected_temperature")


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _check_choice(key: str, value: str | None, choices: Sequence[str | None]) -> None:
    known = ", ".join("null" if choice is None else choice for choice in choices)
    check(value in choices, f"{key!r} is {value!r}; known: {known}")


def _turns(pair: Preference) -> int:
    return sum(message.role == "user" for message in pair.messages)


def _lengths(pair: Preference, tokenizer: Tokenizer) -> tuple[int, int, float]:
    """Tokens of the dialogue before the prompt, of the prompt, and of an answer."""
    *history, prompt = (len(tokenizer.encode(message.content)) for message in pair.messages)
    answers = [len(tokenizer.encode(answer)) for answer in (pair.chosen, pair.rejected)]
    return sum(history), prompt, sum(answers) / 2
