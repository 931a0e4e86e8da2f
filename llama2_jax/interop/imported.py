"""What every reader of foreign checkpoints gives and checks, and the error all of them raise."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama2_jax.config import UserError
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.model.config import ModelConfig
from llama2_jax.structs import Params

SHOWN = 10  # problems that an error lists


class FormatError(UserError, ValueError):
    """A checkpoint is not what its name or header claims; the message says what to do."""


class Imported(NamedTuple):
    """A foreign checkpoint whose headers fit each other; the values are still in its files."""

    config: ModelConfig
    params: Params  # ``FileLeaf`` leaves in the dtype of the file
    tokenizer: Tokenizer | None  # None if the checkpoint has none
    template: str  # chat template name, see ``templates.py``
    source: str  # one line for logs: kind and place


class LazyTensor(NamedTuple):
    """A named array of a checkpoint whose values are read only when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def byte_count(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def listed(problems: Sequence[str]) -> str:
    """A line for each of the first problems: of the wrong config every tensor of a model has one."""
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*problems[:SHOWN], *more])


def check_vocabulary(tokenizer: Tokenizer | None, vocab_size: int, *, where: Path) -> None:
    """Raise FormatError if some token has no embedding; spare rows (padding) and no tokenizer are fine."""
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise FormatError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {vocab_size} rows, one "
            "for each token is needed; take the tokenizer that belongs to the weights"
        )
