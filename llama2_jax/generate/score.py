"""Log-probabilities of given tokens, by the same model function that trains and decodes."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import require
from llama2_jax.generate.decode import PromptError, check_ids, check_logprobs
from llama2_jax.losses.next_token import token_logprobs
from llama2_jax.model.transformer import Transformer
from llama2_jax.shapes import padded_length
from llama2_jax.sharding.processes import on_host
from llama2_jax.structs import Params

LENGTH_MULTIPLE = 64
CHUNK = 64  # positions of each row whose logits exist at once


def score(
    model: Transformer, params: Params, rows: Sequence[Sequence[int]], *, batch_size: int = 8
) -> list[np.ndarray]:
    """For each row, the natural log-probability of token t given all before it, for t = 1, 2, ...

    Returns:
      One float32 array per row, one element shorter than the row: the first token has none.

    Raises:
      PromptError: a row is empty, longer than the context, or has ids outside the vocabulary.
      LogitsError: a log-probability is not finite.
    """
    require(batch_size > 0, f"batch_size = {batch_size} must be positive")
    for index, row in enumerate(rows):
        if len(row) == 0:
            raise PromptError(f"row {index} has no tokens; leave it out, or begin it with BOS")
        if len(row) > model.config.max_context:
            raise PromptError(
                f"row {index} has {len(row)} tokens, the model's context is {model.config.max_context}; "
                "split it"
            )
        check_ids(row, model.config.vocab_size, where=f"row {index}")
    shards = model.partitioner.batch_shards if model.partitioner else 1
    batch_size = -(-batch_size // shards) * shards  # whole rows for every device of a mesh
    results: dict[int, np.ndarray] = {}
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for first in range(0, len(rows), batch_size):
        chosen = by_length[first : first + batch_size]
        found = _score_batch(model, params, [rows[i] for i in chosen], batch_size)
        check_logprobs(found, chosen)
        results |= dict(zip(chosen, found, strict=True))
    return [results[index] for index in range(len(rows))]


def _score_batch(
    model: Transformer, params: Params, rows: list[Sequence[int]], batch_size: int
) -> list[np.ndarray]:
    longest = max(len(row) for row in rows)
    padded = padded_length(longest, multiple=LENGTH_MULTIPLE, limit=model.config.max_context)
    tokens_BT = np.zeros((batch_size, padded), np.int32)  # a full batch, to compile once per length
    segment_ids_BT = np.zeros((batch_size, padded), np.int32)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row)] = row
        segment_ids_BT[index, : len(row)] = 1
    logprobs_BT = on_host(_next_logprobs(model, params, tokens_BT, segment_ids_BT))
    return [logprobs_BT[index, : len(row) - 1] for index, row in enumerate(rows)]


@functools.partial(jax.jit, static_argnames=("model",))
def _next_logprobs(
    model: Transformer, params: Params, tokens_BT: np.ndarray, segment_ids_BT: np.ndarray
) -> jax.Array:
    """Log-probability of each position's successor, (B, T); the last of a row means nothing."""
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, segment_ids_BT=segment_ids_BT, method="hidden")

    def logprobs(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_BCD, targets_BC = chunk
        return token_logprobs(model.apply({"params": params}, hidden_BCD, method="unembed"), targets_BC)

    chunks = _chunks(hidden_BTD), _chunks(jnp.roll(tokens_BT, -1, axis=1))
    logprobs_BT = jax.lax.map(logprobs, chunks).swapaxes(0, 1).reshape(len(tokens_BT), -1)
    return logprobs_BT[:, : tokens_BT.shape[1]]


def _chunks(array: jax.Array) -> jax.Array:
    """(B, T, ...) -> (chunks, B, CHUNK, ...), zeros after the end."""
    batch, length, *rest = array.shape
    padded = jnp.pad(array, [(0, 0), (0, -length % CHUNK), *[(0, 0)] * len(rest)])
    return padded.reshape(batch, -1, CHUNK, *rest).swapaxes(0, 1)
