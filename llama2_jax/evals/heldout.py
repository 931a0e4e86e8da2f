"""Loss on text the model was not trained on, in nats per token and bits per byte."""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax

from llama2_jax.config import require
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.placement import place_batch
from llama2_jax.structs import LossSums, Params, TokenBatch
from llama2_jax.train.step import loss_sums


class HeldoutLoss(NamedTuple):
    """Sums over a whole held-out set."""

    nats: float
    tokens: float

    @property
    def per_token(self) -> float:
        """Mean negative log-likelihood in nats per counted token."""
        return self.nats / self.tokens

    def bits_per_byte(self, num_bytes: int) -> float:
        """The same in bits per byte of the text: comparable between tokenizers."""
        return self.nats / math.log(2) / num_bytes


def heldout_loss(
    model: Transformer, params: Params, batches: Iterable[TokenBatch], *, loss_chunk: int = 0
) -> HeldoutLoss:
    """Sum the loss over ``batches`` (host arrays, this process's rows); ``loss_chunk`` as in training."""
    assert model.partitioner is not None
    nats = tokens = 0.0
    placed = (place_batch(model.partitioner, batch) for batch in batches)
    running = (_batch_sums(model, params, batch, loss_chunk=loss_chunk) for batch in placed)
    sums = next(running, None)
    while sums is not None:
        ahead = next(running, None)  # the device has the next batch before we wait for this one
        nats += float(sums.loss_sum)
        tokens += float(sums.weight)
        sums = ahead
    require(
        tokens > 0,
        "the held-out set has no counted token; give dialogues with answers, or longer texts",
    )
    return HeldoutLoss(nats, tokens)


@functools.partial(jax.jit, static_argnames=("model", "loss_chunk"))
def _batch_sums(model: Transformer, params: Params, batch: TokenBatch, *, loss_chunk: int) -> LossSums:
    return loss_sums(model, params, batch, loss_chunk=loss_chunk)
