"""Reward models: their training loss, and scores of trained ones (Llama 2, section 3.2.2; RM-1, RM-11).

A score is the raw scalar at the token that ends a response; what is displayed is its sigmoid. How models
are opened: ``reward_checkpoint.py``.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from llama2_jax.config import require
from llama2_jax.data.chat import Message, Template
from llama2_jax.data.preference_batches import encode_response
from llama2_jax.data.preferences import TRACKS
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.generate.decode import check_ids
from llama2_jax.losses.preference import preference_sums
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel, last_token_scores, scores_at
from llama2_jax.shapes import filled, padded_length
from llama2_jax.sharding.placement import check_batch_size, place_rows
from llama2_jax.sharding.processes import on_host, require_same_rows
from llama2_jax.structs import Array, LossSums, Params, PreferenceBatch
from llama2_jax.train.metrics import NonFiniteError
from llama2_jax.train.step import Loss

KINDS = (*TRACKS, "guard")
"""What a reward model is for (RM-2, RM-18)."""

ANY = "any"
"""The kind of a reward model of others, which does not say what it was trained for."""

LENGTH_MULTIPLE = 16


class RewardModel(NamedTuple):
    """A trained reward model; ``score_rows`` uses it."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    template: Template
    model: ScoreModel
    kind: str  # one of KINDS, or ANY
    version: str  # kind, update and checksum of the parameters


class ScoreBatch(NamedTuple):
    """Rows padded on the right."""

    tokens_BT: Array  # int32
    lengths_B: Array  # int32


def preference_loss(model: ScoreModel, *, safety_weight: float = 0.0) -> Loss:
    """Mean over pairs of ``preference_sums``, of ``PreferenceBatch``; all responses in one forward pass."""

    def loss(params: Params, batch: PreferenceBatch) -> LossSums:
        scores_BT = model.apply(
            {"params": params},
            batch.tokens_BT,
            segment_ids_BT=batch.segment_ids_BT,
            positions_BT=batch.positions_BT,
            prefix_ids_BT=batch.prefix_ids_BT,
        )
        last_BA = batch.last_BPC.reshape(len(scores_BT), -1)
        scores_PC = scores_at(scores_BT, last_BA).reshape(-1, 2)
        sums = preference_sums(
            scores_PC,
            batch.margin_BP.reshape(-1),
            batch.safe_BPC.reshape(-1, 2),
            last_BA.reshape(-1, 2)[:, 0] >= 0,
            safety_weight=safety_weight,
        )
        tokens = (batch.segment_ids_BT > 0).sum()
        return sums._replace(totals={**sums.totals, "tokens": tokens, "source_tokens": tokens[None]})

    return loss


def score_rows(reward_model: RewardModel, rows: Sequence[Sequence[int]], *, batch_size: int) -> np.ndarray:
    """Raw score of each row of ids at its last token, float32, in the order given.

    Args:
      rows: whole dialogues, each up to and with the token that ends its last answer; equal ones, of which
        samples of a trained policy have many, are scored once.
      batch_size: rows scored together; rows of like length share a batch.

    Raises:
      ConfigError: an empty row, or one beyond the model's context.
      PromptError: an id outside the vocabulary.
      NonFiniteError: a score that is NaN or infinite.
    """
    model = reward_model.model
    require(batch_size > 0, f"batch_size = {batch_size} must be positive")
    check_batch_size(model.partitioner, batch_size, field="batch_size")
    context = reward_model.config.max_context
    for number, row in enumerate(rows):
        require(
            0 < len(row) <= context,
            f"row {number} has {len(row)} tokens; the {reward_model.kind} reward model scores 1 to {context}",
        )
        check_ids(row, reward_model.config.vocab_size, where=f"row {number}")
    require_same_rows("rows to score", rows)
    distinct = sorted(dict.fromkeys(map(tuple, rows)), key=len)
    scores: dict[tuple[int, ...], np.float32] = {}
    for first in range(0, len(distinct), batch_size):
        chosen = distinct[first : first + batch_size]
        batch = place_rows(model.partitioner, _pad(filled(chosen, batch_size), context))
        found = on_host(_batch_scores(model, reward_model.params, batch))
        scores |= zip(chosen, found, strict=False)
    scores_B = np.array([scores[tuple(row)] for row in rows], np.float32)
    bad = np.flatnonzero(~np.isfinite(scores_B))
    if bad.size:
        raise NonFiniteError(
            f"reward model {reward_model.version} gives {scores_B[bad[0]]} to row {bad[0]} ({bad.size} of "
            f"{len(rows)} rows have no finite score); take an earlier checkpoint of it, or train it again"
        )
    return scores_B


def score_dialogues(
    reward_model: RewardModel, dialogues: Sequence[Sequence[Message]], *, batch_size: int
) -> np.ndarray:
    """``score_rows`` of texts that people wrote; each dialogue ends with the answer to be scored.

    Raises:
      DialogueError, ConfigError: a dialogue that cannot be rendered, or is too long.
    """
    rows = [encode_response(own, reward_model.tokenizer, reward_model.template) for own in dialogues]
    return score_rows(reward_model, rows, batch_size=batch_size)


def _pad(rows: Sequence[Sequence[int]], context: int) -> ScoreBatch:
    length = padded_length(max(map(len, rows)), multiple=LENGTH_MULTIPLE, limit=context)
    tokens_BT = np.zeros((len(rows), length), np.int32)
    for own, row in zip(tokens_BT, rows, strict=True):
        own[: len(row)] = row
    lengths_B = np.array([len(row) for row in rows], np.int32)
    return ScoreBatch(tokens_BT, lengths_B)


@functools.partial(jax.jit, static_argnames=("model",))
def _batch_scores(model: ScoreModel, params: Params, batch: ScoreBatch) -> jax.Array:
    return last_token_scores(model, params, batch.tokens_BT, batch.lengths_B)
