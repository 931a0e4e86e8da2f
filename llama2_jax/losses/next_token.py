"""Next-token cross-entropy as sums over tokens (OPT-6), whole or in chunks.

loss = - sum_t mask_t * log softmax(logits_t)[target_t],  logits in float32.

Sums, never means of means: the caller divides once by the token count of the whole batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llama2_jax.config import require
from llama2_jax.shapes import check_shapes
from llama2_jax.structs import LossSums


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
    logits_BTV = logits_BTV.astype(jnp.float32)
    # A comparison instead of a gather: it stays local when V is split over devices.
    is_target = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
    target_BT = jnp.where(is_target, logits_BTV, 0.0).sum(axis=-1)
    return target_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


def chunked_next_token_sums(
    unembed: Callable[[jax.Array], jax.Array],
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    loss_mask_BT: jax.Array,
    *,
    chunk_size: int,
) -> LossSums:
    """The same sums with logits made for ``chunk_size`` positions of each row at a time.

    At most (B, chunk_size, V) logits exist at once, in the forward and the backward pass.

    Args:
      unembed: (B, C, D) -> logits (B, C, V).
      chunk_size: must divide T.
    """
    batch, length, _ = hidden_BTD.shape
    require(
        length % chunk_size == 0,
        f"train.loss_chunk = {chunk_size} does not divide the sequence length {length}; set it to a divisor",
    )

    def chunks(array: jax.Array) -> jax.Array:
        return array.reshape(batch, length // chunk_size, chunk_size, *array.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def body(sums: LossSums, chunk: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[LossSums, None]:
        hidden, targets, mask = chunk
        new = next_token_sums(unembed(hidden), targets, mask)
        return jax.tree.map(jnp.add, sums, new), None

    zero = LossSums(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), {}, {})
    sums, _ = jax.lax.scan(body, zero, (chunks(hidden_BTD), chunks(targets_BT), chunks(loss_mask_BT)))
    return sums
