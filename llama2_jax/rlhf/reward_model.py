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
from llama2_jax.data.text_batches import Place, TextBatch, text_batches
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.generate.decode import check_ids
from llama2_jax.losses.preference import preference_sums
from llama2_jax.model.attention import serves_prefixes
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel, scores_at
from llama2_jax.shapes import padded_length
from llama2_jax.sharding.placement import check_batch_size, place_rows
from llama2_jax.sharding.processes import on_host, require_same_rows
from llama2_jax.structs import LossSums, Params, PreferenceBatch
from llama2_jax.train.metrics import NonFiniteError
from llama2_jax.train.step import Loss

KINDS = (*TRACKS, "guard")
"""What a reward model is for (RM-2, RM-18)."""

ANY = "any"
"""The kind of a reward model of others, which does not say what it was trained for."""

LENGTH_MULTIPLE = 16
TEXTS_MULTIPLE = 4  # of the texts of a row, to compile few shapes


class RewardModel(NamedTuple):
    """A trained reward model; ``score_rows`` uses it."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    template: Template
    model: ScoreModel
    kind: str  # one of KINDS, or ANY
    version: str  # kind, update and checksum of the parameters


def preference_loss(model: ScoreModel, *, safety_weight: float = 0.0) -> Loss:
    """Mean over pairs of ``preference_sums``, of ``PreferenceBatch``; all responses in one forward pass."""

    def loss(params: Params, batch: PreferenceBatch) -> LossSums:
        scores_BT = _token_scores(model, params, batch)
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


def _token_scores(model: ScoreModel, params: Params, rows: PreferenceBatch | TextBatch) -> jax.Array:
    """Scores of all tokens, (B, T)."""
    return model.apply(
        {"params": params},
        rows.tokens_BT,
        segment_ids_BT=rows.segment_ids_BT,
        positions_BT=rows.positions_BT,
        prefix_ids_BT=rows.prefix_ids_BT,
    )


def score_rows(reward_model: RewardModel, rows: Sequence[Sequence[int]], *, batch_size: int) -> np.ndarray:
    """Raw score of each row of ids at its last token, float32, in the order given.

    Args:
      rows: whole dialogues, each up to and with the token that ends its last answer; equal ones, of which
        samples of a trained policy have many, are scored once.
      batch_size: rows scored together, see ``text_batches``: what dialogues begin with alike, such as the
        prompt of several samples, is computed once.

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
            f"row {number} has {len(row)} tokens; the {reward_model.kind} reward model scores 1 to "
            f"{context}: leave it out",
        )
        check_ids(row, reward_model.config.vocab_size, where=f"row {number}")
    require_same_rows("rows to score", rows)
    texts = list(dict.fromkeys(map(tuple, rows)))
    lasts = [_last(text, model.pad_id) for text in texts]
    scores: dict[tuple[int, ...], np.float32] = {}
    for batch, places in text_batches(
        texts,
        [max(last, 0) for last in lasts] if serves_prefixes(model.config, model.partitioner) else None,
        batch_size=batch_size,
        row_multiple=model.partitioner.batch_shards,
        length_multiple=LENGTH_MULTIPLE,
    ):
        last_BA, where = _ends(lasts, places, len(batch.tokens_BT))
        placed = place_rows(model.partitioner, batch)
        found_BA = on_host(_text_scores(model, reward_model.params, placed, last_BA))
        scores |= {texts[text]: found_BA[at] for text, at in where.items()}
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


def _last(text: Sequence[int], pad_id: int) -> int:
    """Where the answer ends: at the last token, or the last that is not this one (HFW-5); -1 if none is."""
    counts = np.flatnonzero(np.asarray(text) != pad_id)
    return int(counts[-1]) if counts.size else -1


def _ends(
    lasts: Sequence[int], places: dict[int, Place], num_rows: int
) -> tuple[np.ndarray, dict[int, tuple[int, int]]]:
    """Where in their rows texts end, (B, A), -1 where none does, and where in that array each text is."""
    counts = [0] * num_rows
    where = {}
    for text, place in places.items():
        where[text] = place.row, counts[place.row]
        counts[place.row] += 1
    last_BA = np.full((num_rows, padded_length(max(counts), multiple=TEXTS_MULTIPLE)), -1, np.int32)
    for text, place in places.items():
        if lasts[text] >= 0:
            last_BA[where[text]] = place.offset + lasts[text]
    return last_BA, where


@functools.partial(jax.jit, static_argnames=("model",))
def _text_scores(model: ScoreModel, params: Params, batch: TextBatch, last_BA: np.ndarray) -> jax.Array:
    return scores_at(_token_scores(model, params, batch), last_BA)
