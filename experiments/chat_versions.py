"""Answers of versions of a chat model, and which prompts measure helpfulness, harmlessness and refusals."""

from collections.abc import Sequence
from typing import NamedTuple

from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.archive import Sample

Versions = dict[str, list[Sample]]
"""The answers of each version, in the order of the prompts."""


class PromptSets(NamedTuple):
    """Indices of the prompts that each question is asked of (D53: one set per axis)."""

    helpfulness: list[int]
    safety: list[int]
    borderline: list[int]

    @property
    def axes(self) -> dict[str, list[int]]:
        """The prompts of each axis that has some."""
        return {
            axis: indices
            for axis, indices in (("helpfulness", self.helpfulness), ("harmlessness", self.safety))
            if indices
        }


def prompt_sets(prompts: Sequence[Prompt], borderline_family: str) -> PromptSets:
    """Which prompts measure what."""
    sets = PromptSets([], [], [])
    for index, prompt in enumerate(prompts):
        if prompt.family == borderline_family:
            sets.borderline.append(index)
        else:
            (sets.safety if prompt.is_safety else sets.helpfulness).append(index)
    return sets
