"""One iteration of PPO, in the order of the paper: answer, score, compare with the reference, learn.

``Learner`` holds what stays the same over a run: models, compiled functions, the frozen reference.
What changes is ``PPOState``, which goes in and comes out. Differs from the paper where it is silent:
D43 to D49, see ``ppo_config.py``.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.generate.sampler import decoding_params, make_sampler
from llama2_jax.model.heads import ScoreModel, last_token_scores
from llama2_jax.model.transformer import Transformer
from llama2_jax.rlhf import doctor
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.rollouts import map_rows, response_logprobs, response_values, row_lengths, sample_rollout
from llama2_jax.rlhf.update import make_epoch, make_experience, policy_loss, value_loss
from llama2_jax.sharding.placement import place_leaf, place_rows
from llama2_jax.sharding.processes import on_host
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Experience, Params, PPOState, ResponseValues, Rollout, TrainState
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer, with_num_steps
from llama2_jax.train.step import abstract_state, compile_step, state_from_params

NORMS = ("grad_norm", "param_norm")  # metrics of an update; the others are means over tokens


class PromptBatch(NamedTuple):
    """Prompts to answer, one row each."""

    prompt_ids: Sequence[str]
    tokens: Sequence[Sequence[int]]
    is_safety_B: np.ndarray  # bool, the tag (PPO-4)
    seeds: Sequence[int]


class Scores(NamedTuple):
    """What reward models say about the answers, raw."""

    combined_B: np.ndarray  # what is maximised
    by_model: dict[str, np.ndarray]


class Sampled(NamedTuple):
    """Answers with their scores."""

    rollout: Rollout  # on the devices
    scores: Scores


class IterationResult(NamedTuple):
    """What one iteration leaves."""

    state: PPOState
    sampled: Sampled
    metrics: dict[str, float]


class Stopwatch:
    """Seconds of named phases, waiting for the devices at the end of each."""

    def __init__(self) -> None:
        self.secs: dict[str, float] = {}

    def run(self, phase: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call ``function`` and add its time to ``phase``."""
        start = time.perf_counter()
        result = jax.block_until_ready(function(*arguments, **named))
        self.secs[phase] = self.secs.get(phase, 0.0) + time.perf_counter() - start
        return result


ScoreFunction = Callable[[Rollout, PromptBatch, Stopwatch], Scores]


class Learner:
    """Models and compiled functions of a run.

    Args:
      reference: parameters of the frozen policy; ``init_state`` copies what is trained, so no update
        reaches them.
      sampler_partitioner: where the weights lie while answers are made (PPO-8).
    """

    def __init__(
        self,
        policy_model: Transformer,
        value_model: ScoreModel,
        reference: Params,
        config: PPOConfig,
        *,
        policy_optimizer: OptimizerConfig,
        value_optimizer: OptimizerConfig,
        partitioner: Partitioner,
        sampler_partitioner: Partitioner,
        stop_ids: Sequence[int],
        num_iterations: int,
    ) -> None:
        self.config, self.partitioner = config, partitioner
        self._reference = reference
        self.reference_checksum = doctor.checksum(self._reference)
        self._stop_ids = tuple(stop_ids)
        self._tolerance = doctor.TOLERANCES[policy_model.config.compute_dtype]
        self._sampler = make_sampler(policy_model, sampler_partitioner)
        self._sampler_weights_checksum = jax.jit(
            lambda params: doctor.checksum_bits(decoding_params(policy_model, params))
        )
        self._logprobs = jax.jit(functools.partial(_logprobs, policy_model, config))
        self._values = jax.jit(functools.partial(_values, value_model, config))
        self._experience = jax.jit(functools.partial(make_experience, config=config))
        self._num_steps = num_iterations * config.num_updates
        self._optimizer_configs = (policy_optimizer, value_optimizer)
        self._optimizers = [
            make_optimizer(optimizer, num_steps=self._num_steps) for optimizer in self._optimizer_configs
        ]
        models: tuple[Transformer | ScoreModel, ...] = (policy_model, value_model)
        self.abstract_states = [
            abstract_state(model, optimizer, partitioner)
            for model, optimizer in zip(models, self._optimizers, strict=True)
        ]
        losses = (policy_loss(policy_model, config), value_loss(value_model, config))
        self._policy_epoch, self._value_epoch = (
            compile_step(make_epoch(loss, optimizer, config), abstract, partitioner)
            for loss, optimizer, abstract in zip(losses, self._optimizers, self.abstract_states, strict=True)
        )

    def init_state(self, policy: Params, value: Params) -> PPOState:
        """Before the first iteration; the parameters are copied."""
        policy_state, value_state = (
            state_from_params(params, optimizer, self.partitioner)
            for params, optimizer in zip((policy, value), self._optimizers, strict=True)
        )
        return PPOState(0, policy_state, value_state)

    def restored_state(
        self, iteration: int, policy: Params, policy_opt_state: Any, value: Params, value_opt_state: Any
    ) -> PPOState:
        """After ``iteration`` iterations, from what was stored: with the schedules of this run."""
        step = np.array(iteration * self.config.num_updates, np.int32)
        stored = ((policy, policy_opt_state), (value, value_opt_state))
        states = (
            TrainState(
                place_leaf(step, self.partitioner.replicated),
                params,
                with_num_steps(opt_state, optimizer, num_steps=self._num_steps),
            )
            for (params, opt_state), optimizer in zip(stored, self._optimizer_configs, strict=True)
        )
        return PPOState(iteration, *states)

    def sample(
        self, params: Params, batch: PromptBatch, score: ScoreFunction, stopwatch: Stopwatch
    ) -> Sampled:
        """Answers of the policy with ``params``, and their scores.

        Raises:
          DoctorError: the sampler's weights are others, or a score is not finite.
        """
        weights = stopwatch.run("reshard", self._sampler.weights, params)
        stopwatch.run("doctor", self._check_sampler_weights, weights, params)
        sample = functools.partial(sample_rollout, stop_ids=self._stop_ids, seeds=batch.seeds)
        rollout = stopwatch.run("generate", sample, self._sampler.model, weights, batch.tokens, self.config)
        del weights  # their memory is for the rest of the iteration
        rollout = place_rows(self.partitioner, rollout)
        scores = score(rollout, batch, stopwatch)
        for name, scores_B in {**scores.by_model, "the combined reward": scores.combined_B}.items():
            doctor.check_scores(name, scores_B, batch.prompt_ids)
        return Sampled(rollout, scores)

    def iterate(self, state: PPOState, batch: PromptBatch, score: ScoreFunction) -> IterationResult:
        """One iteration; ``state`` is donated.

        Args:
          score: called once with the answers to ``batch``, row by row, and a stopwatch for phases of its own
            (``secs/PHASE`` of the metrics). ``combined_B`` of its result is maximised, a finite number for
            each answer, on any scale where it is whitened (D46); the means of ``by_model`` are reported as
            ``ppo/score_NAME``. Reward models, a rule or a verifier (docs/alignment.md) will do.

        Raises:
          DoctorError: a check failed, and the new state is lost: nothing of this batch counts.
        """
        start, stopwatch = time.perf_counter(), Stopwatch()
        sampled = self.sample(state.policy.params, batch, score, stopwatch)
        experience, found = self._judge(state, sampled, stopwatch)
        policy, learned = stopwatch.run("update_policy", self._policy_epoch, state.policy, experience)
        value, value_learned = stopwatch.run("update_value", self._value_epoch, state.value, experience)
        learned, value_learned = on_host((learned, value_learned))
        off_policy_tokens = learned.pop("off_policy_tokens")
        doctor.check_first_mini_batch(int(off_policy_tokens[0]), tolerance=self._tolerance)
        stopwatch.run("doctor", self._check_reference)
        metrics = found | _means(learned) | {f"value_{k}": v for k, v in _means(value_learned).items()}
        metrics |= {f"score_{name}": float(s.mean()) for name, s in sampled.scores.by_model.items()}
        tokens = float(np.sum(on_host(sampled.rollout.response_lengths_B)))
        record = {f"ppo/{name}": value for name, value in metrics.items()}
        record["rate/generated_tokens_per_sec"] = tokens / stopwatch.secs["generate"]
        record |= {f"secs/{phase}": secs for phase, secs in stopwatch.secs.items()}
        record["secs/iteration"] = time.perf_counter() - start
        return IterationResult(PPOState(state.iteration + 1, policy, value), sampled, record)

    def _judge(
        self, state: PPOState, sampled: Sampled, stopwatch: Stopwatch
    ) -> tuple[Experience, dict[str, float]]:
        """What policy, reference and value model say about the answers, checked, as experience."""
        rollout = sampled.rollout
        # one compiled function for both: equal weights give equal bits
        behaviour_BC = stopwatch.run("policy", self._logprobs, state.policy.params, rollout)
        reference_BC = stopwatch.run("reference", self._logprobs, self._reference, rollout)
        values = stopwatch.run("value", self._values, state.value.params, rollout)
        combined_B = jnp.asarray(sampled.scores.combined_B, jnp.float32)
        experience, found = stopwatch.run(
            "advantages", self._experience, rollout, combined_B, behaviour_BC, reference_BC, values
        )
        metrics = {name: float(value) for name, value in on_host(found).items()}
        if state.iteration == 0:
            doctor.check_start(metrics["kl_largest"])
        doctor.check_sampler_logprobs(metrics["sampler_probability_error"])
        return experience, metrics

    def _check_sampler_weights(self, weights: Params, params: Params) -> None:
        doctor.check_sampler_weights(doctor.checksum(weights), int(self._sampler_weights_checksum(params)))

    def _check_reference(self) -> None:
        doctor.check_reference(doctor.checksum(self._reference), self.reference_checksum)


def reward_model_scores(model: ScoreModel, params: Params, rollout: Rollout, *, parts: int) -> np.ndarray:
    """Raw score of each answer with its prompt, at its last token, float32 (B,), on the host."""
    return on_host(_row_scores(model, params, rollout, parts=parts))


@functools.partial(jax.jit, static_argnames=("model", "parts"))
def _row_scores(model: ScoreModel, params: Params, rollout: Rollout, *, parts: int) -> jax.Array:
    def scores(rows: Rollout) -> jax.Array:
        return last_token_scores(model, params, rows.tokens_BT, row_lengths(rows))

    return map_rows(scores, rollout, parts=parts)


def _logprobs(model: Transformer, config: PPOConfig, params: Params, rollout: Rollout) -> jax.Array:
    def logprobs(rows: Rollout) -> jax.Array:
        return response_logprobs(model, params, rows, temperature=config.temperature)

    return map_rows(logprobs, rollout, parts=config.forward_parts)


def _values(model: ScoreModel, config: PPOConfig, params: Params, rollout: Rollout) -> ResponseValues:
    return map_rows(functools.partial(response_values, model, params), rollout, parts=config.forward_parts)


def _means(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Over the tokens of all mini-batches, which have different numbers of them; norms over the updates."""
    tokens = metrics["tokens"].astype(np.float64)
    return {
        name: float(values.mean() if name in NORMS else np.average(values, weights=tokens))
        for name, values in metrics.items()
        if name != "tokens"
    }
