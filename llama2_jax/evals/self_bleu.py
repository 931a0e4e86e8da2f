"""Self-BLEU: how alike several answers to one prompt are (Zhu et al. 2018; Llama 2, Figure 21; DISC-2, D78).

The BLEU-4 of each answer with all others as its references, from 0 (nothing in common) to 100 (all the
same); the lower, the more diverse. Computed by sacrebleu: its tokenizer 13a, case kept, smoothing "exp",
and for answers of fewer than four tokens only the orders that they have.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama2_jax.config import ConfigError, require

SelfBleu = Callable[[Sequence[str]], float]
"""Answers to one prompt to their mean Self-BLEU."""


class Spread(NamedTuple):
    """Mean and standard deviation over prompts, the latter with n - 1."""

    mean: float
    deviation: float
    prompts: int


def self_bleu_scorer() -> SelfBleu:
    """The mean BLEU of answers, each against the others; an answer without text has 0.

    Raises:
      ConfigError: sacrebleu is not installed; when called, fewer than two answers.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ConfigError(
            "Self-BLEU needs sacrebleu; install it with: pip install 'llama2_jax[analysis]'"
        ) from error
    bleu = BLEU(effective_order=True)

    def self_bleu(answers: Sequence[str]) -> float:
        require(
            len(answers) > 1, f"Self-BLEU of {len(answers)} answer has no other to compare with; sample two"
        )
        others = (
            bleu.sentence_score(one, [*answers[:i], *answers[i + 1 :]]) for i, one in enumerate(answers)
        )
        return statistics.fmean(min(100.0, found.score) for found in others)  # rounding may pass 100

    return self_bleu


def spread(values: Sequence[float]) -> Spread:
    """Of the Self-BLEU of two prompts or more."""
    return Spread(statistics.fmean(values), statistics.stdev(values), len(values))
