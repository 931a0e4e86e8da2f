"""Choosing the next token: greedy, temperature, top-k, nucleus (GEN-4..6)."""

import dataclasses

import jax
import jax.numpy as jnp

from llama2_jax.config import require


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Defaults: the reference code's (GEN-1). Temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    max_new_tokens: int = 256
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0

    def __post_init__(self) -> None:
        require(self.max_new_tokens > 0, f"max_new_tokens = {self.max_new_tokens} must be positive")
        require(self.temperature >= 0, f"temperature = {self.temperature} must not be negative; 0 is greedy")
        require(0 <= self.top_p <= 1, f"top_p = {self.top_p} must be in [0, 1]; 0 keeps only the top token")
        require(self.top_k >= 0, f"top_k = {self.top_k} must not be negative; 0 turns it off")


def row_keys(seeds_B: jax.Array, index: jax.Array) -> jax.Array:
    """One key per row from its own seed and the index of the token it is about to sample.

    A row's randomness therefore does not depend on its neighbours or its place in the batch.
    """
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), index))(seeds_B)


def sample(
    logits_BV: jax.Array, keys_B: jax.Array, config: SamplingConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next token of each row, and its log-probability in two senses.

    Returns:
      tokens_B: int32.
      raw_logprobs_B: log softmax of the logits as they are (GEN-6).
      sample_logprobs_B: under the distribution drawn from, after temperature, top-k and
        nucleus; 0 for greedy.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if config.temperature == 0:
        tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        sample_logprobs_B = jnp.zeros(tokens_B.shape, jnp.float32)
    elif config.top_p == 1 and config.top_k == 0:
        tokens_B, sample_logprobs_B = _draw(logits_BV / config.temperature, keys_B)
    else:
        order_BV = jnp.argsort(-logits_BV, axis=-1)
        sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1) / config.temperature
        ranks_B, sample_logprobs_B = _draw(
            keep_top(sorted_BV, top_p=config.top_p, top_k=config.top_k), keys_B
        )
        tokens_B = _pick(order_BV, ranks_B)
    raw_logprobs_B = _pick(logits_BV, tokens_B) - jax.nn.logsumexp(logits_BV, axis=-1)
    return tokens_B, raw_logprobs_B, sample_logprobs_B


def keep_top(sorted_BV: jax.Array, *, top_p: float, top_k: int = 0) -> jax.Array:
    """Set to -inf what top-k and nucleus drop, in logits sorted in descending order (GEN-5).

    Nucleus drops token i if the probability of all tokens before it exceeds ``top_p``: the
    token that crosses the threshold is kept, and the top token always survives.
    """
    rank_V = jnp.arange(sorted_BV.shape[-1])
    if top_k:
        sorted_BV = jnp.where(rank_V < top_k, sorted_BV, -jnp.inf)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    return jnp.where((before_BV <= top_p) & ((rank_V == 0) | (top_p > 0)), sorted_BV, -jnp.inf)


def _draw(logits_BV: jax.Array, keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    choice_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
    return choice_B, _pick(jax.nn.log_softmax(logits_BV, axis=-1), choice_B)


def _pick(values_BV: jax.Array, index_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values_BV, index_B[:, None], axis=-1)[:, 0]
