"""Choosing the next token: greedy, temperature, top-k, nucleus (GEN-4..6)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import require
from llama2_jax.structs import Array

LOWEST_TEMPERATURE = 1e-6  # logits over a lower one are soon beyond float32
PROBABILITY_BITS = 31  # of float32 numbers from 0 to 1, and a little more: without the sign


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Defaults: the reference code's (GEN-1). Temperature 0 is greedy; top_k 0 and top_p 1 are off.

    top_p 0 and top_k 1 are greedy too: the first of the likeliest tokens alone.
    """

    max_new_tokens: int = 256
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0

    def __post_init__(self) -> None:
        require(self.max_new_tokens > 0, f"max_new_tokens = {self.max_new_tokens} must be positive")
        require(
            self.temperature == 0 or self.temperature >= LOWEST_TEMPERATURE,
            f"temperature = {self.temperature} must be 0, which is greedy, or at least {LOWEST_TEMPERATURE}",
        )
        require(0 <= self.top_p <= 1, f"top_p = {self.top_p} must be in [0, 1]; 0 keeps only the top token")
        require(self.top_k >= 0, f"top_k = {self.top_k} must not be negative; 0 turns it off")

    @property
    def numbers(self) -> "SamplingNumbers":
        """As arguments of a compiled function."""
        greedy = self.temperature == 0 or self.top_p == 0 or self.top_k == 1
        return SamplingNumbers(
            None if greedy else np.float32(self.temperature),
            None if greedy or self.top_p == 1 else np.float32(self.top_p),
            None if greedy or self.top_k == 0 else np.float32(self.top_k),
        )


class SamplingNumbers(NamedTuple):
    """How to choose a token, as traced float32 scalars: other values compile nothing anew.

    A field that is None leaves its step out of the program; temperature None is greedy.
    """

    temperature: Array | None
    top_p: Array | None
    top_k: Array | None


def row_keys(seeds_B: jax.Array, index: jax.Array) -> jax.Array:
    """One key per row from its own seed and the index of the token it is about to sample.

    A row's randomness therefore does not depend on its neighbours or its place in the batch.
    """

    def key(seed: jax.Array) -> jax.Array:
        # threefry, whatever jax's default is: under vmap rbg draws all rows from the first key
        return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)

    return jax.vmap(key)(seeds_B)


def sample(
    logits_BV: jax.Array, keys_B: jax.Array, sampling: SamplingNumbers
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next token of each row, and its log-probability in two senses.

    Returns:
      tokens_B: int32.
      raw_logprobs_B: log softmax of the logits as they are (GEN-6).
      sample_logprobs_B: under the distribution drawn from, after temperature, top-k and
        nucleus; 0 for greedy.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.temperature is None:
        tokens_B = likeliest(logits_BV)
        sample_logprobs_B = jnp.zeros(tokens_B.shape, jnp.float32)
    else:
        kept_BV = keep_top(logits_BV / sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, kept_BV.shape[-1:], jnp.float32))(keys_B)
        # behind a barrier: XLA:CPU would make the noise twice
        tokens_B = likeliest(jax.lax.optimization_barrier(kept_BV + noise_BV))
        sample_logprobs_B = _logprobs(kept_BV, tokens_B)
    return tokens_B, _logprobs(logits_BV, tokens_B), sample_logprobs_B


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """The first of the highest logits, int32 (..., V) -> (...); where one is NaN, anything.

    ``argmax`` in two passes, each of which XLA:CPU vectorises: a fifth of its time.
    """
    vocab = logits_BV.shape[-1]
    highest_B1 = logits_BV.max(axis=-1, keepdims=True)
    return jnp.where(logits_BV == highest_B1, jnp.arange(vocab, dtype=jnp.int32), vocab).min(axis=-1)


def keep_top(
    logits_BV: jax.Array, *, top_p: Array | float | None = None, top_k: Array | int | None = None
) -> jax.Array:
    """Set to -inf what top-k and then the nucleus drop (GEN-5), of logits in any dtype.

    A token is kept if fewer than ``top_k`` are likelier, and if the probability of all that are
    likelier is at most ``top_p``: the token that crosses the threshold stays, the top token always.
    Tokens of one probability stay or go together.
    """
    if top_k is not None:
        probs_BV = jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)
        logits_BV = _keep_below(probs_BV, jnp.ones_like(probs_BV), top_k - 1, logits_BV)
    if top_p is not None:
        probs_BV = jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)
        logits_BV = _keep_below(probs_BV, probs_BV, top_p, logits_BV)
    return logits_BV


def _keep_below(
    probs_BV: jax.Array, weights_BV: jax.Array, limit: Array | float, logits_BV: jax.Array
) -> jax.Array:
    """Keep the logits of tokens for which the weights of all likelier ones sum to at most ``limit``.

    The least probability that is kept is found by halving the interval of its bits, which order numbers that
    are not negative: a few passes over the vocabulary instead of sorting it.
    """
    low_B1 = jnp.zeros((*probs_BV.shape[:-1], 1), jnp.int32)
    high_B1 = jax.lax.bitcast_convert_type(probs_BV.max(axis=-1, keepdims=True), jnp.int32)

    def number(bits_B1: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(bits_B1, jnp.float32)

    def halve(_: int, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = interval
        middle_B1 = (low_B1 + high_B1) // 2
        likelier_B1 = jnp.where(probs_BV > number(middle_B1), weights_BV, 0).sum(axis=-1, keepdims=True)
        stays_B1 = likelier_B1 <= limit
        return jnp.where(stays_B1, low_B1, middle_B1 + 1), jnp.where(stays_B1, middle_B1, high_B1)

    _, least_B1 = jax.lax.fori_loop(0, PROBABILITY_BITS, halve, (low_B1, high_B1))
    return jnp.where(probs_BV >= number(least_B1), logits_BV, -jnp.inf)


def _logprobs(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
