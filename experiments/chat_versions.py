"""Answers of versions of a chat model, and which prompts measure helpfulness, harmlessness and refusals."""

from collections.abc import Sequence
from typing import NamedTuple

from llama2_jax.config import require
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.archive import Sample

Versions = dict[str, list[Sample]]
"""The answers of each version, in the order of the prompts."""


class PromptSets(NamedTuple):
    """Indices of the prompts that each question is asked of (D53: one set per axis)."""

    helpfulness: list[int]
    safety: list[int]
    borderline: list[int]


def prompt_sets(prompts: Sequence[Prompt], borderline_family: str) -> PromptSets:
    """Which prompts measure what.

    Raises:
      ConfigError: no prompt for helpfulness, or none for harmlessness.
    """
    sets = PromptSets([], [], [])
    for index, prompt in enumerate(prompts):
        if prompt.family == borderline_family:
            sets.borderline.append(index)
        else:
            (sets.safety if prompt.is_safety else sets.helpfulness).append(index)
    require(
        bool(sets.helpfulness and sets.safety),
        f"config.prompts has {len(sets.helpfulness)} prompts for helpfulness and {len(sets.safety)} tagged "
        "is_safety for harmlessness; both are needed",
    )
    return sets
