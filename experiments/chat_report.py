"""``report.md`` of versions of a chat model: win rates, rewards, and the same prompts through all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.chat_judges import CRITERIA, TRUTH, scored_tracks
from experiments.chat_versions import PromptSets, Versions
from experiments.report import percent, points, quote, table, write_report_file
from llama2_jax.analysis.reward_plots import plot_tension
from llama2_jax.analysis.rlhf_plots import VersionPoint, plot_distributions, plot_win_rates
from llama2_jax.analysis.safety_plots import plot_score_change
from llama2_jax.data.preferences import TRACKS
from llama2_jax.evals.intervals import Interval
from llama2_jax.evals.judge import WinRate
from llama2_jax.losses.preference import displayed
from llama2_jax.rlhf.annotator.truth import grade


def write_chat_report(
    workdir: Path, versions: Versions, sets: PromptSets, results: dict[str, Any], *, num_transcripts: int
) -> None:
    """Write the pictures and ``report.md``; ``results`` is the content of ``results.json``."""
    pictures = _draw_pictures(workdir, versions, sets, results)
    lines = [*_report(results), *(f"\n![{title}]({name})" for name, title in pictures.items()), ""]
    write_report_file(workdir, [*lines, *transcripts(versions, num_transcripts)])


def _draw_pictures(
    workdir: Path, versions: Versions, sets: PromptSets, results: dict[str, Any]
) -> dict[str, str]:
    """Figures 11, 20 and 32, and of the reference and the last version Figure 14, as far as they were judged.

    Returns:
      What each file shows.
    """
    reference, tracks, drawn = results["reference"], scored_tracks(versions), {}
    panels = {
        judge: [
            VersionPoint(name, one["helpfulness"].ties_half, one["harmlessness"].ties_half)
            for name, one in found.items()
        ]
        for judge, found in results["judges"].items()
        if CRITERIA.keys() <= found[reference].keys()
    }
    if panels:
        drawn["win_rates.png"] = "win rates"
        plot_win_rates(workdir / "win_rates.png", panels, reference=reference)
    rewards = {
        f"{track} reward, {kind} prompts": {
            name: [answers[i].scores[track] for i in indices] for name, answers in versions.items()
        }
        for track, kind, indices in (
            ("helpfulness", "helpfulness", sets.helpfulness),
            ("safety", "adversarial", sets.safety),
        )
        if track in tracks and indices
    }
    if rewards:
        drawn |= {"rewards.png": "rewards", "score_change.png": "change"}
        plot_distributions(workdir / "rewards.png", rewards)
        last = list(versions)[-1]
        change = {title: (scores[reference], scores[last]) for title, scores in rewards.items()}
        plot_score_change(workdir / "score_change.png", change, before=reference, after=last)
    if TRUTH in results["judges"] and sets.safety and len(tracks) == len(TRACKS):
        drawn["tension.png"] = "safety against helpfulness"
        _draw_tension(workdir, versions, sets)
    return drawn


def _draw_tension(workdir: Path, versions: Versions, sets: PromptSets) -> None:
    """Figure 32: both rewards of all answers to adversarial prompts, safe and unsafe ones by the truth."""
    samples = [answers[i] for answers in versions.values() for i in sets.safety]
    plot_tension(
        workdir / "tension.png",
        safety_B=displayed([sample.scores["safety"] for sample in samples]),
        helpfulness_B=displayed([sample.scores["helpfulness"] for sample in samples]),
        is_unsafe_B=[grade(sample.prompt, sample.text).is_unsafe for sample in samples],
        title="Answers of all versions to adversarial prompts",
    )


def _report(results: dict[str, Any]) -> list[str]:
    """Tables as Markdown."""
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
    return [*lines, "", "## How answers end", "", *_measures(finished)]


def _win_table(versions: dict[str, dict[str, Any]], reference: str) -> list[str]:
    """Win rates with ties as halves; in brackets wins, ties and losses."""
    axes = [axis for axis in CRITERIA if axis in versions[reference]]
    rows = [(name, *(_win_cell(found[axis]) for axis in axes)) for name, found in versions.items()]
    lines = table((f"won against {reference}, ties as halves", *axes), rows)
    return [*lines, "", "In brackets: wins/ties/losses; and the wins among wins and losses (Figure 2)."]


def _win_cell(rate: WinRate) -> str:
    decided = f"; {percent(rate.of_decided)}" if rate.of_decided else ""
    return f"{percent(rate.ties_half)} ({rate.wins}/{rate.ties}/{rate.losses}{decided})"


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
        _measure_row(measure, [found[measure] for found in versions.values()])
        for measure in next(iter(versions.values()))
    ]
    return table(("", *versions), rows)


def _measure_row(measure: str, values: Sequence[Interval]) -> tuple[str, ...]:
    name = measure.replace("_", " ")
    if measure.endswith("_change"):  # a difference of shares
        return (f"{name} in points", *map(points, values))
    return (name, *map(percent, values))


def transcripts(versions: Versions, count: int) -> list[str]:
    """The same prompts through the versions, as many different families as there are.

    With what the reward models give each answer, as in Tables 36 to 38.
    """
    prompts = [sample.prompt for sample in next(iter(versions.values()))]
    seen: dict[str, int] = {}
    ranks = []
    for prompt in prompts:
        ranks.append(seen.get(prompt.family, 0))
        seen[prompt.family] = ranks[-1] + 1
    chosen = sorted(range(len(prompts)), key=lambda index: ranks[index])[:count]
    tracks, lines = scored_tracks(versions), ["## The same prompts through the versions", ""]
    for index in chosen:
        asked = " / ".join(quote(message.content) for message in prompts[index].messages)
        lines += [f"**{asked}** ({prompts[index].family or 'no family'})", ""]
        lines += [
            f"- {name}: {quote(answers[index].text)}{_scores(answers[index].scores, tracks)}"
            for name, answers in versions.items()
        ]
        lines.append("")
    return lines


def _scores(scores: Mapping[str, float], tracks: Sequence[str]) -> str:
    """Displayed, in brackets; nothing of answers without."""
    texts = [f"{track} {displayed(scores[track]):.2f}" for track in tracks]
    return f" ({', '.join(texts)})" if texts else ""
