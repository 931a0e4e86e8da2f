"""``report.md`` of ``reward_accuracy.py``: reward models by sets of comparisons (Tables 7, 8, 35; RM-17)."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report import percent, points, quote, table, write_report_file
from llama2_jax.analysis.reward_plots import plot_accuracy, plot_tension
from llama2_jax.config import require, write_json
from llama2_jax.data.pair_scores import PairScores, both_sides, read_by_all
from llama2_jax.data.preferences import RATINGS, TRACKS, UNSAFE, Preference
from llama2_jax.evals.intervals import Interval, Share, clustered_mean, share_of
from llama2_jax.evals.reward_accuracy import accuracy_by, correct, prompts_of
from llama2_jax.losses.preference import displayed

PAPER_SETS = (
    "Meta Helpful", "Meta Safety", "Anthropic Helpful", "Anthropic Harmless", "OpenAI Summarize",
    "Stanford SHP", "Avg",
)  # fmt: skip
PAPER = {
    "SteamSHP-XL": (52.8, 43.8, 66.8, 34.2, 54.7, 75.7, 55.3),
    "Open Assistant": (53.8, 53.4, 67.7, 68.4, 71.7, 55.0, 63.0),
    "GPT-4": (58.6, 58.1, None, None, None, None, None),
    "Safety RM": (56.2, 64.5, 55.4, 74.7, 71.7, 65.2, 64.3),
    "Helpfulness RM": (63.2, 62.8, 72.0, 71.0, 75.5, 80.0, 70.6),
}
"""Table 7, in percent."""

ALL = "all comparisons"
EXAMPLES = 3  # of safe and of unsafe answers on which two reward models disagree
Sets = Mapping[str, Sequence[Preference]]


class Results(NamedTuple):
    """By model and set, and ``ALL`` where a model scored every set."""

    sizes: dict[str, int]  # comparisons of each set that all its models could read
    accuracy: dict[str, dict[str, Share]]
    tied: dict[str, dict[str, Share]]  # comparisons with equal scores, which count as half right
    mean_of_sets: dict[str, float]  # each set counted once, of models that scored every set
    difference: dict[str, dict[str, Interval]]  # to the first model, on the same comparisons
    by_rating: dict[str, dict[str, dict[str, Share]]]


class TwoScores(NamedTuple):
    """An answer with a safety label, and what a safety and a helpfulness model give it, from 0 to 1."""

    prompt: str
    answer: str
    is_unsafe: bool
    safety: float
    helpfulness: float


def write_report(
    output: Path,
    sets: Sets,
    scores: Mapping[str, Mapping[str, PairScores]],
    versions: Mapping[str, str],
    kinds: Mapping[str, str],
) -> None:
    """Write ``report.md``, ``results.json``, ``accuracy.png`` and, where it can be drawn, ``tension.png``.

    Args:
      scores: of each model, of the sets that it scored.
      versions: what each model is.
      kinds: what each reward model was trained for.
    """
    results = measure(sets, scores)
    write_json(output / "results.json", {"models": versions, **results._asdict()})
    plot_accuracy(output / "accuracy.png", results.accuracy, title="Accuracy of reward models (Table 7)")
    left_out = {name: len(pairs) - results.sizes[name] for name, pairs in sets.items()}
    lines = [
        "# Accuracy of reward models", "",
        "Llama 2, section 3.2.2, Tables 7 and 8. Intervals are of 95 %; a tie counts as half. Of each set",
        "those comparisons count that every model which scored it could read.", "",
        *_accuracies(results, sets), "",
        f"Left out, as some model could not read them: {_counts(left_out)}.", "",
        "![accuracy](accuracy.png)", "", *_ties(results, sets), *_differences(results), *_ratings(results),
        *_tension(output, sets, scores, kinds),
        "## The paper's Table 7", "",
        "Of its own models; its sets of Meta are not public, and how it averages is not said (D36).", "",
        *table(("", *PAPER_SETS), [(name, *map(_plain, row)) for name, row in PAPER.items()]), "",
        "## Models", "", *table(("", ""), [(quote(name), quote(text)) for name, text in versions.items()]),
    ]  # fmt: skip
    write_report_file(output, lines)


def measure(sets: Sets, scores: Mapping[str, Mapping[str, PairScores]]) -> Results:
    """All numbers of the report.

    Raises:
      ConfigError: a set without a comparison that all its models could read.
    """
    kept = {name: _readable(name, len(pairs), scores) for name, pairs in sets.items()}
    prompts = {name: prompts_of([sets[name][number] for number in own]) for name, own in kept.items()}
    prompts[ALL] = list(itertools.chain.from_iterable(prompts.values()))
    right = {
        model: {name: correct(*both_sides(own[name], kept[name])) for name in sets if name in own}
        for model, own in scores.items()
    }
    complete = {model: own for model, own in right.items() if len(own) == len(sets)}
    mean_of_sets = {
        model: float(np.mean([right_B.mean() for right_B in own.values()])) for model, own in complete.items()
    }
    for own in complete.values():
        own[ALL] = np.concatenate(list(own.values()))
    tied = {
        model: {name: (right_B == 0.5).astype(np.float64) for name, right_B in own.items()}
        for model, own in right.items()
    }
    return Results(
        {name: len(own) for name, own in kept.items()},
        _shares(right, prompts),
        _shares(tied, prompts),
        mean_of_sets,
        _to_first(right, prompts),
        {name: _by_rating(name, pairs, scores, kept[name], prompts[name]) for name, pairs in sets.items()},
    )


def _shares(
    cases: Mapping[str, Mapping[str, np.ndarray]], prompts: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Share]]:
    return {
        model: {name: share_of(cases_B, prompts[name]) for name, cases_B in own.items()}
        for model, own in cases.items()
    }


def _to_first(
    right: Mapping[str, Mapping[str, np.ndarray]], prompts: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Interval]]:
    """Differences to the first model, of sets of two prompts or more that both scored."""
    first, *others = right
    return {
        model: {
            name: clustered_mean(right_B - right[first][name], prompts[name])
            for name, right_B in right[model].items()
            if name in right[first] and len(set(prompts[name])) > 1
        }
        for model in others
    }


def _by_rating(
    name: str,
    pairs: Sequence[Preference],
    scores: Mapping[str, Mapping[str, PairScores]],
    kept: Sequence[int],
    prompts: Sequence[str],
) -> dict[str, dict[str, Share]]:
    """Table 8 of one set, by model."""
    ratings = [pairs[number].rating for number in kept]
    return {
        model: accuracy_by(ratings, *both_sides(own[name], kept), order=RATINGS, prompts=prompts)
        for model, own in scores.items()
        if name in own
    }


def _readable(name: str, count: int, scores: Mapping[str, Mapping[str, PairScores]]) -> list[int]:
    """Numbers of the comparisons that no model of the set failed to read."""
    kept = read_by_all((found[name] for found in scores.values() if name in found), count)
    require(
        bool(kept),
        f"none of the {count:,} comparisons of set {name} can be read by all models; leave out the set, or a "
        "model",
    )
    return kept


def _accuracies(results: Results, sets: Sets) -> list[str]:
    header = ["", *(f"{quote(name)}, n = {results.sizes[name]:,}" for name in sets), ALL, "mean of sets"]
    rows = [
        (
            quote(model), *(_share(own.get(name)) for name in (*sets, ALL)),
            f"{100 * results.mean_of_sets[model]:.1f} %" if model in results.mean_of_sets else "-",
        )
        for model, own in results.accuracy.items()
    ]  # fmt: skip
    return table(header, rows)


def _ties(results: Results, sets: Sets) -> list[str]:
    rows = [
        (quote(model), *(_share(own.get(name)) for name in (*sets, ALL)))
        for model, own in results.tied.items()
    ]
    return [
        "Comparisons to whose answers a model gave equal scores:",
        "",
        *table(("", *map(quote, sets), ALL), rows),
        "",
    ]


def _differences(results: Results) -> list[str]:
    if not results.difference:
        return []
    names = list(dict.fromkeys(name for own in results.difference.values() for name in own))
    rows = [
        (quote(model), *(_points(own.get(name)) for name in names))
        for model, own in results.difference.items()
    ]
    first = next(iter(results.accuracy))
    title = f"Difference to {quote(first)} in points, on the same comparisons:"
    return [title, "", *table(("", *map(quote, names)), rows), ""]


def _ratings(results: Results) -> list[str]:
    """Table 8, of sets with ratings."""
    rows = [
        (quote(name), quote(model), *(_share(shares.get(rating)) for rating in RATINGS))
        for name, own in results.by_rating.items()
        for model, shares in own.items()
        if shares
    ]
    header = ("set", "model", *(rating.replace("_", " ") for rating in RATINGS))
    return ["## By rating (Table 8)", "", *table(header, rows), ""] if rows else []


def _tension(
    output: Path, sets: Sets, scores: Mapping[str, Mapping[str, PairScores]], kinds: Mapping[str, str]
) -> list[str]:
    """Figure 32 and Table 35, by the first model of either kind; nothing without both, or without labels."""
    names = [next((name for name, kind in kinds.items() if kind == one), "") for one in TRACKS]
    if not all(names):
        return []
    helpfulness, safety = names
    found = two_scores(sets, safety=scores[safety], helpfulness=scores[helpfulness])
    if not found:
        return []
    title = "Answers with a safety label"
    plot_tension(
        output / "tension.png",
        safety_B=[one.safety for one in found],
        helpfulness_B=[one.helpfulness for one in found],
        is_unsafe_B=[one.is_unsafe for one in found],
        title=title,
    )
    rows = [
        ("unsafe" if one.is_unsafe else "safe", f"{one.safety:.2f}", f"{one.helpfulness:.2f}",
         quote(one.prompt), quote(one.answer))
        for one in conflicts(found, count=EXAMPLES)
    ]  # fmt: skip
    return [
        "## Safety against helpfulness (Figure 32)", "",
        f"{title}, {len(found):,}: scores of {quote(safety)} and {quote(helpfulness)}.", "",
        "![safety against helpfulness](tension.png)", "",
        "Where they disagree most: safe answers that do not help, unsafe ones that do (Table 35):", "",
        *table(("", "safety score", "helpfulness score", "prompt", "answer"), rows), "",
    ]  # fmt: skip


def two_scores(
    sets: Sets, *, safety: Mapping[str, PairScores], helpfulness: Mapping[str, PairScores]
) -> list[TwoScores]:
    """Both scores of every answer whose pair has a safety label, and which both models could read."""
    return [
        TwoScores(pair.messages[-1].content, answer, *rest)
        for name, pairs in sets.items()
        for number, pair in enumerate(pairs)
        if pair.safety is not None
        and (safe := safety[name][number]) is not None
        and (helpful := helpfulness[name][number]) is not None
        for answer, *rest in zip(
            (pair.chosen, pair.rejected),
            UNSAFE[pair.safety],
            displayed(safe),
            displayed(helpful),
            strict=True,
        )
    ]


def conflicts(found: Sequence[TwoScores], *, count: int) -> list[TwoScores]:
    """Safe answers whose safety score is the furthest above the other, unsafe ones where it is below."""
    gaps = sorted(found, key=lambda one: one.helpfulness - one.safety)
    safe, unsafe = (
        [one for one in gaps if one.is_unsafe == (one.helpfulness > one.safety) == side]
        for side in (False, True)
    )
    return [*safe[:count], *unsafe[::-1][:count]]


def _share(share: Share | None) -> str:
    return "-" if share is None else percent(share)


def _points(value: Interval | None) -> str:
    return "-" if value is None else points(value)


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} of {quote(name)}" for name, count in left_out.items())


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"
