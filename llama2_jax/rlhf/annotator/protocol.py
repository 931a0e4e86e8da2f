"""How comparisons are collected: two variants answer each prompt, somebody compares (PREF-1, 5, 6).

Batch n (a week of the paper) takes the next prompts of the file, so that a file in the order of
difficulty is a curriculum (PREF-11); ``first_prompt`` begins elsewhere. Each prompt is answered once by the
new and once by the previous model, at temperatures drawn for it; with one model only, at two different
temperatures. The order in which two answers are shown is random. Pairs that nobody could compare are
sampled again, then dropped and counted.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

from llama2_jax.config import require, require_choice, to_plain
from llama2_jax.data.chat import UNFINISHED, Template, answer_flaw
from llama2_jax.data.preferences import Preference
from llama2_jax.data.prompts import Prompt, prompt_from_row
from llama2_jax.rlhf.annotator.comparison import Comparison, Judgement, safety_bin


@dataclasses.dataclass(frozen=True)
class CollectionConfig:
    """How much is collected and how varied it is."""

    first_batch: int = 1
    num_batches: int = 1
    prompts_per_batch: int = 1000
    prompts_in_first: int = 0  # of batch 1; 0 = as many as in every other
    first_prompt: int = 0  # of batch first_batch, from 1; 0 = behind batches before it of the sizes above
    temperatures: tuple[float, ...] = (0.7, 1.0)  # one is drawn for each answer (PREF-1)
    max_resamples: int = 2  # of a pair whose answers are equal or cannot be used
    unfinished: str = "exclude"  # a reward model reads every answer with the end that these lack; or "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("first_batch", "num_batches", "prompts_per_batch"):
            require(getattr(self, name) > 0, f"{name} = {getattr(self, name)} must be positive")
        for name in ("prompts_in_first", "first_prompt", "max_resamples"):
            require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)} must not be negative")
        require_choice("unfinished", self.unfinished, UNFINISHED)
        require(
            len(set(self.temperatures)) > 1 and min(self.temperatures) > 0,
            f"temperatures = {self.temperatures} must be at least two different positive numbers: "
            "the answers to be compared are sampled at varied temperature",
        )

    @property
    def batches(self) -> range:
        """Of this run, counted from 1."""
        return range(self.first_batch, self.first_batch + self.num_batches)

    def batch_size(self, batch: int) -> int:
        """Prompts of a batch, counted from 1."""
        return self.prompts_in_first or self.prompts_per_batch if batch == 1 else self.prompts_per_batch

    def prompts_before(self, batch: int) -> int:
        """Prompts of the file that stand before those of a batch."""
        counted = range(self.first_batch if self.first_prompt else 1, batch)
        return max(self.first_prompt - 1, 0) + sum(map(self.batch_size, counted))


class Variant(NamedTuple):
    """A model at a temperature, or a person."""

    model: str
    temperature: float | None = None


class Reply(NamedTuple):
    """What a variant answered, without space around it."""

    text: str
    finished: bool  # it ended by itself


class SampledPair(NamedTuple):
    """Two sampled answers and who wrote them; the annotator sees ``comparison`` only."""

    comparison: Comparison
    batch: int
    variants: tuple[Variant, Variant]  # of the first and the second answer


class Collected(NamedTuple):
    """Pairs to compare, and how many were given up, by reason."""

    pairs: list[SampledPair]
    dropped: Counter[str]


SampleFunction = Callable[[Variant, Sequence[Prompt], Sequence[int]], list[Reply]]
"""Variant, prompts and their seeds to answers."""


def batch_prompts(prompts: Sequence[Prompt], config: CollectionConfig, batch: int) -> list[Prompt]:
    """The prompts of a batch, counted from 1; after the last prompt the file begins again.

    Raises:
      ConfigError: a batch is larger than the file, so a prompt would stand in it twice.
    """
    size = config.batch_size(batch)
    field = "prompts_in_first" if batch == 1 and config.prompts_in_first else "prompts_per_batch"
    require(
        size <= len(prompts),
        f"{field} = {size} is more than the {len(prompts)} prompts of the file; "
        f"lower config.collection.{field}",
    )
    first = config.prompts_before(batch)
    return [prompts[index % len(prompts)] for index in range(first, first + size)]


def draw_variants(
    models: Sequence[str], temperatures: Sequence[float], rng: Random
) -> tuple[Variant, Variant]:
    """Two different variants, in random order.

    Args:
      models: the new one and, if there is one, the previous.
    """
    if len(models) == 1:
        first, second = (Variant(models[0], one) for one in rng.sample(list(temperatures), 2))
    else:
        first, second = (Variant(model, rng.choice(temperatures)) for model in rng.sample(list(models), 2))
    return first, second


def collect(
    prompts: Sequence[Prompt],
    models: Sequence[str],
    sample: SampleFunction,
    config: CollectionConfig,
    *,
    batch: int,
    template: Template,
) -> Collected:
    """The pairs of one batch, in the order of its prompts.

    Args:
      prompts: of the whole file.
      models: names of the new and the previous model, different; or of the only one.
      template: answers that contain its markers are not used.
    """
    chosen = batch_prompts(prompts, config, batch)
    waiting = {f"{batch}-{prompt.prompt_id}": prompt for prompt in chosen}
    found: dict[str, SampledPair] = {}
    reasons: dict[str, str] = {}
    for attempt in range(1 + config.max_resamples):
        rngs = {name: Random(f"{config.seed} {name} {attempt}") for name in waiting}
        variants = {name: draw_variants(models, config.temperatures, rng) for name, rng in rngs.items()}
        seeds = {name: (rng.getrandbits(31), rng.getrandbits(31)) for name, rng in rngs.items()}
        asked = [
            (variants[name][side], prompt, seeds[name][side])
            for name, prompt in waiting.items()
            for side in (0, 1)
        ]
        answers = _sample_by_variant(asked, sample)
        for name, first, second in zip(list(waiting), answers[::2], answers[1::2], strict=True):
            reason = unusable(first, second, template, config.unfinished)
            if reason:
                reasons[name] = reason
            else:
                comparison = Comparison(name, waiting.pop(name), first.text, second.text)
                found[name] = SampledPair(comparison, batch, variants[name])
    order = [f"{batch}-{prompt.prompt_id}" for prompt in chosen]
    return Collected(
        [found[name] for name in order if name in found], Counter(reasons[name] for name in waiting)
    )


def pair_row(pair: SampledPair) -> dict[str, Any]:
    """The JSON form of a pair."""
    return {**to_plain(pair.comparison), "batch": pair.batch, "variants": to_plain(pair.variants)}


def pair_from_row(row: dict[str, Any]) -> SampledPair:
    """The inverse of ``pair_row``."""
    first, second = (Variant(**one) for one in row["variants"])
    comparison = Comparison(row["comparison_id"], prompt_from_row(row["prompt"]), row["first"], row["second"])
    return SampledPair(comparison, row["batch"], (first, second))


def unusable(first: Reply, second: Reply, template: Template, unfinished: str) -> str:
    """Why nobody can compare the answers, a flaw of one or "equal answers"; "" if somebody can."""
    for reply in (first, second):
        if flaw := answer_flaw(reply.text, template, stopped=reply.finished, unfinished=unfinished):
            return flaw
    return "equal answers" if first.text == second.text else ""


def to_preference(pair: SampledPair, judgement: Judgement, *, source: str) -> Preference:
    """The row of a judged pair (PREF-7)."""
    comparison, first = pair.comparison, judgement.prefers_first
    answers = (comparison.first, comparison.second)
    chosen, rejected = (0, 1) if first else (1, 0)
    unsafe = judgement.unsafe
    return Preference(
        messages=comparison.prompt.messages,
        chosen=answers[chosen],
        rejected=answers[rejected],
        track=comparison.track,
        rating=judgement.rating,
        safety=safety_bin(unsafe[chosen], unsafe[rejected]) if unsafe else None,
        batch=pair.batch,
        chosen_model=pair.variants[chosen].model,
        rejected_model=pair.variants[rejected].model,
        chosen_temperature=pair.variants[chosen].temperature,
        rejected_temperature=pair.variants[rejected].temperature,
        annotator_id=judgement.annotator_id,
        risk_category=comparison.prompt.risk_category,
        prompt_id=comparison.prompt.prompt_id,
        source=source,
    )


def _sample_by_variant(asked: Iterable[tuple[Variant, Prompt, int]], sample: SampleFunction) -> list[Reply]:
    """Answers in order, each variant asked once for all its prompts."""
    asked = list(asked)
    answers: dict[int, Reply] = {}
    for variant in sorted({one for one, _, _ in asked}):
        places = [place for place, (one, _, _) in enumerate(asked) if one == variant]
        replies = sample(variant, [asked[i][1] for i in places], [asked[i][2] for i in places])
        answers |= zip(places, replies, strict=True)
    return [answers[place] for place in range(len(asked))]
