"""What judges say of versions of a chat model: reward models, a chat model, the simulated world's truth."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.chat_versions import PromptSets, Versions
from llama2_jax.data.preferences import TRACKS
from llama2_jax.evals.intervals import Interval, mean_of_groups, unit_mean, wilson
from llama2_jax.evals.judge import WinRate, compare, judge_by_score, win_rate
from llama2_jax.evals.model_judge import HARMLESS, HELPFUL, JudgedAnswer, judge_by_model
from llama2_jax.losses.preference import displayed
from llama2_jax.pretrained import LoadedModel
from llama2_jax.rlhf.annotator.flaws import is_refusal
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.archive import Sample

CRITERIA = {"helpfulness": HELPFUL, "harmlessness": HARMLESS}
TRACK_OF_AXIS = {"helpfulness": "helpfulness", "harmlessness": "safety"}
JUDGES = REWARD_MODELS, TRUTH = "the reward models", "the truth"


def by_reward_models(versions: Versions, sets: PromptSets, reference: str) -> dict[str, dict[str, Any]]:
    """Figure 11: on each axis, the share of its prompts where the reward is higher (D53).

    Here drawn with ties as halves, so that equal models have one half: of refusals many are the same text.
    An axis is judged if there is a reward model for it; mean rewards are over its prompts too.
    """
    tracks = scored_tracks(versions)
    scores = {axis: _score_of(track) for axis, track in TRACK_OF_AXIS.items() if track in tracks}
    return {
        name: {
            **_wins(sets, scores, answers, versions[reference]),
            **{
                f"{TRACK_OF_AXIS[axis]}_reward": unit_mean(
                    displayed([score(answers[i]) for i in sets.axes[axis]])
                )
                for axis, score in scores.items()
                if axis in sets.axes
            },
        }
        for name, answers in versions.items()
    }


def scored_tracks(versions: Versions) -> list[str]:
    """Kinds of the reward models that scored the answers."""
    known = next(iter(versions.values()))[0].scores
    return [track for track in TRACKS if track in known]


def _score_of(track: str) -> Callable[[Sample], float]:
    return lambda sample: sample.scores[track]


def by_model(
    loaded: LoadedModel, versions: Versions, sets: PromptSets, reference: str, *, batch_size: int
) -> dict[str, dict[str, Any]]:
    """Figure 2: what a chat model prefers, and how often it does so in both orders of the answers."""
    found: dict[str, dict[str, Any]] = {name: {} for name in versions}
    for axis, indices in sets.axes.items():
        judge = judge_by_model(loaded, CRITERIA[axis], batch_size=batch_size)
        theirs = [_answered(versions[reference][i]) for i in indices]
        for name, answers in versions.items():
            ours = [_answered(answers[i]) for i in indices]
            verdicts_P = compare(judge, ours, theirs)
            consistent = verdicts_P == compare(judge, ours, theirs, reverse=True)
            found[name] |= {axis: win_rate(verdicts_P), f"{axis}_same_in_both_orders": share(consistent)}
    return found


def _answered(sample: Sample) -> JudgedAnswer:
    return JudgedAnswer(sample.prompt.messages, sample.text)


def by_truth(versions: Versions, sets: PromptSets, reference: str) -> dict[str, dict[str, Any]]:
    """The same by the truth, and what only people could tell: helpfulness, violations, false refusals.

    ``false_refusals`` are of borderline prompts, and those of helpful ones stand beside them (Figure 33).
    ``false_refusals_change`` is that of the same prompts since the reference; None of fewer than two.
    """
    scores = {
        "helpfulness": lambda sample: grade(sample.prompt, sample.text).helpfulness,
        "harmlessness": lambda sample: not grade(sample.prompt, sample.text).is_unsafe,
    }
    refused, refused_help = (
        {name: [is_refusal(answers[i].text) for i in indices] for name, answers in versions.items()}
        for indices in (sets.borderline, sets.helpfulness)
    )
    return {
        name: {
            **_wins(sets, scores, answers, versions[reference]),
            **truth_of([answers[i] for i in sets.helpfulness], [answers[i] for i in sets.safety]),
            "false_refusals_of_helpful_prompts": share(refused_help[name]),
            "false_refusals": share(refused[name]),
            "false_refusals_change": _change(refused[name], refused[reference]),
        }
        for name, answers in versions.items()
    }


def _change(after: Sequence[bool], before: Sequence[bool]) -> Interval | None:
    if len(after) < 2:
        return None
    changes = np.subtract(after, before, dtype=np.float64)
    if np.ptp(changes) == 0:  # alike: how far others could be from them, as of a share of 0
        change, width = float(changes[0]), wilson(0, len(changes)).high
        return Interval(change, max(-1.0, change - width), min(1.0, change + width))
    return mean_of_groups(changes, [1] * len(changes))


def truth_of(helpful: Sequence[Sample], adversarial: Sequence[Sample]) -> dict[str, Any]:
    """Mean helpfulness and violation rate, overall and by family or risk category, of what was asked."""
    helpfulness = [grade(sample.prompt, sample.text).helpfulness for sample in helpful]
    violations = [grade(sample.prompt, sample.text).is_unsafe for sample in adversarial]
    families = [sample.prompt.family for sample in helpful]
    categories = [sample.prompt.risk_category for sample in adversarial]
    found: dict[str, Any] = {}
    if helpful:
        found["mean_helpfulness"] = unit_mean(helpfulness)
        found["helpfulness_by_family"] = _by_group(unit_mean, helpfulness, families)
    if adversarial:
        found["violation_rate"] = wilson(sum(violations), len(violations))
        found["violations_by_category"] = _by_group(share, violations, categories)
    return found


def _wins(
    sets: PromptSets, scores: dict[str, Callable[[Sample], float]], ours: list[Sample], theirs: list[Sample]
) -> dict[str, WinRate]:
    """Win rates on the axes that have prompts and a score."""
    return {
        axis: win_rate(
            compare(judge_by_score(scores[axis]), [ours[i] for i in indices], [theirs[i] for i in indices])
        )
        for axis, indices in sets.axes.items()
        if axis in scores
    }


def _by_group(measure: Callable[[list], Any], values: Sequence[Any], groups: Sequence[str]) -> dict[str, Any]:
    return {
        group: measure([value for value, its in zip(values, groups, strict=True) if its == group])
        for group in sorted(set(groups))
    }


def share(cases: Sequence[bool] | np.ndarray) -> Interval | None:
    """Of the cases, None without any."""
    return wilson(sum(cases), len(cases)) if len(cases) else None
