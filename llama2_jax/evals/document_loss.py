"""Loss of every token of whole documents, read through windows that a model can hold (A.2.1).

``heldout_loss`` cuts packed text into rows, so that how much stands before a token depends on the length of
rows. Models of different context are compared by reading each document alone, from its beginning.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llama2_jax.config import require
from llama2_jax.generate.score import score
from llama2_jax.model.transformer import Transformer
from llama2_jax.structs import Params


class Window(NamedTuple):
    """A stretch of a document that is read at once; what stands before ``counted`` is context only."""

    start: int
    stop: int
    counted: int


def windows(num_tokens: int, *, window: int) -> list[Window]:
    """How a document is read, so that every token but the first is counted once.

    A token that has at most ``window - 1`` tokens before it sees them all. After that the window moves by
    half of its length: a token sees at least the ``window // 2`` and at most the ``window - 1`` before it.
    """
    require(window >= 2, f"a window of {window} token(s) predicts nothing; give at least 2")
    found = [Window(0, min(window, num_tokens), 1)]
    while found[-1].stop < num_tokens:
        stop = min(found[-1].stop + window - window // 2, num_tokens)
        found.append(Window(stop - window, stop, found[-1].stop))
    return found


def document_nats(
    model: Transformer, params: Params, documents: Sequence[np.ndarray], *, window: int, batch_size: int
) -> list[np.ndarray]:
    """Negative log-likelihood in nats of tokens 1, 2, ... of every document, given those before.

    Args:
      documents: ids, BOS first, of at least two tokens each.
      window: tokens that the model sees at once, the predicted one among them; see ``windows``.
      batch_size: windows computed together.

    Raises:
      ConfigError: a document without a token to predict.
      PromptError: a window beyond the model's context, or ids outside the vocabulary.
    """
    for index, tokens in enumerate(documents):
        require(
            len(tokens) > 1,
            f"held-out document {index} has {len(tokens)} token(s) and none to predict; leave it out",
        )
    read = [(tokens, part) for tokens in documents for part in windows(len(tokens), window=window)]
    rows = [tokens[part.start : part.stop].tolist() for tokens, part in read]
    scored = iter(score(model, params, rows, batch_size=batch_size))
    return [
        -np.concatenate(
            [
                next(scored)[part.counted - part.start - 1 :].astype(np.float64)
                for part in windows(len(tokens), window=window)
            ]
        )
        for tokens in documents
    ]


def position_edges(length: int, parts: int) -> list[int]:
    """Ends of ``parts`` (nearly) equal stretches of the first ``length`` positions, 0 first."""
    return [length * part // parts for part in range(parts + 1)]


def sums_by_position(nats: np.ndarray, edges: Sequence[int]) -> list[float] | None:
    """Sums of a document's losses by the number of tokens before, edges[i] to edges[i + 1] - 1.

    None for a document that ends earlier: so all stretches are of the same documents.

    Args:
      nats: of tokens 1, 2, ...: so the first stretch has one less.
    """
    if len(nats) < edges[-1] - 1:
        return None
    from_zero = np.concatenate([[0.0], nats])
    return [float(from_zero[low:high].sum()) for low, high in itertools.pairwise(edges)]
