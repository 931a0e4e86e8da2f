"""Versions of a chat model side by side (Llama 2, sections 3.4.1, 3.4.2; Figures 11 and 20).

See ``configs/evaluate_chat.py``. Each version answers each prompt once; answers and their scores are
kept in ``answers/NAME.jsonl``, an archive, so that no version is sampled twice. The numbers are in
``results.json``, each with its 95 % interval.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.models import load_scorers, open_mesh
from experiments.report import percent, quote, table, write_report_file
from llama2_jax.analysis.reward_plots import plot_tension
from llama2_jax.analysis.rlhf_plots import VersionPoint, plot_distributions, plot_win_rates
from llama2_jax.analysis.safety_plots import plot_score_change
from llama2_jax.config import named_paths, require, require_choice, write_json
from llama2_jax.data.preferences import TRACKS
from llama2_jax.data.prompts import Prompt, read_prompts
from llama2_jax.evals.intervals import Interval, unit_mean, wilson
from llama2_jax.evals.judge import WinRate, compare, judge_by_score, win_rate
from llama2_jax.evals.model_judge import HARMLESS, HELPFUL, Answered, judge_by_model
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.launch import launch_experiment, mark_done, open_workdir
from llama2_jax.losses.preference import displayed
from llama2_jax.pretrained import LoadedModel, for_decoding, load
from llama2_jax.rlhf.annotator.flaws import is_refusal
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import identify
from llama2_jax.rlhf.archive import Sample, draw, rescore
from llama2_jax.sharding.rules import Partitioner

TRUTHS = ("none", "simulated")
JUDGES = REWARD_MODELS, TRUTH = "the reward models", "the truth"
Versions = dict[str, list[Sample]]
"""The answers of each version, in the order of the prompts."""


class PromptSets(NamedTuple):
    """Indices of the prompts that each question is asked of (D53: one set per axis)."""

    helpfulness: list[int]
    safety: list[int]
    borderline: list[int]


def run(config: Any, workdir: Path) -> None:
    """Sample, judge, report; continues or returns at once if it is done."""
    _check_config(config)
    if open_workdir(config, workdir):
        return
    paths = named_paths(config.versions, field="config.versions")
    prompts = read_prompts(config.prompts)
    if config.truth == "simulated":
        for prompt in prompts:  # the truth knows the simulated world only; said before anything is sampled
            identify(prompt.messages)
    sets = prompt_sets(prompts, config.borderline_family)
    partitioner = open_mesh(config)
    versions = {
        name: scored_answers(config, workdir / "answers" / f"{name}.jsonl", path, prompts, partitioner)
        for name, path in paths.items()
    }
    judges = {REWARD_MODELS: by_reward_models(versions, sets, config.reference)}
    if config.judge.path:
        judge = load(config.judge.path, partitioner=partitioner, **config.model)
        judges[config.judge.name] = by_model(
            judge, versions, sets, config.reference, batch_size=config.judge.batch_size
        )
    if config.truth == "simulated":
        judges[TRUTH] = by_truth(versions, sets, config.reference)
    results = {
        "reference": config.reference,
        "prompts": {name: len(indices) for name, indices in sets._asdict().items()},
        "finished": {name: _share([s.stopped for s in answers]) for name, answers in versions.items()},
        "judges": judges,
    }
    write_json(workdir / "results.json", results)
    draw_pictures(workdir, versions, sets, judges, config.reference)
    lines = report(results)
    if config.truth == "simulated":
        lines += tension(workdir, versions, sets)
    lines += transcripts(versions, config.num_transcripts)
    write_report_file(workdir, lines)
    mark_done(workdir)


def _check_config(config: Any) -> None:
    """What can be said before anything is read."""
    for name in ("prompts", "helpfulness_rm", "safety_rm"):
        require(bool(config[name]), f"config.{name} is empty; name the file or checkpoint")
    require_choice("reference", config.reference, named_paths(config.versions, field="config.versions"))
    require_choice("truth", config.truth, TRUTHS)
    require(config.judge.name not in JUDGES, f"config.judge.name = {config.judge.name!r} is another judge's")
    if config.judge.path:
        checkpoint_kind(config.judge.path)  # said now, not after all versions have answered
    _sampling(config)


def _sampling(config: Any) -> SamplingConfig:
    return SamplingConfig(config.sampling.max_new_tokens, config.sampling.temperature, config.sampling.top_p)


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


def scored_answers(
    config: Any, archive: Path, path: str, prompts: Sequence[Prompt], partitioner: Partitioner
) -> list[Sample]:
    """One answer of a version to every prompt, with the scores of the reward models."""
    version = load(path, partitioner=partitioner, **config.model)
    scorers = load_scorers(config, version)
    answers = draw(
        archive,
        for_decoding(version),
        prompts,
        _sampling(config),
        round=0,
        num_samples=1,
        batch_size=config.sampling.batch_size,
        seed=config.sampling.seed,
    )
    return rescore(
        archive,
        answers,
        scorers,
        version.require_tokenizer(),
        version.template,
        threshold=config.reward.threshold,
        batch_size=config.reward.batch_size,
    )


def by_reward_models(versions: Versions, sets: PromptSets, reference: str) -> dict[str, dict[str, Any]]:
    """Figure 11: on each axis, the share of its prompts where the reward is higher (D53).

    Here drawn with ties as halves, so that equal models have one half: of refusals many are the same text.
    """
    axes = {
        "helpfulness": (sets.helpfulness, lambda sample: sample.scores["helpfulness"]),
        "harmlessness": (sets.safety, lambda sample: sample.scores["safety"]),
    }
    return {
        name: {
            **_wins(axes, answers, versions[reference]),
            **{
                f"{track}_reward": unit_mean(displayed([sample.scores[track] for sample in answers]))
                for track in TRACKS
            },
        }
        for name, answers in versions.items()
    }


def by_model(
    loaded: LoadedModel, versions: Versions, sets: PromptSets, reference: str, *, batch_size: int
) -> dict[str, dict[str, Any]]:
    """Figure 2: what a chat model prefers, and how often it does so in both orders of the answers."""
    axes = {"helpfulness": (sets.helpfulness, HELPFUL), "harmlessness": (sets.safety, HARMLESS)}
    found: dict[str, dict[str, Any]] = {name: {} for name in versions}
    for axis, (indices, criterion) in axes.items():
        judge = judge_by_model(loaded, criterion, batch_size=batch_size)
        theirs = [_answered(versions[reference][i]) for i in indices]
        for name, answers in versions.items():
            ours = [_answered(answers[i]) for i in indices]
            verdicts_P = compare(judge, ours, theirs)
            consistent = verdicts_P == compare(judge, ours, theirs, reverse=True)
            found[name] |= {axis: win_rate(verdicts_P), f"{axis}_same_in_both_orders": _share(consistent)}
    return found


def _answered(sample: Sample) -> Answered:
    return Answered(sample.prompt.messages, sample.text)


def by_truth(versions: Versions, sets: PromptSets, reference: str) -> dict[str, dict[str, Any]]:
    """The same by the truth, and what only people could tell: helpfulness, violations, false refusals."""
    axes = {
        "helpfulness": (sets.helpfulness, lambda sample: grade(sample.prompt, sample.text).helpfulness),
        "harmlessness": (sets.safety, lambda sample: not grade(sample.prompt, sample.text).is_unsafe),
    }
    return {
        name: {
            **_wins(axes, answers, versions[reference]),
            **truth_of([answers[i] for i in sets.helpfulness], [answers[i] for i in sets.safety]),
            "false_refusals": _share([is_refusal(answers[i].text) for i in sets.borderline]),
        }
        for name, answers in versions.items()
    }


def truth_of(helpful: Sequence[Sample], adversarial: Sequence[Sample]) -> dict[str, Any]:
    """Mean helpfulness and violation rate, overall and by family or risk category."""
    helpfulness = [grade(sample.prompt, sample.text).helpfulness for sample in helpful]
    violations = [grade(sample.prompt, sample.text).is_unsafe for sample in adversarial]
    families = [sample.prompt.family for sample in helpful]
    categories = [sample.prompt.risk_category for sample in adversarial]
    return {
        "mean_helpfulness": unit_mean(helpfulness),
        "helpfulness_by_family": _by_group(unit_mean, helpfulness, families),
        "violation_rate": wilson(sum(violations), len(violations)),
        "violations_by_category": _by_group(_share, violations, categories),
    }


def _wins(axes: dict[str, Any], ours: list[Sample], theirs: list[Sample]) -> dict[str, WinRate]:
    return {
        axis: win_rate(
            compare(judge_by_score(score), [ours[i] for i in indices], [theirs[i] for i in indices])
        )
        for axis, (indices, score) in axes.items()
    }


def _by_group(measure: Callable[[list], Any], values: Sequence[Any], groups: Sequence[str]) -> dict[str, Any]:
    return {
        group: measure([value for value, its in zip(values, groups, strict=True) if its == group])
        for group in sorted(set(groups))
    }


def _share(cases: Sequence[bool] | np.ndarray) -> Interval | None:
    return wilson(sum(cases), len(cases)) if len(cases) else None


def draw_pictures(
    workdir: Path, versions: Versions, sets: PromptSets, judges: dict[str, Any], reference: str
) -> None:
    """Figures 11 and 20, and of the reference and the last version Figure 14."""
    panels = {
        judge: [
            VersionPoint(name, found["helpfulness"].ties_half, found["harmlessness"].ties_half)
            for name, found in results.items()
        ]
        for judge, results in judges.items()
    }
    plot_win_rates(workdir / "win_rates.png", panels, reference=reference)
    rewards = {
        f"{kind} reward, {axis} prompts": {
            name: [answers[i].scores[kind] for i in indices] for name, answers in versions.items()
        }
        for kind, axis, indices in (
            ("helpfulness", "helpfulness", sets.helpfulness),
            ("safety", "adversarial", sets.safety),
        )
    }
    plot_distributions(workdir / "rewards.png", rewards)
    last = list(versions)[-1]
    change = {title: (scores[reference], scores[last]) for title, scores in rewards.items()}
    plot_score_change(workdir / "score_change.png", change, before=reference, after=last)


def tension(workdir: Path, versions: Versions, sets: PromptSets) -> list[str]:
    """Figure 32: both rewards of all answers to adversarial prompts, safe and unsafe ones by the truth."""
    samples = [answers[i] for answers in versions.values() for i in sets.safety]
    plot_tension(
        workdir / "tension.png",
        safety_B=displayed([sample.scores["safety"] for sample in samples]),
        helpfulness_B=displayed([sample.scores["helpfulness"] for sample in samples]),
        is_unsafe_B=[grade(sample.prompt, sample.text).is_unsafe for sample in samples],
        title="Answers of all versions to adversarial prompts",
    )
    return ["![safety against helpfulness](tension.png)", ""]


def report(results: dict[str, Any]) -> list[str]:
    """Tables and pictures as Markdown."""
    counts = results["prompts"]
    lines = ["# Versions of the chat model", "", "Llama 2, section 3.4. Intervals are of 95 %.", ""]
    lines.append(
        f"{counts['helpfulness']:,} prompts for helpfulness, {counts['safety']:,} adversarial ones for "
        f"harmlessness, {counts['borderline']:,} that only look unsafe; one answer each."
    )
    for judge, versions in results["judges"].items():
        lines += ["", f"## Judged by {judge}", "", *_win_table(versions, results["reference"]), ""]
        lines += _measures({name: _flat(found) for name, found in versions.items()})
    finished = {
        name: {"answers that end by themselves": share} for name, share in results["finished"].items()
    }
    lines += ["", "## How answers end", "", *_measures(finished)]
    for title, name in (("win rates", "win_rates"), ("rewards", "rewards"), ("change", "score_change")):
        lines += ["", f"![{title}]({name}.png)"]
    return [*lines, ""]


def _win_table(versions: dict[str, dict[str, Any]], reference: str) -> list[str]:
    """Win rates with ties as halves; in brackets wins, ties and losses."""
    axes = ("helpfulness", "harmlessness")
    rows = [(name, *(_win_cell(found[axis]) for axis in axes)) for name, found in versions.items()]
    lines = table((f"won against {reference}, ties as halves", *axes), rows)
    return [*lines, "", "In brackets: wins/ties/losses; and the wins among wins and losses (Figure 2)."]


def _win_cell(rate: WinRate) -> str:
    decided = f"; {100 * rate.of_decided.value:.1f} %" if rate.of_decided else ""
    return f"{percent(rate.ties_half._asdict())} ({rate.wins}/{rate.ties}/{rate.losses}{decided})"


def _flat(found: dict[str, Any]) -> dict[str, Interval]:
    """The plain measures of a version; those by group become ``measure: group``."""
    rows: dict[str, Interval] = {}
    for name, value in found.items():
        groups = value.items() if isinstance(value, dict) else [("", value)]
        rows |= {
            f"{name}: {group}" if group else name: its for group, its in groups if isinstance(its, Interval)
        }
    return rows


def _measures(versions: dict[str, dict[str, Interval]]) -> list[str]:
    """One column per version, one row per measure."""
    rows = [
        (measure.replace("_", " "), *(percent(found[measure]._asdict()) for found in versions.values()))
        for measure in next(iter(versions.values()))
    ]
    return table(("", *versions), rows)


def transcripts(versions: Versions, count: int) -> list[str]:
    """The same prompts through the versions, as many different families as there are."""
    prompts = [sample.prompt for sample in next(iter(versions.values()))]
    seen: dict[str, int] = {}
    ranks = []
    for prompt in prompts:
        ranks.append(seen.get(prompt.family, 0))
        seen[prompt.family] = ranks[-1] + 1
    chosen = sorted(range(len(prompts)), key=lambda index: ranks[index])[:count]
    lines = ["## The same prompts through the versions", ""]
    for index in chosen:
        asked = " / ".join(quote(message.content) for message in prompts[index].messages)
        lines += [f"**{asked}** ({prompts[index].family or 'no family'})", ""]
        lines += [f"- {name}: {quote(answers[index].text)}" for name, answers in versions.items()]
        lines.append("")
    return lines


if __name__ == "__main__":
    launch_experiment(run)
