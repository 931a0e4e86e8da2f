"""Sampled answers to many prompts, in batches of few compiled shapes."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llama2_jax.config import require
from llama2_jax.data.chat import Message, encode_prompt, stop_ids
from llama2_jax.generate.decode import check_prompts, generate, row_ids
from llama2_jax.generate.sampler import rounded
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.pretrained import LoadedModel
from llama2_jax.shapes import filled
from llama2_jax.structs import Params
from llama2_jax.train.progress import counted


class Answer(NamedTuple):
    """What the model wrote; ``tokens`` are the ids as sampled, with the stop token if there is one."""

    tokens: list[int]
    text: str  # without the stop token
    stopped: bool
    logprobs: list[float]  # natural log, of the distribution that was sampled from


def model_version(loaded: LoadedModel) -> str:
    """A name for the parameters: where they came from and the sum of all their bits in the compute dtype.

    The sum is the same for every layout; of values that only changed places it knows nothing.
    """
    checksum = int(_checksum(loaded.params, loaded.config.compute_dtype))
    return f"{loaded.source}, checksum {checksum:08x}"


@functools.partial(jax.jit, static_argnums=1)
def _checksum(params: Params, compute_dtype: str) -> jax.Array:
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(rounded(params, compute_dtype)):
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        total += jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)
    return total


def sample_answers(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Message]],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int],
    batch_size: int,
) -> list[Answer]:
    """One answer to each dialogue (which ends with the user), in the order given.

    Args:
      loaded: from ``for_decoding(load(path))``.
      seeds: one per prompt; the answer depends on the prompt and its seed, and on rounding (``generate``).
      batch_size: prompts decoded together; prompts of like length share a batch.

    Raises:
      DialogueError, PromptError, ConfigError: a prompt that cannot be rendered or is too long.
    """
    tokenizer = loaded.require_tokenizer()
    rows = [encode_prompt(prompt, tokenizer, loaded.template) for prompt in prompts]
    return sample_token_rows(loaded, rows, sampling, seeds=seeds, batch_size=batch_size)


def sample_token_rows(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int],
    batch_size: int,
    shown_as: str = "answers",
) -> list[Answer]:
    """``sample_answers`` for prompts that are ids already.

    Args:
      shown_as: what a person sees the progress of, ``counted``; "" if the caller counts.
    """
    require(batch_size > 0, f"batch_size = {batch_size} must be positive")
    require(len(seeds) == len(rows), f"{len(seeds)} seeds for {len(rows)} prompts; give one each")
    if rows:
        check_prompts(loaded.model, rows)  # in the order given, before any is answered
    answers: dict[int, Answer] = {}
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for chosen in counted(shown_as, by_length, size=batch_size):
        batch = filled(chosen, batch_size)
        sampled = _sample(loaded, [rows[i] for i in batch], sampling, [seeds[i] for i in batch])
        answers |= zip(chosen, sampled, strict=False)
    return [answers[index] for index in range(len(rows))]


def _sample(
    loaded: LoadedModel, batch: list[Sequence[int]], sampling: SamplingConfig, seeds: list[int]
) -> list[Answer]:
    tokenizer = loaded.require_tokenizer()
    stops = stop_ids(tokenizer, loaded.template)
    out = generate(loaded.model, loaded.params, batch, sampling, stop_ids=stops, seeds=seeds)
    answers = []
    for row, length in enumerate(out.lengths_B):
        tokens, text_ids = row_ids(out, row)
        logprobs = [float(value) for value in out.sample_logprobs_BC[row, :length]]
        answers.append(Answer(tokens, tokenizer.decode(text_ids), bool(out.stopped_B[row]), logprobs))
    return answers
