"""Every pytree that flows from one stage to the next: read this file to see how data flows.

Letters in field names are dimensions, see ``shapes.py``.
"""

from typing import Any, NamedTuple

Array = Any
"""A ``jax.Array`` or ``numpy.ndarray``: the same structs live on the host and on devices."""

Params = Any
"""Nested dict of arrays, the layout of ``model/transformer.py``."""


class TokenBatch(NamedTuple):
    """Packed token rows for next-token training, scoring or evaluation.

    ``targets_BT[b, t]`` is the token that follows ``tokens_BT[b, t]`` in the same document.
    Segment 0 is padding; a token attends only within its own segment.
    """

    tokens_BT: Array  # int32
    targets_BT: Array  # int32
    loss_mask_BT: Array  # float32, 1 where the target counts
    segment_ids_BT: Array  # int32, 0 = padding, then 1, 2, ... per document in the row
    positions_BT: Array  # int32, restart at 0 in every segment
    source_ids_B: Array  # int32, index of the data source the row was drawn from


class PreferenceBatch(NamedTuple):
    """Pairs of whole dialogues that differ in the last answer: response 0 was chosen, 1 rejected (C = 2).

    A row holds up to P pairs, one behind another. What both dialogues of a pair begin with stands there once,
    and is the prefix of what follows in each (``data/branches.py``).
    """

    tokens_BT: Array  # int32
    segment_ids_BT: Array  # int32, 0 = padding
    positions_BT: Array  # int32, in the whole dialogue
    last_BPC: Array  # int32, where the stop token of each response stands; -1: no such pair
    margin_BP: Array  # float32, by which the chosen score should be higher
    safe_BPC: Array  # int32, 1 safe, 0 unsafe, -1 unknown
    prefix_ids_BT: Array | None = None  # int32, segment that a token sees besides its own; None: nobody does


class KVCache(NamedTuple):
    """Keys (already rotated) and values of every layer, plus what each slot holds.

    Slots are shared by the rows of a batch: the next write of every row goes to ``index``.
    Validity and order come from ``segment_ids_BS`` and ``positions_BS``, never from the slot
    number, so ragged prompts need no shifting. Of a model with unstacked layers, keys and values
    are tuples of L arrays.
    """

    k_LBKSH: Array | tuple[Array, ...]
    v_LBKSH: Array | tuple[Array, ...]
    segment_ids_BS: Array  # int32, 0 = empty slot
    positions_BS: Array  # int32
    index: Array  # int32 scalar, first free slot


class ModelOutput(NamedTuple):
    """What one forward pass gives. ``cache`` is None unless one was passed in."""

    logits_BTV: Array  # float32
    cache: KVCache | None


class TrainState(NamedTuple):
    """All that training needs to continue bit for bit, next to the config and the data.

    No key: no update draws anything (the architecture has no dropout); what samples has seeds of its own.
    """

    step: Array  # int32 scalar, number of updates done = index of the next batch
    params: Params  # float32 master weights
    opt_state: Any


class Mean(NamedTuple):
    """A mean that is not divided yet, so that micro-batches, hosts and devices add up exactly."""

    total: Array  # float32
    weight: Array  # float32, how many values are in ``total``, or the sum of their weights


class LossSums(NamedTuple):
    """Sums over a batch, so that micro-batches, hosts and devices add up exactly.

    What is minimised is ``loss_sum / weight`` of the whole batch; the rest is only reported.
    """

    loss_sum: Array  # float32: nats over counted tokens, over pairs, ...
    weight: Array  # float32, how many tokens, pairs, ... are in ``loss_sum``, or the sum of their weights
    means: dict[str, Mean]  # by the name of the metric
    totals: dict[str, Array]  # the same, for metrics that are sums themselves


class Completions(NamedTuple):
    """Sampled continuations of a batch of prompts (C new tokens at most per row)."""

    tokens_BC: Array  # int32, -1 after the end
    lengths_B: Array  # int32, generated tokens incl. the stop token
    raw_logprobs_BC: Array  # float32, log-softmax of the untempered logits
    sample_logprobs_BC: Array  # float32, under the distribution that was sampled from
    stopped_B: Array  # bool, True if a stop token ended the row


class Rollout(NamedTuple):
    """One sampled answer per row (T = prompt and response, C = response), what PPO begins with."""

    tokens_BT: Array  # int32
    prompt_lengths_B: Array  # int32
    response_lengths_B: Array  # int32, incl. the stop token
    stopped_B: Array  # bool, a stop token ended the answer
    sampler_logprobs_BC: Array  # float32, what the sampler says about its tokens, at its temperature


class ResponseValues(NamedTuple):
    """What a value model says about a response."""

    values_BC: Array  # float32, before each token
    final_values_B: Array  # float32, after the last one


class Experience(NamedTuple):
    """Answers and all that the updates of PPO need to know about them; fixed while they last."""

    rollout: Rollout
    behaviour_logprobs_BC: Array  # of the policy before the first update, by the trainer's forward pass
    reference_logprobs_BC: Array
    advantages_BC: Array  # whitened; only shifted if the divergence stands in the loss
    values_BC: Array  # before the first update
    returns_BC: Array  # before the whitening of the advantages


class PPOState(NamedTuple):
    """Everything that PPO changes; ``iteration`` is the number of those done."""

    iteration: int
    policy: TrainState
    value: TrainState
