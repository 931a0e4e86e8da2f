"""Prefill and a decode loop that stays on the device.

``start`` reads ragged prompts in one pass; ``advance`` makes up to n tokens and can be called
again (streaming). Prompts are padded on the right: the mask goes by positions, so no row is
shifted, and every row writes to the same cache slot. The loop ends early when every row stopped.

Where this differs from the reference code:

* GEN-1, GEN-8: ``max_new_tokens`` is always a number (256), never "up to the context". Prompts are
  ids; BOS is the caller's, who puts it there for text and in every chat template that has it.
* GEN-2: the limit is of each row, its own new tokens and the context, not of the longest prompt of
  the batch. Batches have no largest size.
* GEN-3: one pass over the whole of all prompts, padded on the right, instead of one token at a time
  after the shortest prompt, with sampled tokens overwritten.
* GEN-4, GEN-5: the same distribution, plus top-k; equally likely tokens stay or go together, where sorting
  would part them; top_p 0 and top_k 1 are the top token alone, ties or not.
* GEN-6: log-probabilities are always returned, raw and as sampled. Those of the prompt (echo), or of
  a prompt that fills the context, are what ``score`` gives; here such a prompt is refused.
* GEN-7: a row ends at the first stop id that it *made*, of any number of ids; one in the prompt, as
  in every dialogue, ends nothing. The id stays in the tokens; texts are cut before it.
* GEN-9: a seed per row, so its draws depend on neither batch nor hosts; numbers as in the model's
  config (float32 unless chosen) instead of fp16; no defaults by program.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import UserError, require
from llama2_jax.generate.sampling import SamplingConfig, SamplingNumbers, row_keys, sample
from llama2_jax.model.cache import empty_cache
from llama2_jax.model.transformer import Transformer
from llama2_jax.shapes import padded_length
from llama2_jax.sharding.processes import on_host, require_same_rows
from llama2_jax.structs import Completions, KVCache, Params

LENGTH_MULTIPLE = 64  # of padded prompts and of new tokens
SLOTS_MULTIPLE = 8  # of a cache: kernels copy it in whole tiles
SEED_LIMIT = 2**32


class DecodeState(NamedTuple):
    """Between two calls of ``advance``.

    What is sampled next can be changed: ``state._replace(logits_BV=process(state.logits_BV))``, then
    ``advance`` by one token.
    """

    cache: KVCache
    logits_BV: jax.Array  # of the next token
    next_positions_B: jax.Array  # int32, of the next token
    seeds_B: jax.Array
    stopped_B: jax.Array  # bool, a stop token was sampled
    count: jax.Array  # int32 scalar, tokens sampled so far


class PromptError(UserError, ValueError):
    """A prompt that the model cannot take."""


class LogitsError(UserError, FloatingPointError):
    """Logits that are not numbers: what was sampled from them means nothing."""


def generate(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    stop_ids: Sequence[int] = (),
    seeds: Sequence[int] | None = None,
    prompt_length: int = 0,
) -> Completions:
    """Continue every prompt by up to ``max_new_tokens``, within the model's context (GEN-2).

    Args:
      prompts: token ids, ragged, none empty.
      stop_ids: sampling one of them ends its row; it is part of the completion.
      seeds: one per row (default 0, 1, ...). What a row draws depends on its seed alone, and its logits on
        its prompt alone up to rounding, which in bfloat16 other companions can change.
      prompt_length: prompts up to this length are padded to it, so that their batches share one
        compiled shape. Every number of rows and every ``max_new_tokens`` is compiled anew.

    Returns:
      Completions on the host; past a row's length tokens are -1 and log-probabilities 0.

    Raises:
      PromptError: a prompt is empty, fills the context, or has ids outside the vocabulary.
      ConfigError: no prompt, not a seed per row, or a seed outside 0 to 2**32 - 1.
      LogitsError: a log-probability is not finite.
    """
    new_tokens = few_lengths(room(model, prompts, sampling), sampling)
    count = len(prompts)
    seeds = range(count) if seeds is None else seeds
    _check_seed_count(seeds, count)
    prompts, seeds = fill_rows(model, prompts, seeds)
    state = start(model, params, prompts, max_new_tokens=new_tokens, seeds=seeds, prompt_length=prompt_length)
    _, completions = advance(
        model, params, state, sampling.numbers, stop_ids=tuple(stop_ids), num_tokens=new_tokens, is_last=True
    )
    found = Completions(*(leaf[:count] for leaf in on_host(completions)))
    check_logprobs(found.raw_logprobs_BC)  # of NaN any token may be the likeliest
    return found


def fill_rows(
    model: Transformer, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
) -> tuple[list[Sequence[int]], list[int]]:
    """Whole rows for every device of a mesh: the last prompt again, whose results are to be dropped."""
    count = len(prompts)
    missing = -count % model.partitioner.batch_shards if count > 1 else 0
    return [*prompts, *[prompts[-1]] * missing], [*seeds, *[0] * missing]


def row_ids(completions: Completions, row: int) -> tuple[list[int], list[int]]:
    """The ids that a row made, and those of its text: without the stop token that ended it."""
    ids = [int(token) for token in completions.tokens_BC[row, : completions.lengths_B[row]]]
    return ids, ids[:-1] if completions.stopped_B[row] else ids


def stream(
    model: Transformer,
    params: Params,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    *,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    chunk: int = 4,
) -> Iterator[int]:
    """The tokens of ``generate`` for one prompt, one after another as they are made."""
    require(chunk > 0, f"chunk = {chunk} must be positive")
    left = room(model, [prompt], sampling)
    # whole chunks: room for the last one, so that every call has the same compiled shape
    slots = -(-few_lengths(left, sampling) // chunk) * chunk
    state = start(model, params, [prompt], max_new_tokens=slots, seeds=[seed])
    while left > 0:
        state, part = advance(
            model, params, state, sampling.numbers, stop_ids=tuple(stop_ids), num_tokens=chunk
        )
        check_logprobs(np.asarray(part.raw_logprobs_BC))
        made = int(part.lengths_B[0])
        yield from (int(token) for token in np.asarray(part.tokens_BC)[0, : min(made, left)])
        left = 0 if bool(part.stopped_B[0]) else left - made


def start(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seeds: Sequence[int],
    prompt_length: int = 0,
) -> DecodeState:
    """Read the prompts: a cache with room for ``max_new_tokens`` more, and the next logits."""
    check_prompts(model, prompts)
    _check_seed_count(seeds, len(prompts))
    check_seeds(seeds)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    padded = _padded(model, int(lengths.max()), prompt_length)
    tokens_BT = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt
    seeds_B = np.asarray(seeds, np.uint32)
    num_slots = -(-(padded + max_new_tokens) // SLOTS_MULTIPLE) * SLOTS_MULTIPLE
    return _prefill(model, params, tokens_BT, lengths, seeds_B, num_slots=num_slots)


def _padded(model: Transformer, longest: int, prompt_length: int) -> int:
    if longest <= prompt_length:
        return prompt_length
    return padded_length(longest, multiple=LENGTH_MULTIPLE, limit=model.config.max_context)


@functools.partial(jax.jit, static_argnames=("model", "num_slots"))
def _prefill(
    model: Transformer, params: Params, tokens_BT: Any, lengths_B: Any, seeds_B: Any, *, num_slots: int
) -> DecodeState:
    batch, padded = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(padded), (batch, padded))
    segment_ids_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
    cache = empty_cache(model.config, batch_size=batch, num_slots=num_slots, stacked=model.stacked)
    hidden_BTD, cache = model.apply(
        {"params": params},
        tokens_BT,
        segment_ids_BT=segment_ids_BT,
        positions_BT=positions_BT,
        cache=cache,
        is_prompt=True,
        method="hidden",
    )
    last_BTD = jnp.take_along_axis(hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)
    logits_BTV = model.apply({"params": params}, last_BTD, method="unembed")
    return DecodeState(
        cache, logits_BTV[:, 0], lengths_B, seeds_B, jnp.zeros((batch,), bool), jnp.zeros((), jnp.int32)
    )


@functools.partial(
    jax.jit, static_argnames=("model", "stop_ids", "num_tokens", "is_last"), donate_argnames=("state",)
)
def advance(
    model: Transformer,
    params: Params,
    state: DecodeState,
    sampling: SamplingNumbers,
    *,
    stop_ids: tuple[int, ...],
    num_tokens: int,
    is_last: bool = False,
) -> tuple[DecodeState, Completions]:
    """Sample up to ``num_tokens`` tokens per row; ``state`` is donated.

    Rows end at a stop id or at the end of the context; all of them when the cache is full.

    Args:
      is_last: nothing is sampled from the state that comes back: the model is not run on the last token.
    """
    num_slots = state.cache.segment_ids_BS.shape[1]
    batch = state.seeds_B.shape[0]
    empty = Completions(
        tokens_BC=jnp.full((batch, num_tokens), -1, jnp.int32),
        lengths_B=jnp.zeros((batch,), jnp.int32),
        raw_logprobs_BC=jnp.zeros((batch, num_tokens), jnp.float32),
        sample_logprobs_BC=jnp.zeros((batch, num_tokens), jnp.float32),
        stopped_B=state.stopped_B,
    )

    def is_live(state: DecodeState) -> jax.Array:
        has_room = state.cache.index < num_slots
        return ~state.stopped_B & (state.next_positions_B < model.config.max_context) & has_room

    def draw(column: jax.Array, state: DecodeState, out: Completions) -> _Drawn:
        live_B = is_live(state)
        count_B = live_B.astype(jnp.int32)
        # whole rows, though the vocabulary may be split: choosing passes over them many times
        logits_BV = model.partitioner.constrain(state.logits_BV, "B.")
        tokens_B, raw_B, drawn_B = sample(logits_BV, row_keys(state.seeds_B, state.count), sampling)
        stopped_B = state.stopped_B | (live_B & _is_any(tokens_B, stop_ids))
        out = Completions(
            tokens_BC=out.tokens_BC.at[:, column].set(jnp.where(live_B, tokens_B, -1)),
            lengths_B=out.lengths_B + count_B,
            raw_logprobs_BC=out.raw_logprobs_BC.at[:, column].set(jnp.where(live_B, raw_B, 0.0)),
            sample_logprobs_BC=out.sample_logprobs_BC.at[:, column].set(jnp.where(live_B, drawn_B, 0.0)),
            stopped_B=stopped_B,
        )
        state = state._replace(
            next_positions_B=state.next_positions_B + count_B, stopped_B=stopped_B, count=state.count + 1
        )
        return _Drawn(column + 1, state, tokens_B, live_B, out)

    def go_on(carry: _Drawn) -> jax.Array:
        return (carry.column < num_tokens) & is_live(carry.state).any()

    def feed_and_draw(carry: _Drawn) -> _Drawn:
        return draw(carry.column, _feed(model, params, carry), carry.out)

    def draw_and_feed(carry: _Drawn) -> _Drawn:
        drawn = draw(carry.column, carry.state, carry.out)
        return drawn._replace(state=_feed(model, params, drawn))

    zero, nothing_B = jnp.zeros((), jnp.int32), jnp.zeros((batch,), jnp.int32)
    if is_last:
        carry = jax.lax.while_loop(go_on, feed_and_draw, draw(zero, state, empty))
    else:  # not the same with one more feed after it: that would compile the model twice
        fresh = _Drawn(zero, state, nothing_B, nothing_B > 0, empty)
        carry = jax.lax.while_loop(go_on, draw_and_feed, fresh)
    return carry.state, carry.out


class _Drawn(NamedTuple):
    """After a token of each row was drawn."""

    column: jax.Array
    state: DecodeState
    tokens_B: jax.Array
    live_B: jax.Array  # rows that drew one
    out: Completions


def _feed(model: Transformer, params: Params, drawn: _Drawn) -> DecodeState:
    """Run the model on the token that each row drew; ended rows leave an empty slot."""
    state = drawn.state
    output = model.apply(
        {"params": params},
        drawn.tokens_B[:, None],
        segment_ids_BT=drawn.live_B[:, None].astype(jnp.int32),
        positions_BT=state.next_positions_B[:, None] - 1,
        cache=state.cache,
    )
    return state._replace(cache=output.cache, logits_BV=output.logits_BTV[:, 0])


def _is_any(tokens_B: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    if not ids:
        return jnp.zeros(tokens_B.shape, bool)
    return (tokens_B[:, None] == jnp.asarray(ids)).any(axis=1)


def room(model: Transformer, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> int:
    """New tokens that the longest-running row may still make."""
    check_prompts(model, prompts)
    return min(sampling.max_new_tokens, model.config.max_context - min(len(prompt) for prompt in prompts))


def few_lengths(new_tokens: int, sampling: SamplingConfig) -> int:
    """Rounded up: every number is compiled anew, and rows end at the context all the same."""
    return padded_length(new_tokens, multiple=LENGTH_MULTIPLE, limit=sampling.max_new_tokens)


def _check_seed_count(seeds: Sequence[int], count: int) -> None:
    require(len(seeds) == count, f"{len(seeds)} seeds for {count} prompts; give one per row")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ``ConfigError`` for a seed that is no integer of 32 bits."""
    for seed in (np.asarray(one).item() for one in seeds):  # of any library: jax compares in 32 bits
        fits = isinstance(seed, int) and 0 <= seed < SEED_LIMIT
        require(fits, f"seed {seed} is outside 0 to {SEED_LIMIT - 1} (32 bits), or no integer")


def check_prompts(
    model: Transformer, prompts: Sequence[Sequence[int]], names: Sequence[Any] | None = None
) -> None:
    """Check prompts before any is answered, which may take hours.

    Raises:
      PromptError: one that the model cannot take, by name (default: its number).
      ConfigError: none at all, or another process has others.
    """
    config = model.config
    require(len(prompts) > 0, "no prompt given")
    for row, prompt in zip(names or range(len(prompts)), prompts, strict=True):
        if len(prompt) == 0:
            raise PromptError(f"prompt {row} is empty; start it with the tokenizer's BOS")
        if len(prompt) >= config.max_context:
            raise PromptError(
                f"prompt {row} has {len(prompt)} tokens, the model's context is {config.max_context} "
                "and at least one token must be left to generate; shorten the prompt"
            )
        check_ids(prompt, config.num_ids, where=f"prompt {row}")
    require_same_rows("prompts", prompts)


def check_logprobs(rows: Sequence[np.ndarray] | np.ndarray, names: Sequence[int] | None = None) -> None:
    """Raise ``LogitsError`` for a row with a value that is not finite, by name (default: its number)."""
    for name, row in zip(names or range(len(rows)), rows, strict=True):
        if not np.isfinite(row).all():
            raise LogitsError(
                f"the logits of row {name} are not finite, so what is made from them means nothing; the "
                "weights hold NaN or overflow: compute in float32, or go back to a sound checkpoint"
            )


def check_ids(ids: Sequence[int], vocab_size: int, *, where: str) -> None:
    """Raise ``PromptError`` for a token id outside the vocabulary (JAX would clamp it silently)."""
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise PromptError(
            f"{where} has token id {wrong}, outside the model's vocabulary 0..{vocab_size - 1}; "
            "was it made with another tokenizer?"
        )
