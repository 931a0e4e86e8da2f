"""Answers sampled for PPO, and what models say about each of their tokens.

A row is the prompt, directly followed by the response, then padding. What is what follows from the
two lengths alone, never from the id of a token: padding may be EOS. Ids go in and out untouched, so
the tokens that are scored are the tokens that were sampled.

Arrays (B, C) are aligned with the response: column c is about response token c, which stands at
position ``prompt_length + c`` and is predicted at ``prompt_length + c - 1``; the log-probability and
the value of column c are both read there, before the token is known.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import require
from llama2_jax.generate.decode import SEED_LIMIT, PromptError, generate
from llama2_jax.losses.next_token import token_logprobs
from llama2_jax.model.heads import ScoreModel, token_scores
from llama2_jax.model.transformer import Transformer
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.structs import Completions, Params, ResponseValues, Rollout
from llama2_jax.train.step import split_rows

Tree = TypeVar("Tree")


def draw_prompts(num_prompts: int, *, batch_size: int, seed: int, iteration: int) -> list[int]:
    """Which prompts the batch of an iteration has: passes over all of them, each in an order of its own.

    A pure function of the iteration: there is no cursor to lose.
    """
    first = iteration * batch_size
    orders: dict[int, np.ndarray] = {}
    chosen = []
    for number in range(first, first + batch_size):
        turn, place = divmod(number, num_prompts)
        if turn not in orders:
            orders[turn] = np.random.default_rng((seed, turn)).permutation(num_prompts)
        chosen.append(int(orders[turn][place]))
    return chosen


def draw_seeds(count: int, *, seed: int, iteration: int) -> list[int]:
    """A seed of its own for every answer of an iteration."""
    return np.random.default_rng((seed, iteration, count)).integers(0, SEED_LIMIT, count).tolist()


def sample_rollout(
    sampler: Transformer,
    weights: Params,
    prompts: Sequence[Sequence[int]],
    config: PPOConfig,
    *,
    stop_ids: Sequence[int],
    seeds: Sequence[int],
) -> Rollout:
    """One answer to each prompt, in host memory; the shapes depend on ``config`` alone.

    Raises:
      PromptError: a prompt is longer than ``config.prompt_length``.
    """
    check_prompt_lengths(prompts, config)
    size = config.sample_batch_size or len(prompts)
    parts = [
        generate(
            sampler,
            weights,
            prompts[first : first + size],
            config.sampling,
            stop_ids=stop_ids,
            seeds=seeds[first : first + size],
            prompt_length=config.prompt_length,
        )
        for first in range(0, len(prompts), size)
    ]
    out = Completions(*map(np.concatenate, zip(*parts, strict=True)))
    tokens_BT = np.zeros((len(prompts), config.row_length), np.int32)
    for row, (prompt, length) in enumerate(zip(prompts, out.lengths_B, strict=True)):
        tokens_BT[row, : len(prompt)] = prompt
        tokens_BT[row, len(prompt) : len(prompt) + length] = out.tokens_BC[row, :length]
    return Rollout(
        tokens_BT=tokens_BT,
        prompt_lengths_B=np.array([len(prompt) for prompt in prompts], np.int32),
        response_lengths_B=out.lengths_B,
        stopped_B=out.stopped_B,
        sampler_logprobs_BC=out.sample_logprobs_BC,
    )


def check_prompt_lengths(
    prompts: Sequence[Sequence[int]], config: PPOConfig, names: Sequence[str] | None = None
) -> None:
    """Raise ``PromptError`` for a prompt that does not fit, by name (default: its number)."""
    for name, prompt in zip(names or range(len(prompts)), prompts, strict=True):
        if len(prompt) > config.prompt_length:
            raise PromptError(
                f"prompt {name} has {len(prompt)} tokens, ppo.prompt_length is {config.prompt_length}; "
                "raise it or shorten the prompt"
            )


def check_context(max_context: int, config: PPOConfig, *, what: str) -> None:
    """Raise ``ConfigError`` unless a row fits into the context of a model."""
    require(
        config.row_length <= max_context,
        f"ppo.prompt_length + ppo.response_length = {config.row_length} is beyond the context {max_context} "
        f"of the {what}; lower one of them",
    )


def response_mask(rollout: Rollout) -> jax.Array:
    """mask_BC, True for the tokens of the response, incl. the stop token."""
    num_tokens = rollout.sampler_logprobs_BC.shape[1]
    return jnp.arange(num_tokens) < jnp.asarray(rollout.response_lengths_B)[:, None]


def response_tokens(rollout: Rollout) -> jax.Array:
    """tokens_BC of the responses; past their ends it is padding."""
    return jnp.take_along_axis(rollout.tokens_BT, _before(rollout) + 1, axis=1)


def response_logits(model: Transformer, params: Params, rollout: Rollout, *, temperature: float) -> jax.Array:
    """Logits that each token of the response was drawn from, over the temperature, float32 (B, C, V).

    0 where masked, so that whatever stands there has no gradient.
    """
    positions_BT = jnp.broadcast_to(jnp.arange(rollout.tokens_BT.shape[1]), rollout.tokens_BT.shape)
    hidden_BTD, _ = model.apply(
        {"params": params},
        rollout.tokens_BT,
        segment_ids_BT=(positions_BT < row_lengths(rollout)[:, None]).astype(jnp.int32),
        positions_BT=positions_BT,
        method="hidden",
    )
    hidden_BCD = jnp.take_along_axis(hidden_BTD, _before(rollout)[..., None], axis=1)
    logits_BCV = model.apply({"params": params}, hidden_BCD, method="unembed") / temperature
    return jnp.where(response_mask(rollout)[..., None], logits_BCV, 0.0)


def response_logprobs(
    model: Transformer, params: Params, rollout: Rollout, *, temperature: float
) -> jax.Array:
    """Log-probability of each token of the response at ``temperature``, float32 (B, C)."""
    logits_BCV = response_logits(model, params, rollout, temperature=temperature)
    return token_logprobs(logits_BCV, response_tokens(rollout))


def response_values(model: ScoreModel, params: Params, rollout: Rollout) -> ResponseValues:
    """Values before each token of the response and after its last one."""
    values_BT = token_scores(model, params, rollout.tokens_BT, row_lengths(rollout))
    last_B1 = (row_lengths(rollout) - 1)[:, None]
    return ResponseValues(
        jnp.take_along_axis(values_BT, _before(rollout), axis=1),
        jnp.take_along_axis(values_BT, last_B1, axis=1)[:, 0],
    )


def row_lengths(rollout: Rollout) -> jax.Array:
    """Tokens of each row, prompt and response."""
    return jnp.asarray(rollout.prompt_lengths_B) + rollout.response_lengths_B


def map_rows(function: Callable[[Rollout], Tree], rollout: Rollout, *, parts: int) -> Tree:
    """``function`` of a part of the rows at a time, one after another; results in the order of the rows."""
    if parts == 1:
        return function(rollout)
    results = jax.lax.map(function, split_rows(rollout, parts))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), results)


def _before(rollout: Rollout) -> jax.Array:
    """Positions (B, C) that predict the tokens of the response; where those have ended any that exists."""
    length, num_tokens = rollout.tokens_BT.shape[1], rollout.sampler_logprobs_BC.shape[1]
    before_BC = jnp.asarray(rollout.prompt_lengths_B)[:, None] - 1 + jnp.arange(num_tokens)
    return jnp.minimum(before_BC, length - 2)  # beyond the row jax would fill in NaN, also in gradients
