"""PPO: answers sampled, scored by reward models, and learned from (Llama 2, section 3.2.3).

python -m experiments.ppo --config=configs/ppo.py:7b --workdir=DIR [--config.FIELD=VALUE ...]

See ``configs/ppo.py``. Batch and seeds of an iteration are functions of its number, and a checkpoint
holds both models, both optimisers and the state of early stopping, so a killed run continues bit for
bit. The model that ``load(workdir)`` opens at the end is that of the best reward on held-out prompts.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments.corpora import keep_tokenizer
from experiments.models import check_safety_model, open_mesh
from experiments.ppo_checkpoints import (
    Progress,
    Prompts,
    Run,
    check_ended,
    forget_best,
    is_stuck,
    keep_best_up_to,
    kept_best,
    restore,
    save,
    save_best,
)
from experiments.ppo_report import write_ppo_report
from llama2_jax.config import build, keep_config, require, require_choice, to_plain
from llama2_jax.data.chat import stop_ids
from llama2_jax.data.jsonl import append_rows
from llama2_jax.data.prompts import read_prompts
from llama2_jax.data.shards import file_sha256
from llama2_jax.launch import launch_experiment
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.rlhf import doctor
from llama2_jax.rlhf.archive import prompt_rows
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.ppo_iteration import (
    Learner,
    PromptBatch,
    Sampled,
    ScoreFunction,
    Scores,
    Stopwatch,
    reward_model_scores,
)
from llama2_jax.rlhf.reward_checkpoint import load_reward_model_for
from llama2_jax.rlhf.reward_model import KINDS, RewardModel
from llama2_jax.rlhf.rewards import reward_of
from llama2_jax.rlhf.rollouts import check_context, check_prompt_lengths, draw_prompts, draw_seeds
from llama2_jax.shapes import filled
from llama2_jax.sharding.placement import check_batch_size
from llama2_jax.sharding.processes import on_host, require_agreement, wait_for_all
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params, PPOState, Rollout
from llama2_jax.train.checkpoint import Checkpointer, read_params
from llama2_jax.train.metrics import MetricsWriter, read_metrics, require_finite
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.progress import ProgressReport
from llama2_jax.train.stopping import StopRequest, end_early
from llama2_jax.workdir import mark_done, open_workdir

VALUE_STARTS = ("reward_model", "policy")
HELDOUT_SEED = 1_000_003  # the same seeds at every evaluation, others than in training


def run(config: Any, workdir: Path) -> None:
    """Train the policy in ``workdir``; continues or returns at once if it is done."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    ppo = build(PPOConfig, config.ppo, name="ppo")
    partitioner, sampler_partitioner = _open_meshes(config, ppo)
    prompts, heldout = checked_prompts(config, load(config.init_from, with_params=False))
    check_safety_model(config, [*prompts.prompts, *heldout.prompts])
    policy = load(config.init_from, partitioner=partitioner, **config.model)
    reward_models = _load_reward_models(config, policy)
    for name, model in reward_models.items():
        check_context(model.config.max_context, ppo, what=name)
    value_model, value_params = _value_model(config, policy, reward_models["helpfulness"], partitioner)
    learner = make_learner(config, ppo, policy, value_model, partitioner, sampler_partitioner)
    keep_tokenizer(policy.require_tokenizer(), workdir)
    fresh = functools.partial(learner.init_state, policy.params, value_params)
    meta = {
        "reference_checksum": learner.reference_checksum,
        "reward_models": {name: model.version for name, model in reward_models.items()},
        "prompts": [file_sha256(Path(config[name])) for name in ("prompts", "heldout_prompts")],
    }
    score = make_score(reward_models, ppo)
    train(Run(config, workdir, policy, learner, score, prompts, heldout, meta), fresh)
    write_ppo_report(workdir)
    mark_done(workdir)


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    for name in ("init_from", "helpfulness_rm", "prompts", "heldout_prompts"):
        require(bool(config[name]), f"config.{name} is empty; name the file or checkpoint")
    for name in ("num_iterations", "checkpoint_every_steps", "keep_last"):
        require(config.train[name] > 0, f"train.{name} = {config.train[name]} must be positive")
    require(config.eval.every_steps > 0, f"eval.every_steps = {config.eval.every_steps} must be positive")
    require(config.eval.patience >= 0, f"eval.patience = {config.eval.patience} must not be negative")
    require(config.eval.guard_drop > 0, f"eval.guard_drop = {config.eval.guard_drop} must be positive")
    require_choice("value.init_from", config.value.init_from, VALUE_STARTS)
    build(PPOConfig, config.ppo, name="ppo")
    build(OptimizerConfig, config.optimizer, name="optimizer")


def _open_meshes(config: Any, ppo: PPOConfig) -> tuple[Partitioner, Partitioner]:
    """Where weights lie while the models learn, and while answers are made.

    Raises:
      ConfigError: a batch that does not divide over them.
    """
    partitioner, sampler_partitioner = (open_mesh(config, name) for name in ("mesh", "sampler_mesh"))
    sizes = {
        "ppo.mini_batch_size / accumulation_steps": ppo.mini_batch_size // ppo.accumulation_steps,
        "ppo.forward_batch_size": ppo.batch_size // ppo.forward_parts,
    }
    for field, size in sizes.items():
        check_batch_size(partitioner, size, field=field)
    if ppo.sample_batch_size:  # all at once they are filled up
        check_batch_size(sampler_partitioner, ppo.sample_batch_size, field="ppo.sample_batch_size")
    return partitioner, sampler_partitioner


def _load_reward_models(config: Any, policy: LoadedModel) -> dict[str, RewardModel]:
    """The reward models of the config by kind, refused unless they read what the policy writes."""
    paths = {kind: config[f"{kind}_rm"] for kind in KINDS}
    return {
        kind: load_reward_model_for(policy, path, kind, field=f"config.{kind}_rm")
        for kind, path in paths.items()
        if path
    }


def checked_prompts(config: Any, policy: LoadedModel) -> tuple[Prompts, Prompts]:
    """The prompts to learn from and the held-out ones, which the policy, also without parameters, can answer.

    Raises:
      ConfigError: its context is too short.
      DialogueError, PromptError: a prompt that cannot be rendered or is too long.
    """
    ppo = build(PPOConfig, config.ppo, name="ppo")
    check_context(policy.config.max_context, ppo, what="policy")
    return _read(config.prompts, policy, ppo), _read(config.heldout_prompts, policy, ppo)


def _read(path: str, policy: LoadedModel, ppo: PPOConfig) -> Prompts:
    prompts = read_prompts(path)
    rows = prompt_rows(prompts, policy.require_tokenizer(), policy.template)
    check_prompt_lengths(list(rows.values()), ppo, list(rows))
    return Prompts(prompts, [rows[prompt.prompt_id] for prompt in prompts])


def _value_model(
    config: Any, policy: LoadedModel, reward_model: RewardModel, partitioner: Partitioner
) -> tuple[ScoreModel, Params]:
    """The value model and its first parameters (D43). Its head is zero, so every value is 0 at first:

    a reward model's head would speak of raw scores, returns are whitened and penalised.
    """
    if config.value.init_from == "policy":
        return ScoreModel(policy.config, partitioner), score_params_from_chat(policy.params, key=None)
    shape = dataclasses.replace(reward_model.config, remat_policy=config.model.remat_policy)
    head = jnp.zeros_like(reward_model.params["w_score_D"])
    return ScoreModel(shape, partitioner), {**reward_model.params, "w_score_D": head}


def make_learner(
    config: Any,
    ppo: PPOConfig,
    policy: LoadedModel,
    value_model: ScoreModel,
    partitioner: Partitioner,
    sampler_partitioner: Partitioner,
) -> Learner:
    """What samples and learns; the two models differ in their learning rates alone."""
    optimizer = build(OptimizerConfig, config.optimizer, name="optimizer")
    return Learner(
        policy.model,
        value_model,
        policy.params,
        ppo,
        policy_optimizer=optimizer,
        value_optimizer=dataclasses.replace(optimizer, learning_rate=config.value.learning_rate),
        partitioner=partitioner,
        sampler_partitioner=sampler_partitioner,
        stop_ids=stop_ids(policy.require_tokenizer(), policy.template),
        num_iterations=config.train.num_iterations,
    )


def make_score(reward_models: dict[str, RewardModel], ppo: PPOConfig) -> ScoreFunction:
    """Scores of all reward models, in the padded batch as it is, and the reward (PPO-3)."""

    def score(rollout: Rollout, batch: PromptBatch, stopwatch: Stopwatch) -> Scores:
        by_model = {
            name: stopwatch.run(
                f"score_{name}",
                reward_model_scores,
                model.model,
                model.params,
                rollout,
                parts=ppo.forward_parts,
            )
            for name, model in reward_models.items()
        }
        combined_B = reward_of(by_model, batch.is_safety_B, threshold=ppo.safety_threshold)
        return Scores(np.asarray(combined_B), by_model)

    return score


def train(run: Run, fresh: Callable[[], PPOState]) -> None:
    """All iterations, from the newest checkpoint on, or from a ``fresh`` state.

    Raises:
      Preempted: after SIGTERM, with everything saved.
      DoctorError, NonFiniteError: something is wrong; the last checkpoint is as it was.
    """
    config, last = run.config.train, run.config.train.num_iterations
    require_agreement("data of ppo", [to_plain(run.meta), last])
    checkpointer = Checkpointer(run.workdir, keep_last=config.keep_last)
    best = Checkpointer(run.workdir / "best", keep_last=kept_best(run.config))
    restored = restore(run, checkpointer)
    state, progress = restored or (fresh(), Progress())
    if restored is None:
        forget_best(best)
    else:
        check_ended(run, state, progress)
        keep_best_up_to(run, state, progress, best)
    keep_config(run.config, run.workdir)
    writer = MetricsWriter(run.workdir, resume_step=state.iteration)
    shown = ProgressReport("ppo", num_steps=last, start_step=state.iteration)
    first = next((line for line in read_metrics(run.workdir) if "ppo/entropy" in line), {})
    said: set[str] = set()
    closing = contextlib.closing
    with closing(checkpointer), closing(best), closing(writer), closing(shown), StopRequest() as stop:
        if state.iteration == 0:
            evaluate(run, state, progress, writer, best)
        while state.iteration < last and not is_stuck(run, progress):
            state, sampled, metrics = run.learner.iterate(state, _batch(run, state.iteration), run.score)
            require_finite(state.iteration, metrics, last_checkpoint=checkpointer.newest())
            writer.write(state.iteration, metrics)
            first = first or metrics
            _say_once(doctor.symptoms(metrics, first), said, state.iteration)
            _keep_samples(run, state.iteration, sampled)
            shown.step(state.iteration, _line(metrics))
            if state.iteration % run.config.eval.every_steps == 0 or state.iteration == last:
                evaluate(run, state, progress, writer, best)
            writer.flush()
            if state.iteration == last or is_stuck(run, progress):
                break  # what is saved last has the best parameters
            stopping = stop.after_step()
            if stopping or state.iteration % config.checkpoint_every_steps == 0:
                save(run, state, progress, checkpointer)
            if stopping:
                end_early("iteration", state.iteration, run.workdir)
        if not progress.ended:
            best.wait()
            abstract = run.learner.abstract_states[0].params
            params = read_params(run.workdir / "best", abstract, progress.best_step)
            progress.ended = True
            shown.note(_kept_line(progress))
            checkpointer.discard_from(state.iteration)  # of a run that was to be longer
            kept = state._replace(policy=state.policy._replace(params=params))
            save(run, kept, progress, checkpointer)
    wait_for_all(f"end of PPO in {run.workdir}")  # what the first process wrote can be read


def _say_once(symptoms: dict[str, str], said: set[str], iteration: int) -> None:
    for name, text in symptoms.items():
        if name not in said:
            logging.warning("iteration %d, %s: %s", iteration, name, text)
    said.update(symptoms)


def _kept_line(progress: Progress) -> str:
    if progress.best_step == 0:
        return (
            "ppo: no iteration was better on the held-out prompts than the policy at the start, which is kept"
        )
    return f"ppo: kept the policy of iteration {progress.best_step}, the best on the held-out prompts"


def _batch(run: Run, iteration: int) -> PromptBatch:
    size, seed = run.learner.config.batch_size, run.config.train.seed
    rows = draw_prompts(len(run.prompts.prompts), batch_size=size, seed=seed, iteration=iteration)
    return run.prompts.batch(rows, draw_seeds(size, seed=seed, iteration=iteration))


def evaluate(
    run: Run, state: PPOState, progress: Progress, writer: MetricsWriter, best: Checkpointer
) -> None:
    """Mean scores of answers to the held-out prompts; keeps the parameters if they are the best so far.

    Raises:
      DoctorError: the guard turned.
    """
    size, count = run.learner.config.batch_size, len(run.heldout.prompts)
    seeds = draw_seeds(count, seed=run.config.train.seed + HELDOUT_SEED, iteration=0)
    sums: dict[str, float] = {}
    for first in range(0, count, size):
        rows = range(count)[first : first + size]
        numbers = filled(rows, size)
        batch = run.heldout.batch(numbers, [seeds[number] for number in numbers])
        sampled = run.learner.sample(state.policy.params, batch, run.score, Stopwatch())
        stopped_B = on_host(sampled.rollout.stopped_B).astype(np.float64)
        found = {"reward": sampled.scores.combined_B, **sampled.scores.by_model, "stopped": stopped_B}
        for name, values_B in found.items():
            sums[name] = sums.get(name, 0.0) + float(np.sum(values_B[: len(rows)], dtype=np.float64))
    means = {name: total / count for name, total in sums.items()}
    writer.write(state.iteration, {f"eval/{name}": value for name, value in means.items()})
    progress.first = progress.first or means
    if "guard" in means:
        doctor.check_guard(
            reward=means["reward"],
            first_reward=progress.first["reward"],
            guard=means["guard"],
            first_guard=progress.first["guard"],
            largest_drop=run.config.eval.guard_drop,
        )
    if progress.add(state.iteration, means["reward"]):
        save_best(run, state, progress, best)


def _keep_samples(run: Run, step: int, sampled: Sampled) -> None:
    """A few answers of the iteration with their scores, as a table in ``samples.jsonl``."""
    tokenizer, rows = run.policy.require_tokenizer(), []
    rollout = on_host(sampled.rollout)
    for row in range(min(run.config.train.num_samples, len(rollout.tokens_BT))):
        start = rollout.prompt_lengths_B[row]
        end = start + rollout.response_lengths_B[row] - int(rollout.stopped_B[row])
        ids = rollout.tokens_BT[row].tolist()
        scores = {name: float(values_B[row]) for name, values_B in sampled.scores.by_model.items()}
        rows.append(
            {
                "step": step,
                "prompt": tokenizer.decode(ids[:start]),
                "completion": tokenizer.decode(ids[start:end]),
                "stopped": bool(rollout.stopped_B[row]),
                "reward": float(sampled.scores.combined_B[row]),
                **scores,
            }
        )
    append_rows(run.workdir / "samples.jsonl", rows)


def _line(metrics: dict[str, float]) -> str:
    return (
        f"score {metrics['ppo/score']:.3f}  KL {metrics['ppo/kl_per_answer']:.3f}  "
        f"stopped {metrics['ppo/stopped_fraction']:.0%}  "
        f"{metrics['rate/generated_tokens_per_sec']:,.0f} generated tok/s  {metrics['secs/iteration']:.2f} s"
    )


if __name__ == "__main__":
    launch_experiment(run)
