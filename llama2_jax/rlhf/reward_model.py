"""Reward models: their training loss, and trained ones at rest (Llama 2, section 3.2.2; RM-1, RM-11).

A score is the raw scalar at the token that ends a response; what is displayed is its sigmoid. Scores of
models with different templates or tokenizers than the text's mean nothing, so both are stored with the
parameters and checked (``check_same_text``).
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import ConfigError, build, require
from llama2_jax.data.chat import Message, Template, get_template
from llama2_jax.data.preference_batches import encode_response
from llama2_jax.data.preferences import TRACKS
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.losses.preference import preference_sums
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel, last_token_scores
from llama2_jax.pretrained import REWARD_MODEL, LoadedModel, checkpoint_meta, native_tokenizer
from llama2_jax.shapes import padded_length
from llama2_jax.sharding.placement import check_batch_size, place_rows
from llama2_jax.sharding.processes import on_host
from llama2_jax.sharding.rules import Partitioner, single_device
from llama2_jax.structs import Array, LossSums, Params, PreferenceBatch
from llama2_jax.train.checkpoint import read_meta, read_params
from llama2_jax.train.metrics import NonFiniteError
from llama2_jax.train.step import Loss

KINDS = (*TRACKS, "guard")
"""What a reward model is for (RM-2, RM-18)."""

LENGTH_MULTIPLE = 16


class RewardModel(NamedTuple):
    """A trained reward model; ``score_rows`` uses it."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    template: Template
    model: ScoreModel
    kind: str  # one of KINDS
    version: str  # the same only for the same training up to the same update


class ScoreBatch(NamedTuple):
    """Rows padded on the right."""

    tokens_BT: Array  # int32
    lengths_B: Array  # int32


def preference_loss(model: ScoreModel, *, safety_weight: float = 0.0) -> Loss:
    """Mean over pairs of ``preference_sums``, of ``PreferenceBatch``; both responses in one forward pass."""

    def loss(params: Params, batch: PreferenceBatch) -> LossSums:
        pairs, responses, length = batch.tokens_BCT.shape
        scores_B = last_token_scores(
            model,
            params,
            batch.tokens_BCT.reshape(pairs * responses, length),
            batch.lengths_BC.reshape(pairs * responses),
        )
        sums = preference_sums(
            scores_B.reshape(pairs, responses),
            batch.margin_B,
            batch.safe_BC,
            batch.lengths_BC[:, 0] > 0,
            safety_weight=safety_weight,
        )
        tokens = batch.lengths_BC.sum()
        return sums._replace(totals={**sums.totals, "tokens": tokens, "source_tokens": tokens[None]})

    return loss


def reward_model_meta(
    config: ModelConfig, tokenizer: Tokenizer, template: str, *, kind: str, margin: str, data: Sequence[str]
) -> dict[str, Any]:
    """What the checkpoint of a reward model says about itself.

    Args:
      margin: name of the margins it was trained with.
      data: hashes of the files it was trained on.
    """
    return {
        **checkpoint_meta(config, tokenizer, template),
        "kind": REWARD_MODEL,
        "reward": kind,
        "margin": margin,
        "data": list(data),
    }


def load_reward_model(
    path: str | Path,
    *,
    compute_dtype: str = "float32",
    attention_impl: str = "auto",
    partitioner: Partitioner | None = None,
) -> RewardModel:
    """Open the newest checkpoint of a workdir of ``experiments/reward_model.py``.

    Raises:
      ConfigError: the checkpoint is of another kind, or its tokenizer was changed.
      CheckpointError, FormatError: nothing there, or nothing readable.
    """
    path, partitioner = Path(path), partitioner or single_device()
    found = checkpoint_kind(path)
    step, meta = read_meta(path) if found == "native" else (0, {})
    require(
        meta.get("kind") == REWARD_MODEL,
        f"{path} is no reward model but a language model ({found}); train one from it: "
        "python -m experiments.reward_model",
    )
    tokenizer = native_tokenizer(path, step, meta)
    if tokenizer is None:
        raise ConfigError(f"{path / 'tokenizer'} is missing; restore it: scores depend on the token ids")
    config = dataclasses.replace(
        build(ModelConfig, meta["model"], name="model"),
        compute_dtype=compute_dtype,
        remat_policy="none",
        attention_impl=attention_impl,
    )
    model = ScoreModel(config, partitioner)
    return RewardModel(
        config,
        read_params(path, abstract_score_params(model), step),
        tokenizer,
        get_template(meta["template"]),
        model,
        meta["reward"],
        _version(step, meta),
    )


def load_reward_model_for(policy: LoadedModel, path: str | Path, kind: str, *, field: str) -> RewardModel:
    """``load_reward_model`` of one that scores what ``policy`` writes, on its mesh, computed as it is.

    Args:
      kind: what it must have been trained for, one of ``KINDS``; a guard may be of any kind.
      field: of the config that names ``path``, for the message.

    Raises:
      ConfigError: it was trained for something else, or with another tokenizer or template; and what
        ``load_reward_model`` raises.
    """
    found = load_reward_model(
        path,
        compute_dtype=policy.config.compute_dtype,
        attention_impl=policy.config.attention_impl,
        partitioner=policy.model.partitioner,
    )
    require(
        kind in ("guard", found.kind),
        f"{field} = {path} is a {found.kind} reward model; name one trained for {kind}",
    )
    check_same_text(found, policy.require_tokenizer(), policy.template)
    return found


def abstract_score_params(model: ScoreModel) -> Params:
    """Shapes, dtypes and shardings of the parameters, without memory."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    return (model.partitioner or single_device()).abstract(shapes)


def _version(step: int, meta: dict[str, Any]) -> str:
    made_from = json.dumps({**meta, "step": step}, sort_keys=True)
    return f"{meta['reward']}-{step}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"


def check_same_text(reward_model: RewardModel, tokenizer: Tokenizer, template: Template) -> None:
    """Make sure that a policy's tokens mean the same to the reward model.

    Raises:
      ConfigError: another tokenizer or template.
    """
    own, other = reward_model.tokenizer.content_hash, tokenizer.content_hash
    require(
        own == other,
        f"the {reward_model.kind} reward model was trained with tokenizer {own[:12]}, the policy has "
        f"{other[:12]}; train a reward model from a checkpoint with the policy's tokenizer",
    )
    require(
        reward_model.template.name == template.name,
        f"the {reward_model.kind} reward model was trained with template {reward_model.template.name!r}, "
        f"the policy uses {template.name!r}; train a reward model with the policy's template",
    )


def score_rows(reward_model: RewardModel, rows: Sequence[Sequence[int]], *, batch_size: int) -> np.ndarray:
    """Raw score of each row of ids at its last token, float32, in the order given.

    Args:
      rows: whole dialogues, each up to and with the token that ends its last answer; equal ones, of which
        samples of a trained policy have many, are scored once.
      batch_size: rows scored together; rows of like length share a batch.

    Raises:
      ConfigError: an empty row, or one beyond the model's context.
      NonFiniteError: a score that is NaN or infinite.
    """
    model = reward_model.model
    partitioner = model.partitioner or single_device()
    require(batch_size > 0, f"batch_size = {batch_size} must be positive")
    check_batch_size(partitioner, batch_size, field="batch_size")
    context = reward_model.config.max_context
    for number, row in enumerate(rows):
        require(
            0 < len(row) <= context,
            f"row {number} has {len(row)} tokens; the {reward_model.kind} reward model scores 1 to {context}",
        )
    distinct = sorted(dict.fromkeys(map(tuple, rows)), key=len)
    scores: dict[tuple[int, ...], np.float32] = {}
    for first in range(0, len(distinct), batch_size):
        chosen = distinct[first : first + batch_size]
        # the last batch is filled with copies of its last row: one compiled shape per length
        batch = place_rows(partitioner, _pad(chosen + chosen[-1:] * (batch_size - len(chosen)), context))
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
