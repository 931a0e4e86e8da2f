"""Log-probabilities of given tokens, by the same model function that trains and decodes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import require
from llama2_jax.data.text_batches import text_batches
from llama2_jax.generate.decode import PromptError, check_ids, check_logprobs
from llama2_jax.losses.next_token import token_logprobs
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.processes import on_host, require_same_rows
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
    check_rows(model, rows)
    results: dict[int, np.ndarray] = {}
    for batch, places in text_batches(
        rows,
        None,
        batch_size=batch_size,
        row_multiple=model.partitioner.batch_shards,  # whole rows for every device of a mesh
        length_multiple=LENGTH_MULTIPLE,
    ):
        logprobs_BT = on_host(_next_logprobs(model, params, batch.tokens_BT, batch.segment_ids_BT))
        found = {index: logprobs_BT[place.row, : len(rows[index]) - 1] for index, place in places.items()}
        check_logprobs(list(found.values()), list(found))
        results |= found
    return [results[index] for index in range(len(rows))]


def check_rows(model: Transformer, rows: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> None:
    """Raise ``PromptError`` for a row that the model cannot read, by its name (default: its number)."""
    for name, row in zip(names or [f"row {index}" for index in range(len(rows))], rows, strict=True):
        if len(row) == 0:
            raise PromptError(f"{name} has no tokens; leave it out, or begin it with BOS")
        if len(row) > model.config.max_context:
            raise PromptError(
                f"{name} has {len(row)} tokens, the model's context is {model.config.max_context}; split it"
            )
        check_ids(row, model.config.num_ids, where=name)
    require_same_rows("rows to score", rows)


@functools.partial(jax.jit, static_argnames=("model",))
def _next_logprobs(
    model: Transformer, params: Params, tokens_BT: np.ndarray, segment_ids_BT: np.ndarray
) -> jax.Array:
    """Of each position's successor in the row, (B, T); the last of a row means nothing."""
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, segment_ids_BT=segment_ids_BT, method="hidden")
    return map_logits(model, params, token_logprobs, hidden_BTD, jnp.roll(tokens_BT, -1, axis=1))


def map_logits(
    model: Transformer, params: Params, function: Callable[..., Any], hidden_BTD: jax.Array, ids_BT: jax.Array
) -> Any:
    """``function(logits_BTV, ids_BT)``, arrays (B, T), of so few positions at once that logits stay small."""
    batch, length = ids_BT.shape

    def chunks(array: jax.Array) -> jax.Array:
        pad = ((0, 0), (0, -length % CHUNK), *[(0, 0)] * (array.ndim - 2))
        return jnp.pad(array, pad).reshape(batch, -1, CHUNK, *array.shape[2:]).swapaxes(0, 1)

    def apply(chunk: tuple[jax.Array, jax.Array]) -> Any:
        hidden_BCD, ids_BC = chunk
        return function(model.apply({"params": params}, hidden_BCD, method="unembed"), ids_BC)

    found = jax.lax.map(apply, (chunks(hidden_BTD), chunks(ids_BT)))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(batch, -1)[:, :length], found)
