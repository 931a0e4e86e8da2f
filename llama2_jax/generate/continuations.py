"""How likely continuations are after their contexts: multiple choice, judges that answer with a word.

What contexts share is computed once (``data/branches.py``): the examples before the questions of MMLU, the
question before the answers to it.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import require
from llama2_jax.data.branches import Ids
from llama2_jax.data.text_batches import Place, TextBatch, text_batches
from llama2_jax.generate.decode import PromptError, check_ids, check_logprobs
from llama2_jax.generate.sampling import likeliest
from llama2_jax.generate.score import LENGTH_MULTIPLE, check_rows, map_logits
from llama2_jax.losses.next_token import token_logprobs
from llama2_jax.model.transformer import Transformer
from llama2_jax.shapes import padded_length
from llama2_jax.sharding.processes import on_host
from llama2_jax.structs import Params

Pair = tuple[Ids, Ids]
"""Ids of a context and of its continuation."""


class Continuation(NamedTuple):
    """How likely a continuation is after its context."""

    logprob: float  # natural log, the sum over its tokens
    is_greedy: bool  # whether each of its tokens is the likeliest one


class _Asked(NamedTuple):
    """How likely each of these tokens is after the one at a place of its row."""

    places_BC: np.ndarray
    ids_BC: np.ndarray


class _Question(NamedTuple):
    """How likely the tokens of a pair's continuation are, each after the one at a place of a row."""

    pair: int
    row: int
    places: range
    ids: Ids


def score_continuations(
    model: Transformer, params: Params, pairs: Sequence[Pair], *, batch_size: int = 8
) -> list[Continuation]:
    """The results of ``iterate_continuations`` in the order of the pairs."""
    results: dict[int, Continuation] = {}
    for found in iterate_continuations(model, params, pairs, batch_size=batch_size):
        results |= found
    return [results[index] for index in range(len(pairs))]


def iterate_continuations(
    model: Transformer, params: Params, pairs: Sequence[Pair], *, batch_size: int
) -> Iterator[dict[int, Continuation]]:
    """How likely each continuation is after its context: by the number of the pair, a batch at a time.

    Args:
      pairs: token ids of a context and of its continuation, neither empty; all are checked at first.
      batch_size: a batch has at most the tokens of so many of the longest texts.

    Raises:
      PromptError: a context or a continuation is empty, both together are longer than the context and one
        token, or an id is outside the vocabulary.
      LogitsError: a log-probability is not finite.
    """
    require(batch_size > 0, f"batch_size = {batch_size} must be positive")
    pairs_of = _pairs_by_text(model, pairs)
    texts = list(pairs_of)
    check_rows(model, texts, [f"pair {own[0]}" for own in pairs_of.values()])
    # the token that a continuation follows is its text's own: the answer is read there
    limits = [min(len(pairs[index][0]) for index in own) - 1 for own in pairs_of.values()]
    for batch, places in text_batches(
        texts,
        limits if model.serves_prefixes else None,
        batch_size=batch_size,
        row_multiple=model.partitioner.batch_shards,  # whole rows for every device of a mesh
        length_multiple=LENGTH_MULTIPLE,
    ):
        questions = [
            _question(index, pairs[index], place)
            for text, place in places.items()
            for index in pairs_of[texts[text]]
        ]
        asked, where = _asked(questions, len(batch.tokens_BT))
        logprobs_BC, is_greedy_BC = on_host(_scores(model, params, batch, asked))
        found = [logprobs_BC[place] for place in where]
        check_logprobs(found, [question.pair for question in questions])
        yield {
            question.pair: Continuation(
                float(logprobs.sum(dtype=np.float64)), bool(is_greedy_BC[place].all())
            )
            for question, logprobs, place in zip(questions, found, where, strict=True)
        }


def _pairs_by_text(model: Transformer, pairs: Sequence[Pair]) -> dict[tuple[int, ...], list[int]]:
    """Which pairs have which text, all but the last token: the answers A to D to a question have one."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if len(context) == 0 or len(continuation) == 0:
            raise PromptError(
                f"pair {index} has {len(context)} tokens of context and {len(continuation)} of continuation; "
                "give one of each at least: a context can be BOS"
            )
        check_ids(continuation[-1:], model.config.num_ids, where=f"pair {index}")
        found.setdefault((*context, *continuation[:-1]), []).append(index)
    return found


def _question(index: int, pair: Pair, place: Place) -> _Question:
    context, continuation = pair
    first = place.offset + len(context) - 1
    return _Question(index, place.row, range(first, first + len(continuation)), continuation)


def _asked(questions: Sequence[_Question], num_rows: int) -> tuple[_Asked, list[tuple[int, slice]]]:
    """All questions, and where the answers to each stand."""
    ends = [0] * num_rows
    where = []
    for question in questions:
        start, ends[question.row] = ends[question.row], ends[question.row] + len(question.ids)
        where.append((question.row, slice(start, ends[question.row])))
    longest = padded_length(max(ends), multiple=LENGTH_MULTIPLE)
    asked = _Asked(*np.zeros((2, num_rows, longest), np.int32))
    for question, place in zip(questions, where, strict=True):
        asked.places_BC[place], asked.ids_BC[place] = question.places, question.ids
    return asked, where


@functools.partial(jax.jit, static_argnames=("model",))
def _scores(
    model: Transformer, params: Params, batch: TextBatch, asked: _Asked
) -> tuple[jax.Array, jax.Array]:
    """Of each id asked for its log-probability, and whether it is the likeliest; (B, C)."""
    hidden_BTD, _ = model.apply(
        {"params": params},
        batch.tokens_BT,
        segment_ids_BT=batch.segment_ids_BT,
        prefix_ids_BT=batch.prefix_ids_BT,
        positions_BT=batch.positions_BT,
        method="hidden",
    )
    hidden_BCD = jnp.take_along_axis(hidden_BTD, asked.places_BC[..., None], axis=1)

    def scores(logits_BTV: jax.Array, ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_logprobs(logits_BTV, ids_BT), likeliest(logits_BTV) == ids_BT

    return map_logits(model, params, scores, hidden_BCD, asked.ids_BC)
