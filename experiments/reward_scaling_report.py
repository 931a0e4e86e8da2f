"""``report.md`` of the scaling of reward models: Figure 6, and whether accuracy still grows."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report import percent, points, table, write_report_file
from llama2_jax.analysis.reward_plots import plot_accuracy_by_data
from llama2_jax.config import build, read_json, write_json
from llama2_jax.data.pair_scores import both_sides, read_by_all, read_pair_scores
from llama2_jax.data.preferences import RATINGS, Preference, read_preferences
from llama2_jax.evals.intervals import Interval, clustered_mean
from llama2_jax.evals.reward_accuracy import RewardReport, correct, evaluate_pairs, prompts_of
from llama2_jax.model.config import ModelConfig, parameter_count
from llama2_jax.train.checkpoint import read_meta

PAPER = {
    "70B, batch 13": (0.634, 0.812),
    "13B": (0.614, 0.756),
    "7B": (0.610, 0.738),
    "GPT-4": (0.586, 0.743),
    "Open Assistant": (0.538, 0.586),
}
"""End points of Figure 6, read off: accuracy on all comparisons, and on the significantly better ones."""

BEST = RATINGS[0]


class OnHeldout(NamedTuple):
    """The held-out comparisons that all models could read, and which of them each model ranks right."""

    pairs: list[Preference]
    reports: dict[str, dict[str, RewardReport]]  # by model and amount
    correct_B: dict[str, dict[str, np.ndarray]]
    left_out: int


def write_report(workdir: Path, models: Sequence[str]) -> None:
    """Write ``report.md``, ``results.json`` and ``accuracy_by_data.png`` from what the stages left."""
    amounts = read_amounts(workdir)
    tested = read_tested(workdir, models, list(amounts))
    own = [found["own"] for found in amounts.values()]
    results = {
        "heldout": len(tested.pairs),
        "left_out": tested.left_out,
        "amounts": amounts,
        "parameters": {name: _parameters(workdir / "rm" / name / next(iter(amounts))) for name in models},
        "reports": tested.reports,
        "growth": growth(tested, own),
    }
    write_json(workdir / "results.json", results)
    plot_accuracy_by_data(
        workdir / "accuracy_by_data.png", _panels(tested, own), title="Held-out accuracy (Figure 6)"
    )
    write_report_file(workdir, [*_accuracy(results), *_growth(results, own), *_ratings(results)])


def read_amounts(workdir: Path) -> dict[str, dict[str, int]]:
    """Comparisons in each amount: ``all``, and those of the ``own`` track."""
    return read_json(workdir / "amounts.json")["amounts"]


def read_tested(workdir: Path, models: Sequence[str], amounts: Sequence[str]) -> OnHeldout:
    """Scores of all reward models on the held-out comparisons."""
    heldout = read_preferences([str(workdir / "amounts" / "heldout.jsonl")], template=None)
    scores = {
        (model, amount): read_pair_scores(
            workdir / "rm" / model / amount / "heldout_scores.jsonl", count=len(heldout)
        )
        for model in models
        for amount in amounts
    }
    kept = read_by_all(scores.values(), len(heldout))
    pairs = [heldout[number] for number in kept]
    sides = {key: both_sides(own, kept) for key, own in scores.items()}
    return OnHeldout(
        pairs,
        {
            model: {amount: evaluate_pairs(pairs, *sides[model, amount]) for amount in amounts}
            for model in models
        },
        {model: {amount: correct(*sides[model, amount]) for amount in amounts} for model in models},
        len(heldout) - len(kept),
    )


def growth(tested: OnHeldout, own: Sequence[int]) -> dict[str, dict[str, dict[str, Interval]]]:
    """What more data and more parameters bring, as differences of accuracy on the same comparisons.

    Args:
      own: comparisons of the own track in each amount.

    Returns:
      by set: for each model ``per_doubling`` (see the function of that name) and ``last_step``, to all of the
      data from the amount that is nearest to half of it; for each but the first ``size``, the gain over the
      model before it with all data. Of sets of one prompt nothing.
    """
    found: dict[str, Any] = {}
    half = nearest_to_half(own)
    for name, kept in _sets(tested.pairs).items():
        prompts = prompts_of([tested.pairs[index] for index in kept])
        if len(set(prompts)) < 2:
            continue
        curves = {model: np.array(list(by.values()))[:, kept] for model, by in tested.correct_B.items()}
        pairs = list(curves.items())
        found[name] = {
            "per_doubling": {
                model: clustered_mean(per_doubling(curve, own), prompts)
                for model, curve in pairs
                if len(own) > 1
            },
            "last_step": {
                model: clustered_mean(curve[-1] - curve[half], prompts)
                for model, curve in pairs
                if len(own) > 1
            },
            "size": {
                f"{larger} over {smaller}": clustered_mean(b[-1] - a[-1], prompts)
                for (smaller, a), (larger, b) in itertools.pairwise(pairs)
            },
        }
    return found


def nearest_to_half(own: Sequence[int]) -> int:
    """Index of the amount, but for the last, that is nearest to half of the last."""
    return int(np.argmin(np.abs(np.array(own[:-1]) - own[-1] / 2))) if len(own) > 1 else 0


def per_doubling(right: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """For each comparison, the slope of being right (0 or 1) over log2 of the amount, by least squares.

    Their mean is the slope of the accuracy: what each doubling of the data brings, by all amounts.

    Args:
      right: (amounts, comparisons).
    """
    doublings = np.log2(np.asarray(sizes, np.float64))
    centred = doublings - doublings.mean()
    return centred @ right / (centred @ centred)


def _sets(pairs: Sequence[Preference]) -> dict[str, list[int]]:
    """Indices of all comparisons, and of those where one answer is significantly better."""
    best = [index for index, pair in enumerate(pairs) if pair.rating == BEST]
    return {"all": list(range(len(pairs))), **({BEST: best} if best else {})}


def _parameters(workdir: Path) -> int:
    return parameter_count(build(ModelConfig, read_meta(workdir)[1]["model"], name="model"))


def _panels(tested: OnHeldout, own: Sequence[int]) -> dict[str, Any]:
    panels = {}
    for name in _sets(tested.pairs):
        panels[_title(name)] = {
            model: [(size, _share(report, name)) for size, report in zip(own, by.values(), strict=True)]
            for model, by in tested.reports.items()
        }
    return panels


def _share(report: RewardReport, name: str) -> Any:
    return report.accuracy if name == "all" else report.by_rating[name]


def _title(name: str) -> str:
    return "All comparisons" if name == "all" else name.replace("_", " ").capitalize()


def _accuracy(results: Mapping[str, Any]) -> list[str]:
    """Figure 6 as two tables, and the paper's end points."""
    models, amounts = results["reports"], results["amounts"]
    lines = ["# Scaling of reward models", "", "Llama 2, section 3.2.2, Figure 6. Intervals are of 95 %.", ""]
    lines += [
        f"All models are tested on the same {results['heldout']:,} held-out comparisons; "
        f"{results['left_out']:,} more are left out, which some model cannot read.",
        "An amount is all comparisons up to that batch, or a share of all; those too long count as well.",
        "In brackets are the parameters of the chat model that a reward model was made from.",
        "", "![accuracy](accuracy_by_data.png)", "",
    ]  # fmt: skip
    names = {f"{name} ({results['parameters'][name]:,})": name for name in models}
    for which in results["growth"]:
        rows = [
            (
                amount,
                f"{size['own']:,}",
                *(percent(_share(models[name][amount], which)) for name in names.values()),
            )
            for amount, size in amounts.items()
        ]
        n = _share(next(iter(next(iter(models.values())).values())), which).size
        lines += [f"{_title(which)}, n = {n:,}:", "", *table(("amount", "own comparisons", *names), rows), ""]
    paper = [(name, f"{100 * all_:.1f} %", f"{100 * best:.1f} %") for name, (all_, best) in PAPER.items()]
    return [
        *lines,
        "The paper's end points, of its own models, comparisons and people:",
        "", *table(("", "all", BEST.replace("_", " ")), paper), "",
    ]  # fmt: skip


def _growth(results: Mapping[str, Any], own: Sequence[int]) -> list[str]:
    """Whether accuracy still grows, with data and with size."""
    lines = ["## Does it still grow?", ""]
    lines += [
        "Differences in points, each of the same comparisons. The intervals say what other comparisons could",
        "have shown, not what another seed of the training could: a few points of one run are no finding.",
        "",
    ]
    rows = [
        (_title(which), quantity, name, points(value), _verdict(value))
        for which, found in results["growth"].items()
        for key, quantity in (
            ("per_doubling", f"each doubling, {own[0]:,} to {own[-1]:,}"),
            ("last_step", f"the last step, {own[nearest_to_half(own)]:,} to {own[-1]:,}"),
            ("size", "size, with all data"),
        )
        for name, value in found[key].items()
    ]
    return [*lines, *table(("comparisons", "what", "model", "gain", ""), rows), ""]


def _ratings(results: Mapping[str, Any]) -> list[str]:
    """Accuracy by rating with all data."""
    last = list(results["amounts"])[-1]
    reports = {name: by[last] for name, by in results["reports"].items()}
    present = [rating for rating in RATINGS if rating in next(iter(reports.values())).by_rating]
    rows = [
        (name, *(str(report.by_rating[rating]) for rating in present)) for name, report in reports.items()
    ]
    header = ("", *(rating.replace("_", " ") for rating in present))
    return ["## By rating, with all data", "", *table(header, rows)]


def _verdict(value: Interval) -> str:
    return "grows" if value.low > 0 else "falls" if value.high < 0 else "not told apart from none"
