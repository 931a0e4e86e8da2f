"""Completions as text, each up to where it is complete.

A completion is what the joined text adds to its prompt; decoded alone, SentencePiece would lose a leading
space (TOK-5), which is indentation where code is asked for. But one space between a prompt and its completion
is left out: it separates the two, and metrics compare literally.
"""

from collections.abc import Callable, Sequence

from llama2_jax.data.chat import stop_ids
from llama2_jax.data.tokenizer import text_after
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.until import generate_until
from llama2_jax.pretrained import LoadedModel
from llama2_jax.shapes import filled


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
    texts = complete_until(
        loaded,
        prompts,
        sampling,
        is_complete=lambda text: any(stop in text for stop in until),
        seeds=seeds,
        batch_size=batch_size,
    )
    return [text[: min((text.find(stop) for stop in until if stop in text), default=None)] for text in texts]


def complete_until(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    is_complete: Callable[[str], bool],
    seeds: Sequence[int],
    batch_size: int,
) -> list[str]:
    """What the model writes after each prompt, ended soon after ``is_complete`` says so of it.

    Args:
      loaded: from ``for_decoding``, with a tokenizer.
      prompts: ids.
      seeds: one per prompt; a completion depends on its prompt and its seed, and on rounding (``generate``).
      batch_size: prompts decoded together.

    Raises:
      PromptError, ConfigError, LogitsError: as ``generate_until``.
    """
    texts: list[str] = []
    for first in range(0, len(prompts), batch_size):
        chosen = range(len(prompts))[first : first + batch_size]
        numbers = filled(chosen, batch_size)
        batch, own_seeds = [prompts[i] for i in numbers], [seeds[i] for i in numbers]
        texts += _complete_batch(loaded, batch, sampling, is_complete, own_seeds)[: len(chosen)]
    return texts


def _complete_batch(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    is_complete: Callable[[str], bool],
    seeds: Sequence[int],
) -> list[str]:
    tokenizer = loaded.require_tokenizer()
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
        stop_ids=stop_ids(tokenizer, loaded.template),
        seeds=seeds,
    )
    return [text(row, ids) for row, ids in enumerate(made)]
