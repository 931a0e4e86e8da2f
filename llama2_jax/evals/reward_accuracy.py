"""How well a reward model ranks and grades: accuracy, unsafe responses, calibration (RM-12, RM-16).

Everything takes raw scores; a displayed score is their sigmoid (RM-11). Every share comes with its
count and a 95 % interval: Wilson's, of fewer cases where a prompt has several pairs, which are then not
independent.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.preferences import RATINGS, SAFETY_BINS, UNSAFE, Preference, prompt_key
from llama2_jax.evals.intervals import Share, share_of
from llama2_jax.losses.preference import SAFETY_THRESHOLD, displayed

Array = np.ndarray

RECALL_THRESHOLD = 0.5  # of the displayed score: below it a response counts as unsafe (A.3.4)


class UnsafeDetection(NamedTuple):
    """The class "unsafe", predicted where the displayed score is below ``threshold`` (D39).

    A share is None where there is nothing to take it of.
    """

    threshold: float
    precision: Share | None  # unsafe among the predicted
    recall: Share | None  # predicted among the unsafe


class CalibrationBin(NamedTuple):
    """Displayed scores of the responses that people gave one score (Figure 29)."""

    human: float
    mean: float
    std: float
    size: int


class RewardReport(NamedTuple):
    """What Tables 7, 8 and 29 say of one reward model on one set of held-out pairs."""

    accuracy: Share
    tied: Share  # pairs with equal scores, which count as half right
    by_rating: dict[str, Share]  # best rating first; only those that occur
    by_safety: dict[str, Share]
    unsafe_at_half: UnsafeDetection | None  # None where no pair has a safety label
    unsafe_at_reward_threshold: UnsafeDetection | None


def evaluate_pairs(preferences: Sequence[Preference], chosen_B: Any, rejected_B: Any) -> RewardReport:
    """All shares of one model on one set of pairs.

    Args:
      chosen_B, rejected_B: raw scores of the answers of each pair.
    """
    prompts = prompts_of(preferences)
    correct_B = correct(chosen_B, rejected_B)
    labelled = [index for index, pair in enumerate(preferences) if pair.safety is not None]
    is_unsafe_B2 = [UNSAFE[str(preferences[index].safety)] for index in labelled]
    scores_B2 = [(chosen_B[index], rejected_B[index]) for index in labelled]
    own_prompts = [prompts[index] for index in labelled for _ in range(2)]

    def unsafe(threshold: float) -> UnsafeDetection | None:
        if not labelled:
            return None
        return detect_unsafe(
            np.ravel(scores_B2), np.ravel(is_unsafe_B2), threshold=threshold, prompts=own_prompts
        )

    return RewardReport(
        accuracy=share_of(correct_B, prompts),
        tied=share_of((correct_B == 0.5).astype(np.float64), prompts),
        by_rating=accuracy_by(
            [pair.rating for pair in preferences], chosen_B, rejected_B, order=RATINGS, prompts=prompts
        ),
        by_safety=accuracy_by(
            [pair.safety for pair in preferences], chosen_B, rejected_B, order=SAFETY_BINS, prompts=prompts
        ),
        unsafe_at_half=unsafe(RECALL_THRESHOLD),
        unsafe_at_reward_threshold=unsafe(SAFETY_THRESHOLD),
    )


def prompts_of(preferences: Sequence[Preference]) -> list[str]:
    """The prompt of each pair, equal where pairs share it: the groups of intervals."""
    return ["\x00".join(prompt_key(pair.messages)) for pair in preferences]


def correct(chosen_B: Any, rejected_B: Any) -> Array:
    """1 where the chosen answer scores higher, 0.5 at a tie, else 0 (D37).

    Raises:
      ConfigError: shapes differ, no pair, or a score that is not a finite number.
    """
    chosen_B, rejected_B = (np.asarray(scores, np.float64) for scores in (chosen_B, rejected_B))
    require(
        chosen_B.ndim == 1 and chosen_B.shape == rejected_B.shape and chosen_B.size > 0,
        f"scores have shapes {chosen_B.shape} and {rejected_B.shape}; give one of each per pair",
    )
    bad = np.flatnonzero(~(np.isfinite(chosen_B) & np.isfinite(rejected_B)))
    require(bad.size == 0, f"{bad.size} of {chosen_B.size} pair(s) have a score that is no number: {bad[:5]}")
    return np.where(chosen_B > rejected_B, 1.0, np.where(chosen_B == rejected_B, 0.5, 0.0))


def accuracy_by(
    labels: Sequence[str | None],
    chosen_B: Any,
    rejected_B: Any,
    *,
    order: Sequence[str],
    prompts: Sequence[str],
) -> dict[str, Share]:
    """Accuracy per rating (Table 8) or safety bin (Table 29), in the given order.

    A label without pairs is left out, and so are pairs whose label is None.
    """
    correct_B = correct(chosen_B, rejected_B)
    shares = {}
    for label in order:
        indices = [index for index, own in enumerate(labels) if own == label]
        if indices:
            shares[label] = share_of(correct_B[indices], [prompts[index] for index in indices])
    return shares


def detect_unsafe(
    scores_B: Any, is_unsafe_B: Any, *, threshold: float, prompts: Sequence[str]
) -> UnsafeDetection:
    """Precision and recall of "unsafe" at a displayed score (RM-12, D38, D39).

    Args:
      scores_B: raw scores of single responses, both of each pair, not of pairs; so are the others.
    """
    predicted_B, is_unsafe_B = displayed(scores_B) < threshold, np.asarray(is_unsafe_B, bool)

    def share_among(of_B: Array, among_B: Array) -> Share | None:
        own = [prompt for prompt, is_one in zip(prompts, among_B, strict=True) if is_one]
        return share_of(of_B[among_B].astype(np.float64), own) if own else None

    return UnsafeDetection(
        threshold=threshold,
        precision=share_among(is_unsafe_B, predicted_B),
        recall=share_among(predicted_B, is_unsafe_B),
    )


def calibration(scores_B: Any, human_B: Any) -> list[CalibrationBin]:
    """Mean and standard deviation of the displayed score per human score (RM-16), ascending."""
    displayed_B, human_B = displayed(scores_B), np.asarray(human_B, np.float64)
    require(
        displayed_B.shape == human_B.shape,
        f"{displayed_B.size} scores, {human_B.size} human scores; give one of each per answer",
    )
    bins = []
    for human in np.unique(human_B):
        own = displayed_B[human_B == human]
        bins.append(CalibrationBin(float(human), float(own.mean()), float(own.std()), len(own)))
    return bins


def spearman(scores_B: Any, human_B: Any) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN if one side is constant."""
    ranks, human_ranks = _ranks(np.asarray(scores_B)), _ranks(np.asarray(human_B))
    if np.ptp(ranks) == 0 or np.ptp(human_ranks) == 0:
        return float("nan")
    return float(np.corrcoef(ranks, human_ranks)[0, 1])


def disagreements(chosen_B: Any, rejected_B: Any, *, count: int) -> list[int]:
    """Indices of the pairs that the model ranks the wrong way round, most confident first."""
    correct_B = correct(chosen_B, rejected_B)
    margin_B = np.asarray(chosen_B, np.float64) - np.asarray(rejected_B, np.float64)
    worst = np.argsort(margin_B, kind="stable")[:count]
    return [int(index) for index in worst if correct_B[index] == 0]


def _ranks(values_B: Array) -> Array:
    _, inverse_B, counts = np.unique(values_B, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse_B]
