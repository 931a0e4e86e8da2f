"""Completions as text, each up to where it is complete.

A completion is what the joined text adds to its prompt; decoded alone, SentencePiece would lose a leading
space (TOK-5), which is indentation where code is asked for. But one space between a prompt and its completion
is left out: it separates the two, and metrics compare literally.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama2_jax.data.chat import stop_ids
from llama2_jax.data.tokenizer import text_after
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.until import generate_until
from llama2_jax.pretrained import LoadedModel
from llama2_jax.shapes import filled


class Completion(NamedTuple):
    """What the model wrote after a prompt, and whether it ended by itself."""

    text: str
    stopped: bool


def complete_before(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    until: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
) -> list[str]:
    """What the model writes after each prompt, before the first of ``until``; else as ``complete_until``."""
    completions = complete_until(
        loaded,
        prompts,
        sampling,
        is_complete=lambda text: any(stop in text for stop in until),
        seeds=seeds,
        batch_size=batch_size,
    )
    return [
        text[: min((text.find(stop) for stop in until if stop in text), default=None)]
        for text, _ in completions
    ]


def complete_until(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    is_complete: Callable[[str], bool],
    seeds: Sequence[int],
    batch_size: int,
) -> list[Completion]:
    """What the model writes after each prompt, ended soon after ``is_complete`` says so of it.

    Args:
      loaded: from ``for_decoding``, with a tokenizer.
      prompts: ids.
      seeds: one per prompt; a completion depends on its prompt and its seed, and on rounding (``generate``).
      batch_size: prompts decoded together.

    Raises:
      PromptError, ConfigError, LogitsError: as ``generate_until``.
    """
    completions: list[Completion] = []
    for first in range(0, len(prompts), batch_size):
        chosen = range(len(prompts))[first : first + batch_size]
        numbers = filled(chosen, batch_size)
        batch, own_seeds = [prompts[i] for i in numbers], [seeds[i] for i in numbers]
        completions += _complete_batch(loaded, batch, sampling, is_complete, own_seeds)[: len(chosen)]
    return completions


def _complete_batch(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    is_complete: Callable[[str], bool],
    seeds: Sequence[int],
) -> list[Completion]:
    tokenizer = loaded.require_tokenizer()
    stops = stop_ids(tokenizer, loaded.template)
    after_space = [tokenizer.decode(list(prompt))[-1:].isspace() for prompt in prompts]

    def text(row: int, ids: list[int]) -> str:
        completion = text_after(prompts[row], ids, tokenizer)
        return completion if after_space[row] else completion.removeprefix(" ")

    made = generate_until(
        loaded.model,
        loaded.params,
        prompts,
        sampling,
        is_complete=lambda row, ids: is_complete(text(row, ids)),
        stop_ids=stops,
        seeds=seeds,
    )
    stopped = [bool(ids) and ids[-1] in stops for ids in made]
    return [
        Completion(text(row, ids[:-1] if ended else ids), ended)
        for row, (ids, ended) in enumerate(zip(made, stopped, strict=True))
    ]
