"""Log-probabilities of given tokens, by the same model function that trains and decodes."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import require
from llama2_jax.generate.decode import PromptError, check_ids, check_logprobs
from llama2_jax.generate.sampling import likeliest
from llama2_jax.losses.next_token import token_logprobs
from llama2_jax.model.transformer import Transformer
from llama2_jax.shapes import padded_length
from llama2_jax.sharding.processes import on_host, require_same_rows
from llama2_jax.structs import Params

LENGTH_MULTIPLE = 64
CHUNK = 64  # positions of each row whose logits exist at once


class Continuation(NamedTuple):
    """How likely a continuation is after its context."""

    logprob: float  # natural log, the sum over its tokens
    is_greedy: bool  # whether each of its tokens is the likeliest one


class _NextScores(NamedTuple):
    logprobs_BT: jax.Array  # of each position's successor in the row; the last of a row means nothing
    is_greedy_BT: jax.Array  # whether that successor is the likeliest, likewise
    last_logprobs_BV: jax.Array  # of every token after the end of the row


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
    results: dict[int, np.ndarray] = {}
    for chosen, tokens_BT, segment_ids_BT in _batches(model, rows, batch_size):
        logprobs_BT = on_host(_next_logprobs(model, params, tokens_BT, segment_ids_BT))
        found = [logprobs_BT[place, : len(rows[row]) - 1] for place, row in enumerate(chosen)]
        check_logprobs(found, chosen)
        results |= zip(chosen, found, strict=True)
    return [results[index] for index in range(len(rows))]


def score_continuations(
    model: Transformer,
    params: Params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 8,
) -> list[Continuation]:
    """How likely each continuation is after its context, in the order given.

    Pairs that differ in nothing but the last token share a row: the answers A to D to a question of MMLU
    take one pass over its prompt instead of four.

    Args:
      pairs: token ids of a context and of its continuation, neither empty.

    Raises:
      PromptError: a context or a continuation is empty, both together are longer than the context and one
        token, or an id is outside the vocabulary.
      LogitsError: a log-probability is not finite.
    """
    pairs_of: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if len(context) == 0 or len(continuation) == 0:
            raise PromptError(
                f"pair {index} has {len(context)} tokens of context and {len(continuation)} of continuation; "
                "give one of each at least: a context can be BOS"
            )
        check_ids(continuation[-1:], model.config.num_ids, where=f"pair {index}")
        pairs_of.setdefault((*context, *continuation[:-1]), []).append(index)
    rows = list(pairs_of)
    results: dict[int, Continuation] = {}
    for chosen, tokens_BT, segment_ids_BT in _batches(model, rows, batch_size):
        scores = on_host(_next_scores(model, params, tokens_BT, segment_ids_BT))
        check_logprobs(scores.last_logprobs_BV[: len(chosen)], [pairs_of[rows[row]][0] for row in chosen])
        for place, row in enumerate(chosen):
            own = _NextScores(*(leaf[place] for leaf in scores))
            results |= {index: _continuation(*pairs[index], own) for index in pairs_of[rows[row]]}
    return [results[index] for index in range(len(pairs))]


def _continuation(context: Sequence[int], continuation: Sequence[int], scores: _NextScores) -> Continuation:
    """The result of one pair from the scores of its row, which holds all but the last token."""
    inside = slice(len(context) - 1, len(context) + len(continuation) - 2)
    last = continuation[-1]
    logprobs = [*scores.logprobs_BT[inside], scores.last_logprobs_BV[last]]
    is_greedy = scores.is_greedy_BT[inside].all() and scores.last_logprobs_BV.argmax() == last
    return Continuation(float(np.sum(logprobs, dtype=np.float64)), bool(is_greedy))


def _batches(
    model: Transformer, rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Which rows, their tokens and segments, (B, T): rows of like length together, full batches only.

    All rows are checked before the first batch.
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
        check_ids(row, model.config.num_ids, where=f"row {index}")
    require_same_rows("rows to score", rows)
    shards = model.partitioner.batch_shards
    batch_size = -(-batch_size // shards) * shards  # whole rows for every device of a mesh
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for first in range(0, len(rows), batch_size):
        chosen = by_length[first : first + batch_size]
        longest = len(rows[chosen[-1]])
        padded = padded_length(longest, multiple=LENGTH_MULTIPLE, limit=model.config.max_context)
        tokens_BT = np.zeros((batch_size, padded), np.int32)  # a full batch, to compile once per length
        segment_ids_BT = np.zeros((batch_size, padded), np.int32)
        for place, index in enumerate(chosen):
            tokens_BT[place, : len(rows[index])] = rows[index]
            segment_ids_BT[place, : len(rows[index])] = 1
        yield chosen, tokens_BT, segment_ids_BT


@functools.partial(jax.jit, static_argnames=("model",))
def _next_logprobs(
    model: Transformer, params: Params, tokens_BT: np.ndarray, segment_ids_BT: np.ndarray
) -> jax.Array:
    return _scores(model, params, tokens_BT, segment_ids_BT).logprobs_BT  # the rest is not computed


@functools.partial(jax.jit, static_argnames=("model",))
def _next_scores(
    model: Transformer, params: Params, tokens_BT: np.ndarray, segment_ids_BT: np.ndarray
) -> _NextScores:
    return _scores(model, params, tokens_BT, segment_ids_BT)


def _scores(
    model: Transformer, params: Params, tokens_BT: np.ndarray, segment_ids_BT: np.ndarray
) -> _NextScores:
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, segment_ids_BT=segment_ids_BT, method="hidden")
    unembed = functools.partial(model.apply, {"params": params}, method="unembed")

    def scores(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden_BCD, targets_BC = chunk
        logits_BCV = unembed(hidden_BCD)
        return token_logprobs(logits_BCV, targets_BC), likeliest(logits_BCV) == targets_BC

    batch, length = tokens_BT.shape
    found = jax.lax.map(scores, (_chunks(hidden_BTD), _chunks(jnp.roll(tokens_BT, -1, axis=1))))
    logprobs_BT, is_greedy_BT = (leaf.swapaxes(0, 1).reshape(batch, -1)[:, :length] for leaf in found)
    ends_B = jnp.maximum(segment_ids_BT.sum(axis=1) - 1, 0)  # rows that only fill the batch have no end
    last_BTD = jnp.take_along_axis(hidden_BTD, ends_B[:, None, None], axis=1)
    last_logprobs_BV = jax.nn.log_softmax(unembed(last_BTD)[:, 0].astype(jnp.float32), axis=-1)
    return _NextScores(logprobs_BT, is_greedy_BT, last_logprobs_BV)


def _chunks(array: jax.Array) -> jax.Array:
    """(B, T, ...) -> (chunks, B, CHUNK, ...), zeros after the end."""
    batch, length, *rest = array.shape
    padded = jnp.pad(array, [(0, 0), (0, -length % CHUNK), *[(0, 0)] * len(rest)])
    return padded.reshape(batch, -1, CHUNK, *rest).swapaxes(0, 1)
