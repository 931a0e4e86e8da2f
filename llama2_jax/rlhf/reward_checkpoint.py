"""Reward models at rest: workdirs of ours, and Hugging Face folders in and out (RM-1, RM-13, HFW-5).

Scores of models with different templates or tokenizers than the text's mean nothing, so both are stored
with the parameters and checked (``check_same_text``).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import ConfigError, build, require
from llama2_jax.data.chat import Template, get_template
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.interop.huggingface_reward import (
    is_huggingface_reward,
    load_huggingface_reward,
    save_huggingface_reward,
)
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel
from llama2_jax.pretrained import (
    REWARD_MODEL,
    LoadedModel,
    checkpoint_meta,
    native_tokenizer,
    place_params,
    require_same_range,
)
from llama2_jax.rlhf.doctor import checksum
from llama2_jax.rlhf.reward_model import ANY, KINDS, RewardModel
from llama2_jax.sharding.rules import Partitioner, single_device
from llama2_jax.structs import Params
from llama2_jax.train.checkpoint import read_meta, read_params


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


def is_reward_model(path: str | Path) -> bool:
    """Whether ``path`` is a reward model, ours or of Hugging Face, and not a language model.

    Raises:
      FormatError, CheckpointError: nothing there, or nothing readable.
    """
    kind = checkpoint_kind(path)
    if kind == "huggingface":
        return is_huggingface_reward(path)
    return kind == "native" and read_meta(Path(path))[1].get("kind") == REWARD_MODEL


def check_template(path: str | Path, template: str | None) -> None:
    """Raise ``ConfigError`` for a template that a reward model of ours would not use: it has its own."""
    require(
        template is None or checkpoint_kind(path) != "native",
        f"{path} has the template that it was trained with, so {template} cannot be chosen; leave it out",
    )


def load_reward_model(
    path: str | Path,
    *,
    dtype: str | None = "float32",
    compute_dtype: str = "float32",
    attention_impl: str = "auto",
    partitioner: Partitioner | None = None,
    template: str | None = None,
    with_params: bool = True,
) -> RewardModel:
    """Open the newest checkpoint of a workdir of ``experiments/reward_model.py``, or a Hugging Face folder.

    Args:
      dtype: of the parameters of a Hugging Face folder in memory; None keeps that of the file, bitwise. Those
        of a workdir stay as they are.
      template: of a Hugging Face folder whose own is unknown or not wanted; a workdir has its own.
      with_params: False leaves them in their files, as ``pretrained.load``; ``version`` is then that of none.

    Raises:
      ConfigError: the checkpoint is of another kind, or its tokenizer is missing or was changed; a template
        for a workdir.
      CheckpointError, FormatError: nothing there, or nothing readable.
    """
    path, partitioner = Path(path), partitioner or single_device()
    check_template(path, template)
    require(
        is_reward_model(path),
        f"{path} is no reward model but a language model ({checkpoint_kind(path)}); train one from it: "
        "python -m experiments.reward_model",
    )
    computed = {"compute_dtype": compute_dtype, "remat_policy": "none", "attention_impl": attention_impl}
    if checkpoint_kind(path) == "huggingface":
        return _load_huggingface(path, computed, partitioner, template, dtype, with_params=with_params)
    return _load_native(path, computed, partitioner, with_params=with_params)


def _load_native(
    path: Path, computed: dict[str, Any], partitioner: Partitioner, *, with_params: bool
) -> RewardModel:
    step, meta = read_meta(path)
    tokenizer = native_tokenizer(path, step, meta)
    if tokenizer is None:
        raise ConfigError(f"{path / 'tokenizer'} is missing; restore it: scores depend on the token ids")
    config = dataclasses.replace(build(ModelConfig, meta["model"], name="model"), **computed)
    model = ScoreModel(config, partitioner)
    params = read_params(path, abstract_score_params(model), step) if with_params else None
    template = get_template(meta["template"])
    version = f"{meta['reward']}-{step}-{checksum(params):08x}"
    return RewardModel(config, params, tokenizer, template, model, meta["reward"], version)


def _load_huggingface(
    path: Path,
    computed: dict[str, Any],
    partitioner: Partitioner,
    template: str | None,
    dtype: str | None,
    *,
    with_params: bool,
) -> RewardModel:
    found = load_huggingface_reward(path, template=template)
    if found.model.tokenizer is None:
        raise ConfigError(
            f"{path} has no tokenizer; put its tokenizer.model or tokenizer.json beside the weights"
        )
    config = dataclasses.replace(found.model.config, **computed)
    params = place_params(partitioner, found.model.params, dtype) if with_params else None
    kind = found.label if found.label in KINDS else ANY
    return RewardModel(
        config,
        params,
        found.model.tokenizer,
        get_template(found.model.template),
        ScoreModel(config, partitioner, found.pad_id),
        kind,
        f"{kind}-{checksum(params):08x}",
    )


def save_reward_model(folder: str | Path, reward_model: RewardModel, *, dtype: str | None = None) -> None:
    """Write a Hugging Face folder for ``transformers`` and ``load_reward_model``; its label is the kind.

    Args:
      dtype: of the weights; None keeps them bitwise.

    Raises:
      FormatError: the folder is not empty.
      ConfigError: a value is beyond the range of ``dtype``.
    """
    params = jax.device_get(reward_model.params)
    if dtype is not None:
        params = jax.tree_util.tree_map_with_path(functools.partial(_cast, dtype=dtype), params)
    save_huggingface_reward(
        folder,
        reward_model.config,
        params,
        tokenizer=reward_model.tokenizer,
        template=reward_model.template.name,
        label=reward_model.kind,
        pad_id=reward_model.model.pad_id,
    )


def _cast(path: Any, leaf: np.ndarray, *, dtype: str) -> np.ndarray:
    cast = leaf.astype(dtype)
    require_same_range(path, leaf, cast)
    return cast


def load_reward_model_for(
    policy: LoadedModel, path: str | Path, kind: str, *, field: str, with_params: bool = True
) -> RewardModel:
    """``load_reward_model`` of one that scores what ``policy`` writes, on its mesh, computed as it is.

    Args:
      kind: what it must have been trained for, one of ``KINDS``; a guard may be of any kind, and a model of
        others may be taken for any.
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
        with_params=with_params,
    )
    require(
        kind == "guard" or found.kind in (kind, ANY),
        f"{field} = {path} is a {found.kind} reward model; name one trained for {kind}",
    )
    check_same_text(found, policy.require_tokenizer(), policy.template)
    return found


def abstract_score_params(model: ScoreModel) -> Params:
    """Shapes, dtypes and shardings of the parameters, without memory."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    return model.partitioner.abstract(shapes)


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
