"""What a run of PPO is, and its checkpoints: the newest to go on from, and the models that did best.

The policy stands in a checkpoint where ``load`` looks for a chat model; optimisers, the value model and the
state of early stopping beside it. ``best/`` holds parameters alone.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from llama2_jax.config import require, to_plain
from llama2_jax.data.prompts import Prompt
from llama2_jax.pretrained import LoadedModel, checkpoint_meta
from llama2_jax.rlhf.ppo_iteration import Learner, PromptBatch, ScoreFunction
from llama2_jax.structs import PPOState, TrainState
from llama2_jax.train.checkpoint import Checkpointer, require_same_origin


class Prompts(NamedTuple):
    """Prompts as text and as ids."""

    prompts: list[Prompt]
    tokens: list[list[int]]

    def batch(self, rows: Sequence[int], seeds: Sequence[int]) -> PromptBatch:
        """The prompts of ``rows``, with a seed each."""
        chosen = [self.prompts[row] for row in rows]
        tags_B = np.array([prompt.is_safety for prompt in chosen])
        return PromptBatch(
            [prompt.prompt_id for prompt in chosen], [self.tokens[row] for row in rows], tags_B, seeds
        )


@dataclasses.dataclass
class Progress:
    """What a checkpoint holds besides the parameters: goes into its JSON as it is."""

    best_reward: float = float("-inf")
    best_step: int = 0
    evaluations_since: int = 0
    first: dict[str, float] = dataclasses.field(default_factory=dict)  # the evaluation before any update
    ended: bool = False  # the parameters are the best ones, beside optimizers of the last iteration

    def add(self, step: int, reward: float) -> bool:
        """Count an evaluation; True if it is the best so far."""
        is_best = reward > self.best_reward
        if is_best:
            self.best_reward, self.best_step = reward, step
        self.evaluations_since = 0 if is_best else self.evaluations_since + 1
        return is_best


class Run(NamedTuple):
    """Everything an iteration needs."""

    config: Any
    workdir: Path
    policy: LoadedModel  # as it was at first
    learner: Learner
    score: ScoreFunction
    prompts: Prompts
    heldout: Prompts
    meta: dict[str, Any]  # what the run is made from


def kept_best(config: Any) -> int:
    """Of the best models so many are kept that the best of the oldest checkpoint is among them."""
    since_checkpoint = -(-config.train.checkpoint_every_steps // config.eval.every_steps)
    return 2 + config.train.keep_last * since_checkpoint  # its own, and that of the last iteration


def forget_best(best: Checkpointer) -> None:
    """What a run found best that left no checkpoint is not of the one that starts now."""
    if best.steps():
        logging.warning("%s is of a run that left no checkpoint to go on from; deleted", best.folder)
    best.discard_from(0)


def check_ended(run: Run, state: PPOState, progress: Progress) -> None:
    """Raise ``ConfigError`` if the run ended and is to do more."""
    require(
        not progress.ended or state.iteration >= run.config.train.num_iterations or is_stuck(run, progress),
        f"{run.workdir} ended after iteration {state.iteration}, and its checkpoint holds the best policy, "
        f"of iteration {progress.best_step}: nothing can go on from there; start a new --workdir, with "
        f"config.init_from={run.workdir} to learn on",
    )


def keep_best_up_to(run: Run, state: PPOState, progress: Progress, best: Checkpointer) -> None:
    """Delete what the run found best after its checkpoint: it may go another way now.

    Raises:
      ConfigError: the best model so far is not there.
    """
    if progress.ended:  # its checkpoint is the best model
        return
    is_there, is_here = progress.best_step in best.steps(), progress.best_step == state.iteration
    require(
        is_there or is_here,
        f"{best.folder} holds {best.steps()}, and the newest checkpoint says that the best model so far is "
        f"of iteration {progress.best_step}; put it back, or start in a new workdir",
    )
    best.discard_from(state.iteration + 1 if is_there else state.iteration)
    if not is_there:
        save_best(run, state, progress, best)


def save_best(run: Run, state: PPOState, progress: Progress, best: Checkpointer) -> None:
    """Keep the parameters alone."""
    best.save(state.iteration, state.policy.params, None, _meta(run, progress))


def is_stuck(run: Run, progress: Progress) -> bool:
    """Whether so many evaluations brought nothing new that the run ends."""
    patience = run.config.eval.patience
    return patience > 0 and progress.evaluations_since >= patience


def save(run: Run, state: PPOState, progress: Progress, checkpointer: Checkpointer) -> None:
    """Keep everything."""
    rest = _besides_policy(state.policy, state.value)
    checkpointer.save(state.iteration, state.policy.params, rest, _meta(run, progress))


def _besides_policy(policy: TrainState, value: TrainState) -> dict[str, Any]:
    return {"policy": policy.opt_state, "value_params": value.params, "value": value.opt_state}


def restore(run: Run, checkpointer: Checkpointer) -> tuple[PPOState, Progress] | None:
    """The newest checkpoint, or None.

    Raises:
      ConfigError: it was made from another policy, other reward models or prompts.
    """
    policy, value = run.learner.abstract_states
    restored = checkpointer.restore_latest(policy.params, _besides_policy(policy, value))
    if restored is None:
        return None
    require_same_origin(
        restored, run.meta, checkpointer.folder, accept_changed=run.config.accept_changed_config
    )
    rest = restored.rest
    state = run.learner.restored_state(
        restored.step, restored.params, rest["policy"], rest["value_params"], rest["value"]
    )
    return state, Progress(**restored.meta["progress"])


def _meta(run: Run, progress: Progress) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    tokenizer = run.policy.require_tokenizer()
    return {
        **checkpoint_meta(run.policy.config, tokenizer, run.policy.template.name),
        **run.meta,
        "progress": dataclasses.asdict(progress),
        "config": to_plain(run.config),
    }
