"""Under ``jax_numpy_dtype_promotion=strict`` the code asks for no promotion of its own.

An update is refused there because of optax (a decay to the power of an int32 count), and the implementation
``xla`` in bfloat16 because of ``jax.nn``.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.generate.decode import generate, stream
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.rollouts import response_logprobs, response_values, sample_rollout
from llama2_jax.rlhf.update import make_experience, policy_loss, value_loss
from llama2_jax.structs import Rollout
from llama2_jax.train.optimizer import SCHEDULES, OptimizerConfig, _scale_by_schedule
from llama2_jax.train.step import next_token_loss
from tests.model import tiny

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10]]


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"):
        yield


def test_generation_and_scoring() -> None:
    sampling = SamplingConfig(max_new_tokens=4, temperature=0.7, top_p=0.9, top_k=8)
    made = generate(tiny.MODEL, tiny.params(), PROMPTS, sampling, stop_ids=(3,))
    first = list(stream(tiny.MODEL, tiny.params(), PROMPTS[0], sampling, stop_ids=(3,)))
    assert first == made.tokens_BC[0, : made.lengths_B[0]].tolist()
    assert [len(row) for row in score(tiny.MODEL, tiny.params(), PROMPTS)] == [2, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("impl", ["reference", "chunked", "tpu_interpret"])
def test_loss_and_gradient(impl: str, dtype: str) -> None:
    model = tiny.with_config(attention_impl=impl, compute_dtype=dtype)
    batch = tiny.pack([[tiny.tokens(9), tiny.tokens(6)], [tiny.tokens(14)]], 16)
    loss = next_token_loss(model, loss_chunk=8)
    gradient = jax.grad(lambda params: loss(params, batch).loss_sum)(tiny.params())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(("placement", "estimator"), [("reward", "k1"), ("loss", "k2")])
def test_losses_of_ppo(placement: str, estimator: str) -> None:
    ppo = PPOConfig(
        prompt_length=5, response_length=6, batch_size=2, mini_batch_size=2, kl_placement=placement,
        kl_estimator=estimator,
    )  # fmt: skip
    params, value_model = tiny.params(), ScoreModel(tiny.CONFIG)
    value_params = score_params_from_chat(params, key=None)
    rollout = Rollout(
        *map(jnp.asarray, sample_rollout(tiny.MODEL, params, PROMPTS, ppo, stop_ids=(3,), seeds=(0, 1)))
    )
    logprobs_BC = response_logprobs(tiny.MODEL, params, rollout, temperature=ppo.temperature)
    values = response_values(value_model, value_params, rollout)
    scores_B = jnp.array([1.0, -1.0])
    experience, metrics = make_experience(rollout, scores_B, logprobs_BC, logprobs_BC, values, config=ppo)
    assert metrics["kl_per_token"] == 0
    policy = jax.grad(lambda params: policy_loss(tiny.MODEL, ppo)(params, experience).loss_sum)
    value = jax.grad(lambda params: value_loss(value_model, ppo)(params, experience).loss_sum)
    for gradient in (policy(params), value(value_params)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates(schedule: str) -> None:
    scale = _scale_by_schedule(OptimizerConfig(0.5, schedule=schedule, warmup_steps=4), 10)
    state = scale.init({})._replace(count=jnp.int32(2))
    updates, _ = scale.update({"x": jnp.float32(1.0)}, state)
    assert updates["x"] == -0.25
