"""PPO on models of thousands of parameters, with rules instead of reward models."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.ppo_iteration import Learner, PromptBatch, ScoreFunction, Scores, Stopwatch
from llama2_jax.rlhf.rollouts import draw_seeds, response_mask, response_tokens
from llama2_jax.sharding.rules import Partitioner, single_device
from llama2_jax.structs import Params, PPOState, Rollout
from llama2_jax.train.optimizer import OptimizerConfig

MODEL = ModelConfig(
    vocab_size=64,
    model_width=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    feed_forward_width=48,
    max_context=32,
)
EOS = 2


def optimizer(learning_rate: float, **changes: Any) -> OptimizerConfig:
    return OptimizerConfig(learning_rate, **{"schedule": "constant", "warmup_steps": 0, **changes})


def make_learner(
    ppo: PPOConfig,
    *,
    model: ModelConfig = MODEL,
    params: Params = None,
    learning_rate: float = 1e-3,
    value_learning_rate: float | None = None,
    partitioner: Partitioner | None = None,
    sampler_partitioner: Partitioner | None = None,
    stop_ids: tuple[int, ...] = (),
    num_iterations: int = 100,
    **changes: Any,
) -> tuple[Learner, PPOState]:
    """A learner and its first state; ``changes`` are of the optimiser."""
    partitioner = partitioner or single_device()
    policy_model, value_model = Transformer(model, partitioner), ScoreModel(model, partitioner)
    params = init_params(policy_model, jax.random.key(0)) if params is None else params
    learner = Learner(
        policy_model,
        value_model,
        params,
        ppo,
        policy_optimizer=optimizer(learning_rate, **changes),
        value_optimizer=optimizer(value_learning_rate or learning_rate, **changes),
        partitioner=partitioner,
        sampler_partitioner=sampler_partitioner or partitioner,
        stop_ids=stop_ids,
        num_iterations=num_iterations,
    )
    return learner, start(learner)


def start(learner: Learner) -> PPOState:
    """A first state for a learner that is compiled already."""
    reference = learner._reference
    return learner.init_state(reference, score_params_from_chat(reference, key=None))


def prompt_batch(size: int, *, iteration: int, longest: int = 4) -> PromptBatch:
    draw = np.random.default_rng((7, iteration))
    tokens = [draw.integers(3, 60, draw.integers(1, longest + 1)).tolist() for _ in range(size)]
    seeds = draw_seeds(size, seed=0, iteration=iteration)
    return PromptBatch([str(i) for i in range(size)], tokens, np.zeros(size, bool), seeds)


def rule(reward: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> ScoreFunction:
    """Scores from (tokens_BC, mask_BC)."""

    def score(rollout: Rollout, batch: PromptBatch, stopwatch: Stopwatch) -> Scores:
        scores_B = reward(np.asarray(response_tokens(rollout)), np.asarray(response_mask(rollout)))
        return Scores(scores_B, {"rule": scores_B})

    return score


def share_of_sevens(tokens_BC: np.ndarray, mask_BC: np.ndarray) -> np.ndarray:
    return ((tokens_BC == 7) & mask_BC).sum(axis=1) / mask_BC.sum(axis=1)
