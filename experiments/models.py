"""Meshes and models as the configs of the programs name them."""

import functools
from collections.abc import Sequence
from typing import Any

from llama2_jax.config import build, require
from llama2_jax.data.preferences import TRACKS
from llama2_jax.data.prompts import Prompt
from llama2_jax.pretrained import LoadedModel, for_decoding, load
from llama2_jax.rlhf.archive import Scorer, prompt_rows
from llama2_jax.rlhf.reward_checkpoint import load_reward_model_for
from llama2_jax.rlhf.reward_model import RewardModel, score_rows
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import check_batch_size
from llama2_jax.sharding.rules import Partitioner, make_partitioner
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.run import TrainConfig


def open_mesh(config: Any, name: str = "mesh") -> Partitioner:
    """The mesh under that name."""
    return make_partitioner(build(MeshConfig, config[name], name=name))


def open_training_mesh(config: Any) -> Partitioner:
    """The mesh of a stage that trains.

    Raises:
      ConfigError: a batch, of training or of the evaluation, that does not divide over it.
    """
    partitioner = open_mesh(config)
    check_batch_size(partitioner, config.data.batch_size, accumulation_steps=config.train.accumulation_steps)
    check_batch_size(partitioner, config.eval.batch_size, field="eval.batch_size")
    return partitioner


def check_training(config: Any, *, num_steps: int) -> None:
    """Raise ``ConfigError`` for numbers under ``optimizer`` and ``train`` that no run can have."""
    build(OptimizerConfig, config.optimizer, name="optimizer")
    build(TrainConfig, {**config.train, "num_steps": num_steps}, name="train")


def check_sequence_length(config: Any, max_context: int) -> None:
    """Raise ``ConfigError`` for sequences that are longer than the model's context."""
    require(
        config.data.sequence_length <= max_context,
        f"data.sequence_length = {config.data.sequence_length} is beyond the model's context {max_context}; "
        "lower config.data.sequence_length, or raise config.model.max_context of a model not trained yet",
    )


def open_chat_model(path: str, config: Any) -> LoadedModel:
    """The model at ``path``, laid out for sampling on the mesh of the config."""
    return for_decoding(load(path, partitioner=open_mesh(config), **config.model))


def check_safety_model(config: Any, prompts: Sequence[Prompt]) -> None:
    """Raise ``ConfigError`` for prompts whose reward is the score of a safety model that is not there."""
    tagged = sum(prompt.is_safety for prompt in prompts)
    require(
        bool(config.safety_rm) or not tagged,
        f"{tagged} of {len(prompts)} prompts are tagged is_safety, and config.safety_rm, whose score is "
        "their reward, is empty; name that model, or take prompts without the tag",
    )


def load_judge(
    config: Any,
    policy: LoadedModel,
    path: str,
    kind: str,
    prompts: Sequence[Prompt],
    *,
    field: str,
    with_params: bool = True,
) -> RewardModel:
    """``load_reward_model_for``, of one with room for these prompts and answers of ``config.sampling``.

    Raises:
      ConfigError: it has less; or what ``load_reward_model_for`` raises.
      DialogueError: a prompt that cannot be rendered, by its id.
    """
    found = load_reward_model_for(policy, path, kind, field=field, with_params=with_params)
    rows = prompt_rows(prompts, policy.require_tokenizer(), policy.template)
    longest, context = max(map(len, rows.values()), default=0), found.config.max_context
    max_new_tokens = config.sampling.max_new_tokens
    require(
        min(longest + max_new_tokens, policy.config.max_context) <= context,
        f"{field} = {path} scores up to {context} tokens; the longest prompt has {longest}, and "
        f"config.sampling.max_new_tokens = {max_new_tokens} come to it: lower that or leave out long prompts",
    )
    return found


def load_judges(
    config: Any, policy: LoadedModel, prompts: Sequence[Prompt], *, with_params: bool = True
) -> dict[str, RewardModel]:
    """The reward models of the config, refused unless they read what the policy writes."""
    return {
        track: load_judge(
            config, policy, path, track, prompts, field=f"config.{track}_rm", with_params=with_params
        )
        for track in TRACKS
        if (path := config[f"{track}_rm"])
    }


def load_scorers(config: Any, policy: LoadedModel, prompts: Sequence[Prompt]) -> dict[str, Scorer]:
    """``load_judges`` as the archive sees them."""
    batch_size = config.reward.batch_size
    return {
        track: Scorer(model.version, functools.partial(score_rows, model, batch_size=batch_size))
        for track, model in load_judges(config, policy, prompts).items()
    }
