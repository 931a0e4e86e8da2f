"""What an evaluation says about each share of safety data: rewards, false refusals (SAFE-7, SAFE-8)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.chat_versions import PromptSets, Versions
from llama2_jax.config import ConfigError, require
from llama2_jax.evals.intervals import Interval, trend_z, unit_mean, wilson
from llama2_jax.evals.refusals import ANSWER, CAPABILITY, REFUSAL, agreement, refusal_kind
from llama2_jax.losses.preference import SAFETY_THRESHOLD, displayed
from llama2_jax.rlhf.annotator.flaws import is_refusal
from llama2_jax.rlhf.archive import Sample, read_archives

Labels = Mapping[tuple[str, str], str]
"""(prompt_id, answer) -> kind, see ``llama2_jax/evals/refusals.py``."""


class Refusals(NamedTuple):
    """Of one model's answers to one set of prompts."""

    rate: Interval
    refused: int
    asked: int
    capability: int  # declined for what the model cannot know or do: not in ``refused``


def read_versions(folder: Path, names: Sequence[str]) -> Versions:
    """The answers of each version, one to each prompt, in the order of the prompts' ids.

    Raises:
      ConfigError: answers that are not there, or of several models.
    """
    versions = {}
    for name in names:
        path = folder / f"{name}.jsonl"
        require(path.is_file(), f"{path} is not there; continue experiments.safety_scaling in that workdir")
        versions[name] = read_archives([path])
        models = {sample.model for sample in versions[name]}
        require(
            len(models) == 1,
            f"{path} has answers of {len(models)} models; remove {folder.parent} and continue the run",
        )
    return versions


def key(sample: Sample) -> tuple[str, str]:
    """What a label is of."""
    return sample.prompt.prompt_id, sample.text


def all_labels(asked: Sequence[Sample], labels: Labels, *, is_simulated: bool) -> dict[tuple[str, str], str]:
    """The given labels; in the simulated world also the truth about the other answers.

    Raises:
      ConfigError: labels of answers that are not among those asked about.
    """
    keys = {key(sample) for sample in asked}
    foreign = [one for one in labels if one not in keys]
    if foreign:
        raise ConfigError(
            f"{len(foreign)} of {len(labels)} labels are of answers that this run does not have, such as one "
            f"to prompt {foreign[0][0]!r}; label those of this run's to_label.jsonl, which is written anew "
            "where it was moved away"
        )
    truth = {one: REFUSAL if is_refusal(one[1]) else ANSWER for one in keys} if is_simulated else {}
    return {**truth, **labels}


def measure(versions: Versions, sets: PromptSets, labels: Labels) -> dict[str, Any]:
    """All numbers, by measure and version; refusals by the labels, and by the rule where there is none."""
    chosen = {"helpful": sets.helpfulness, "borderline": sets.borderline}
    refusals = {
        which: {
            name: false_refusals([answers[i] for i in indices], labels) for name, answers in versions.items()
        }
        for which, indices in chosen.items()
    }
    asked = dict.fromkeys(
        key(answers[i]) for answers in versions.values() for i in [*sets.helpfulness, *sets.borderline]
    )
    labelled = [one for one in asked if one in labels]
    return {
        "reward": {
            "safety": _rewards(versions, sets.safety, "safety"),
            "helpfulness": _rewards(versions, sets.helpfulness, "helpfulness"),
        },
        "low_safety_reward": {name: _low(answers, sets.safety) for name, answers in versions.items()},
        "false_refusals": refusals,
        "trend_z": {which: _trend(list(own.values())) for which, own in refusals.items()},
        "rule": agreement([refusal_kind(text) for _, text in labelled], [labels[one] for one in labelled]),
        "different_answers": len(asked),
    }


def false_refusals(answers: Sequence[Sample], labels: Labels) -> Refusals:
    """How many of the answers refuse, by their labels or else by the rule."""
    kinds = [labels.get(key(sample)) or refusal_kind(sample.text) for sample in answers]
    refused, asked = kinds.count(REFUSAL), len(kinds)
    return Refusals(wilson(refused, asked), refused, asked, kinds.count(CAPABILITY))


def _trend(found: Sequence[Refusals]) -> float:
    return trend_z([one.refused for one in found], [one.asked for one in found])


def _rewards(versions: Versions, indices: Sequence[int], track: str) -> dict[str, Interval]:
    return {
        name: unit_mean(displayed([answers[i].scores[track] for i in indices]))
        for name, answers in versions.items()
    }


def _low(answers: Sequence[Sample], indices: Sequence[int]) -> Interval:
    low = displayed([answers[i].scores["safety"] for i in indices]) < SAFETY_THRESHOLD
    return wilson(int(low.sum()), len(indices))
