"""How much later turns look back at the instruction (Llama 2, Figure 10; GATT-9, D59)."""

from collections.abc import Sequence

import numpy as np

from llama2_jax.model.transformer import Transformer, attention_probabilities
from llama2_jax.sharding.processes import on_host
from llama2_jax.structs import Params


def max_attention(model: Transformer, params: Params, tokens: Sequence[int]) -> np.ndarray:
    """For every token the largest weight on each earlier one, over layers and heads: (T, T).

    Holds the attention of all layers and heads at once: dialogues of a few hundred tokens.
    """
    weights_LBNTS = attention_probabilities(model, params, np.array([tokens], np.int32))
    return on_host(weights_LBNTS.max(axis=(0, 2))[0])


def binned(weights_TS: np.ndarray, size: int) -> np.ndarray:
    """The largest weight in every square of ``size`` neighbouring tokens, the last may be smaller."""
    edges = np.arange(0, len(weights_TS), size)
    return np.maximum.reduceat(np.maximum.reduceat(weights_TS, edges, axis=0), edges, axis=1)


def attention_to(
    weights_TS: np.ndarray, span: tuple[int, int], turns: Sequence[tuple[int, int]]
) -> list[float]:
    """For each turn (first token, end) the mean over its tokens of the largest weight within ``span``."""
    start, stop = span
    return [float(weights_TS[first:end, start:stop].max(axis=1).mean()) for first, end in turns]


def differing_span(tokens: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """First and end index, in ``tokens``, of what differs from ``other`` between equal ends."""
    shorter = min(len(tokens), len(other))
    start = next((i for i in range(shorter) if tokens[i] != other[i]), shorter)
    kept = next((i for i in range(shorter - start) if tokens[-1 - i] != other[-1 - i]), shorter - start)
    return start, len(tokens) - kept
