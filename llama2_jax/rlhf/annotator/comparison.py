"""What annotators are shown and what they say: the interface of all of them (PREF-1..4)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama2_jax.data.preferences import RATINGS, REJECTED_SAFE
from llama2_jax.data.prompts import Prompt


class Comparison(NamedTuple):
    """Two answers to a prompt, in the order in which they are shown."""

    comparison_id: str
    prompt: Prompt
    first: str
    second: str

    @property
    def track(self) -> str:
        """Prompts tagged for safety are compared on the safety track (PREF-3)."""
        return "safety" if self.prompt.is_safety else "helpfulness"


class Judgement(NamedTuple):
    """Which answer is better, how much, and on the safety track which are unsafe."""

    prefers_first: bool
    rating: str  # one of RATINGS
    unsafe: tuple[bool, bool] | None  # (first, second); None: not asked
    annotator_id: str


Annotator = Callable[[Sequence[Comparison]], list[Judgement]]
"""One judgement of each comparison, in order."""


def rating_of(strength: float, thresholds: Sequence[float]) -> str:
    """The level of a perceived difference without sign: ``thresholds`` rise, one fewer than RATINGS."""
    level = sum(strength >= threshold for threshold in thresholds)
    return RATINGS[len(thresholds) - level]


def safety_bin(chosen_unsafe: bool, rejected_unsafe: bool) -> str:
    """The bin of PREF-4, or ``REJECTED_SAFE``."""
    if chosen_unsafe:
        return "both_unsafe" if rejected_unsafe else REJECTED_SAFE
    return "chosen_safe" if rejected_unsafe else "both_safe"
