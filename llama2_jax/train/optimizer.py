"""AdamW and its schedules exactly as the paper prints them (OPT-1..4, PPO-5)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.tree_util import keystr

from llama2_jax.config import require, require_choice

SCHEDULES = ("cosine", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Defaults: Llama 2, section 2.2."""

    learning_rate: float  # peak
    schedule: str = "cosine"
    warmup_steps: int = 2000
    warmup_fraction: float = 0.0  # of all steps; the longer of the two warm-ups holds
    final_fraction: float = 0.1  # of the peak, reached after the last step
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-5  # D1: unusually large, as printed
    weight_decay: float = 0.1
    grad_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require_choice("optimizer.schedule", self.schedule, SCHEDULES)
        require(self.learning_rate > 0, f"optimizer.learning_rate = {self.learning_rate} must be positive")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} = {value} must be in [0, 1)")
        require(
            0 <= self.final_fraction <= 1,
            f"optimizer.final_fraction = {self.final_fraction} must be in [0, 1]",
        )
        for name in ("warmup_steps", "warmup_fraction", "weight_decay"):
            value = getattr(self, name)
            require(value >= 0, f"optimizer.{name} = {value} must not be negative")
        require(self.epsilon > 0, f"optimizer.epsilon = {self.epsilon} must be positive")
        require(self.grad_clip_norm > 0, f"optimizer.grad_clip_norm = {self.grad_clip_norm} must be positive")


def learning_rate(step: Any, config: OptimizerConfig, *, num_steps: int) -> jax.Array:
    """Learning rate of update ``step`` (0-based): linear from 0, then cosine to the final fraction.

    Step 0 gives 0, or the peak if there is no warm-up, whose end gives the peak; ``num_steps`` gives
    ``final_fraction`` of it (D4): as in other implementations an update that would come after the last, whose
    own rate is a little higher.
    """
    return _learning_rate(step, config, *_spans(config, num_steps))


def _spans(config: OptimizerConfig, num_steps: int) -> tuple[int, int]:
    """Updates of the warm-up, and of the whole run."""
    return max(config.warmup_steps, round(config.warmup_fraction * num_steps)), num_steps


def _learning_rate(step: Any, config: OptimizerConfig, warmup_steps: Any, num_steps: Any) -> jax.Array:
    step, warmup_steps, num_steps = (jnp.asarray(x, jnp.float32) for x in (step, warmup_steps, num_steps))
    warmup = step / jnp.maximum(warmup_steps, 1)
    if config.schedule == "constant":
        return config.learning_rate * jnp.where(step < warmup_steps, warmup, 1.0)
    progress = (step - warmup_steps) / jnp.maximum(num_steps - warmup_steps, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    decayed = config.final_fraction + (1 - config.final_fraction) * cosine
    return config.learning_rate * jnp.where(step < warmup_steps, warmup, decayed)


class ScheduleState(NamedTuple):
    """int32 scalars. They are state so that the compiled update does not depend on the length of the run."""

    count: jax.Array  # updates so far
    warmup_steps: jax.Array
    num_steps: jax.Array


def with_num_steps(opt_state: Any, config: OptimizerConfig, *, num_steps: int) -> Any:
    """The state of one or more optimizers for a run of another length; every leaf keeps its sharding."""

    def replace(state: Any) -> Any:
        if not isinstance(state, ScheduleState):
            return state
        leaves = (jax.device_put(np.int32(span), state.count.sharding) for span in _spans(config, num_steps))
        return ScheduleState(state.count, *leaves)

    return jax.tree.map(replace, opt_state, is_leaf=lambda state: isinstance(state, ScheduleState))


def decay_mask(params: Any) -> Any:
    """True for matrices incl. embeddings, False for norm scales (D3)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: keystr(path[-1:], simple=True) != "scale_D", params
    )


def make_optimizer(config: OptimizerConfig, *, num_steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with decoupled decay scaled by the learning rate.

    A run that ends within its warm-up is allowed, for a first look at a config, but not silently.
    """
    _check_warm_up(*_spans(config, num_steps))
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        _scale_by_schedule(config, num_steps),
    )


@functools.cache  # said once, though PPO makes two optimizers
def _check_warm_up(warmup_steps: int, num_steps: int) -> None:
    if warmup_steps >= num_steps > 0:
        logging.warning(
            "the run of %d update(s) ends within its warm-up of %d: the learning rate ends at %.0f %% of its "
            "peak; lower config.optimizer.warmup_steps",
            num_steps, warmup_steps, 100 * (num_steps - 1) / warmup_steps,
        )  # fmt: skip


def _scale_by_schedule(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    def init(params: Any) -> ScheduleState:
        return ScheduleState(*(jnp.asarray(value, jnp.int32) for value in (0, *_spans(config, num_steps))))

    def update(updates: Any, state: ScheduleState, params: Any = None) -> tuple[Any, ScheduleState]:
        rate = _learning_rate(state.count, config, state.warmup_steps, state.num_steps)
        return jax.tree.map(lambda u: -rate * u, updates), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)
