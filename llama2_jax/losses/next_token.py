"""Next-token cross-entropy as sums over tokens (OPT-6), whole or in chunks.

loss = - sum_t mask_t * log softmax(logits_t)[target_t],  logits in float32.

Sums, never means of means: the caller divides once by the token count of the whole batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llama2_jax.config import require
from llama2_jax.shapes import check_shapes
from llama2_jax.structs import LossSums

Unembed = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""The head of some ids of the vocabulary, those ids, and hidden states (B, C, D) to logits (B, C, V)."""

MapShards = Callable[..., Any]
"""``Partitioner.map_shards``."""


def next_token_sums(logits_BTV: jax.Array, targets_BT: jax.Array, loss_mask_BT: jax.Array) -> LossSums:
    """Sum of the negative log-likelihood (nats) of the targets where the mask is 1, and their count."""
    check_shapes("next_token_sums", logits_BTV=logits_BTV, targets_BT=targets_BT, loss_mask_BT=loss_mask_BT)
    # where, not a product: a masked position may hold anything, even infinity, and its gradient is 0
    logits_BTV = jnp.where(loss_mask_BT[..., None] > 0, logits_BTV, 0.0)
    loss_sum = -(token_logprobs(logits_BTV, targets_BT) * loss_mask_BT).sum()
    return LossSums(loss_sum, loss_mask_BT.astype(jnp.float32).sum(), {}, {})


def token_logprobs(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """log softmax(logits)[target], float32 (B, T). Targets are not checked: what has none is to be masked.

    Own losses should take this, too: of ``logits[jnp.arange(T), targets]`` XLA can make a wrong gradient
    where T is split over devices (``docs/scaling.md``).
    """
    target_BT, lse_BT = _target_and_lse(logits_BTV, targets_BT, jnp.arange(logits_BTV.shape[-1]))
    return target_BT - lse_BT


def _target_and_lse(
    logits_BTV: jax.Array, targets_BT: jax.Array, ids_V: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The logit of the target, 0 where it is not among the ids, and the log of the sum of exponentials."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    # A comparison instead of a gather: it stays local when V is split over devices.
    target_BT = jnp.where(ids_V == targets_BT[..., None], logits_BTV, 0.0).sum(axis=-1)
    return target_BT, jax.nn.logsumexp(logits_BTV, axis=-1)


def chunked_next_token_sums(
    unembed: Unembed,
    head: jax.Array,
    head_dims: str,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    loss_mask_BT: jax.Array,
    *,
    vocab_size: int,
    chunk_size: int,
    map_shards: MapShards,
) -> LossSums:
    """The same sums with logits made for ``chunk_size`` positions of each row at a time.

    At most (B, chunk_size, V) logits exist at once, in the forward and the backward pass. Every device gets
    its part of the head once and adds up the gradient of that by itself; devices talk before and after the
    loop alone. In a loop over arrays of all devices XLA gathers the head and adds up its gradient every turn.

    Args:
      head: weights, and ``head_dims`` their dimension letters.
      chunk_size: must divide T.
    """
    length = hidden_BTD.shape[1]
    require(
        length % chunk_size == 0,
        f"train.loss_chunk = {chunk_size} does not divide the sequence length {length}; set it to a divisor",
    )

    def local(head: jax.Array, ids_V: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        @jax.checkpoint
        def body(_: None, chunk: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, ...]]:
            hidden, targets, mask = chunk
            logits = jnp.where(mask[..., None] > 0, unembed(head, ids_V, hidden), 0.0)
            return None, _target_and_lse(logits, targets, ids_V)

        own = arrays[0].shape[1]
        size = math.gcd(max(chunk_size * own // length, 1), own)  # where devices share a row
        _, parts = jax.lax.scan(body, None, tuple(_chunks(array, size) for array in arrays))
        return tuple(part.swapaxes(0, 1).reshape(1, *arrays[1].shape) for part in parts)

    # where the vocabulary is split, both are of each part of it
    target_VBT, lse_VBT = map_shards(
        local,
        (head, jnp.arange(vocab_size), hidden_BTD, targets_BT, loss_mask_BT),
        (head_dims, "V", "BTD", "BT", "BT"),
        ("VBT", "VBT"),
    )
    logprobs_BT = target_VBT.sum(axis=0) - jax.nn.logsumexp(lse_VBT, axis=0)
    return LossSums(-(logprobs_BT * loss_mask_BT).sum(), loss_mask_BT.astype(jnp.float32).sum(), {}, {})


def _chunks(array: jax.Array, size: int) -> jax.Array:
    """(B, T, ...) -> (T / C, B, C, ...)."""
    batch, length, *rest = array.shape
    return array.reshape(batch, length // size, size, *rest).swapaxes(0, 1)
