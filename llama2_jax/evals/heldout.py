"""Loss on text the model was not trained on, in nats per token and bits per byte."""

import functools
import math

import jax

from llama2_jax.config import require
from llama2_jax.data.loader import single_pass
from llama2_jax.data.packing import Rows
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.placement import place_batch, process_slice
from llama2_jax.structs import LossSums, Params, TokenBatch
from llama2_jax.train.step import loss_sums


def heldout_loss(
    model: Transformer, params: Params, rows: Rows, *, num_bytes: int, batch_size: int, loss_chunk: int
) -> dict[str, float]:
    """The mean loss of the counted tokens in nats, and in bits per byte, as a run logs them.

    Args:
      num_bytes: UTF-8 bytes of the text that counts; bits per byte are comparable between tokenizers.
      batch_size: rows computed together.
      loss_chunk: as in training.

    Raises:
      ConfigError: no token counts, or the batch does not divide over the processes.
    """
    nats = tokens = 0.0
    batches = single_pass(rows, batch_size=batch_size, **process_slice(model.partitioner))
    placed = (place_batch(model.partitioner, batch) for batch in batches)
    running = (_batch_sums(model, params, batch, loss_chunk=loss_chunk) for batch in placed)
    sums = next(running, None)
    while sums is not None:
        ahead = next(running, None)  # the device has the next batch before we wait for this one
        nats += float(sums.loss_sum)
        tokens += float(sums.weight)
        sums = ahead
    require(tokens > 0, "the held-out set has no counted token; give dialogues with answers, or longer texts")
    return {"eval/heldout/loss": nats / tokens, "eval/heldout/bits_per_byte": nats / math.log(2) / num_bytes}


@functools.partial(jax.jit, static_argnames=("model", "loss_chunk"))
def _batch_sums(model: Transformer, params: Params, batch: TokenBatch, *, loss_chunk: int) -> LossSums:
    return loss_sums(model, params, batch, loss_chunk=loss_chunk)
