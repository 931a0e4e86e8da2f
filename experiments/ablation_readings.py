"""Held-out documents read by the variants of an ablation, each through the context that it was trained with.

Beyond its context a model is not run: its rotary angles there were never trained, and what is measured would
be that and not what it makes of less text. It reads the last tokens instead, through a window that moves by
half of its length (``llama2_jax/evals/document_loss.py``). A model of longer context is also read through the
shortest window of all: the same parameters, so what is lost is what the farther context gave.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.corpus import TokenisedCorpus
from llama2_jax.data.jsonl import read_rows, write_rows
from llama2_jax.evals.document_loss import document_nats, position_edges, sums_by_position
from llama2_jax.pretrained import LoadedModel
from llama2_jax.sharding.processes import files_at_rest

STRETCHES = 8  # of positions, up to the longest context


class Reading(NamedTuple):
    """A variant and the tokens that it sees at once."""

    variant: str
    window: int


class Losses(NamedTuple):
    """What one reading found, document by document (D)."""

    tokens_D: np.ndarray  # predicted ones
    nats_D: np.ndarray
    by_position: np.ndarray  # (documents that fill the longest context, STRETCHES), nats


def readings(contexts: Mapping[str, int]) -> dict[str, Reading]:
    """Every variant through its own context, and the longer ones through the shortest as well."""
    shortest = min(contexts.values())
    own = {name: Reading(name, context) for name, context in contexts.items()}
    cut = {
        f"{name}_read_by_{shortest}": Reading(name, shortest)
        for name, context in contexts.items()
        if context > shortest
    }
    return own | cut


def check_heldout(heldout: TokenisedCorpus, contexts: Mapping[str, int]) -> None:
    """Raise ``ConfigError`` for held-out text of which nothing could be said after the training.

    Intervals need documents to differ, and positions of contexts documents that fill the longest.
    """
    longest = max(contexts.values())
    long = int((heldout.lengths >= longest).sum())
    is_enough = len(heldout) > 1 and (long > 1 or len(set(contexts.values())) == 1)
    require(
        is_enough,
        f"config.pretrain.data.heldout has {len(heldout)} document(s), {long} of them of {longest} tokens "
        "or more; intervals need at least two, and contexts are compared in documents that fill them: give "
        "more, or longer ones",
    )


def read_heldout(
    path: Path, loaded: LoadedModel, heldout: TokenisedCorpus, *, window: int, longest: int, batch_size: int
) -> None:
    """Write a row per document to ``path``, the losses of all of its tokens summed.

    Args:
      window, batch_size: see ``document_nats``.
      longest: of the contexts compared.
    """
    edges = position_edges(longest, STRETCHES)
    documents = [heldout[index] for index in range(len(heldout))]
    all_nats = document_nats(loaded.model, loaded.params, documents, window=window, batch_size=batch_size)
    rows = (
        {
            "document": index,
            "tokens": len(nats),
            "nats": float(nats.sum()),
            "nats_by_position": sums_by_position(nats, edges),
        }
        for index, nats in enumerate(all_nats)
    )
    write_rows(path, rows)


def read_losses(path: Path) -> Losses:
    """What ``read_heldout`` wrote."""
    with files_at_rest(path.parent):
        rows = read_rows(path)
    long = [row["nats_by_position"] for row in rows if row["nats_by_position"] is not None]
    return Losses(
        np.array([row["tokens"] for row in rows]),
        np.array([row["nats"] for row in rows]),
        np.array(long).reshape(-1, STRETCHES),
    )


def stretch_sizes(longest: int) -> np.ndarray:
    """Predicted tokens in each stretch of positions; the first token of a document is not predicted."""
    sizes = np.diff(position_edges(longest, STRETCHES))
    sizes[0] -= 1
    return sizes


def heldout_path(workdir: Path, name: str) -> Path:
    """Where a reading is kept."""
    return workdir / "heldout" / f"{name}.jsonl"
