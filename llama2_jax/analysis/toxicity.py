"""Toxicity of documents from scores of their lines (Llama 2, section 4.1, Figure 13; SPRE-4).

The classifier (the paper's is HateBERT, fine-tuned on ToxiGen) scores lines, and a document has their mean.
Which lines and documents are scored is settled before, in ``experiments/classify.py``: lines with text on
them, of a sample of the English documents (the paper: 10 %, D66).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.analysis import figures
from llama2_jax.data.records import check, is_number

TOXIC = 0.5  # a document of at least this score
BINS = 50  # of the histogram over [0, 1]; TOXIC is an edge


def document_score(line_scores: Any) -> float:
    """Mean of the scores of a document's lines.

    Raises:
      ValueError: no list of numbers in [0, 1], or an empty one.
    """
    check(
        isinstance(line_scores, list) and line_scores, "'line_scores' is not a list with at least one score"
    )
    for score in line_scores:
        check(is_number(score) and 0 <= score <= 1, f"the line score {score!r} is not a number in [0, 1]")
    return math.fsum(line_scores) / len(line_scores)


def score_bin(score: float) -> int:
    """The bin of a document's score, of ``BINS``; the last one includes 1."""
    return min(int(score * BINS), BINS - 1)


def toxic_share(bins: Mapping[int, int]) -> float:
    """Share of the documents whose score is at least ``TOXIC``, from their number in each bin."""
    toxic = sum(count for bin_, count in bins.items() if bin_ >= BINS * TOXIC)
    return toxic / sum(bins.values())


def plot_toxicity(path: Path, sources: Mapping[str, Mapping[int, int]]) -> None:
    """Share of the documents by score, on a logarithmic scale (Figure 13).

    Args:
      sources: name of each source to the number of its documents in each bin.
    """
    figure, axes = figures.subplots(figsize=(7, 4))
    for name, bins in sources.items():
        shares = np.array([bins.get(bin_, 0) for bin_ in range(BINS)]) / sum(bins.values())
        axes.stairs(shares, np.linspace(0, 1, BINS + 1), label=f"{name} (n = {sum(bins.values()):,})")
    axes.axvline(TOXIC, color="gray", linestyle="--", linewidth=1)
    axes.set(yscale="log", xlim=(0, 1), xlabel="toxicity of the document", ylabel="share of documents")
    figures.label_powers(axes.yaxis)
    figures.finish(figure, axes, path)
