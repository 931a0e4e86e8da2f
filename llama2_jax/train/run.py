"""What a training run is: numbers from the config, and the parts that an experiment builds."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from llama2_jax.config import require
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.step import Loss


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, rhythm and safety of a run; counts are optimiser updates."""

    num_steps: int
    seed: int = 0
    accumulation_steps: int = 1
    loss_chunk: int = 0  # of next_token_loss: positions of a row whose logits exist at once; 0 = all
    log_every_steps: int = 10
    eval_every_steps: int = 0  # 0 = only before the first and after the last step
    checkpoint_every_steps: int = 1000
    keep_last: int = 2
    keep_every_steps: int = 0
    profile_steps: str = ""  # "10:13" writes a trace of updates 11, 12 and 13
    peak_flops: float = 0.0  # per device; 0 = known for the device, or measured

    def __post_init__(self) -> None:
        require(self.num_steps > 0, f"train.num_steps = {self.num_steps} must be positive")
        for name in ("accumulation_steps", "log_every_steps", "checkpoint_every_steps", "keep_last"):
            require(getattr(self, name) > 0, f"train.{name} = {getattr(self, name)} must be positive")
        for name in ("loss_chunk", "eval_every_steps", "keep_every_steps"):
            require(getattr(self, name) >= 0, f"train.{name} = {getattr(self, name)} must not be negative")
        self.profile_range()

    def profile_range(self) -> tuple[int, int]:
        """First and last step of the trace, or (-1, -1)."""
        if not self.profile_steps:
            return -1, -1
        first, _, last = self.profile_steps.partition(":")
        require(
            first.isdigit() and last.isdigit() and int(first) < int(last),
            f"train.profile_steps = {self.profile_steps!r} must be FIRST:LAST, for example 10:13",
        )
        return int(first), int(last)


@dataclasses.dataclass(frozen=True)
class TrainRun:
    """Everything a run needs besides numbers: built once by an experiment."""

    name: str
    model: Transformer | ScoreModel
    loss: Loss  # its totals must have source_tokens, tokens per source, int32 (number of sources,)
    optimizer: OptimizerConfig
    partitioner: Partitioner
    batch_size: int  # global rows per update
    items_per_step: int  # rows, or pairs, of the data: step s begins at item s times this, on any mesh
    sequence_length: int
    batches: Callable[[int], Iterator[Any]]  # of the loss: this process's rows, from a step on
    source_names: tuple[str, ...]
    meta: dict[str, Any]  # what the run is made from, stored with every checkpoint and checked on resume
    config: dict[str, Any]  # resolved, stored with every checkpoint
    initial_params: Callable[[], Params] | None = None  # None = random
    num_outputs: int | None = None  # per token, for MFU; None = the vocabulary
    evaluate: Callable[[int, Params], dict[str, float]] | None = None
    accept_changed_config: bool = False  # go on though ``meta`` differs from the checkpoint's
