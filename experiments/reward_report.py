"""``report.md`` of a reward model: accuracy on held-out pairs, scores, and where it disagrees with people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.reward_plots import plot_accuracy, plot_calibration, plot_scores
from llama2_jax.config import to_plain, write_json
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.preferences import Preference
from llama2_jax.data.rated_answers import RatedAnswer, ratings
from llama2_jax.evals.reward_accuracy import (
    RewardReport,
    UnsafeDetection,
    calibration,
    disagreements,
    evaluate_pairs,
    spearman,
)
from llama2_jax.losses.preference import displayed
from llama2_jax.train.metrics import read_metrics


class ScoredPairs(NamedTuple):
    """Raw scores of the two answers of each held-out pair."""

    chosen_B: np.ndarray
    rejected_B: np.ndarray


def write_report(
    workdir: Path,
    config: Any,
    heldout: Sequence[Preference],
    scores: ScoredPairs,
    rows: Sequence[tuple[str, str]],
    more: Sequence[str],
) -> None:
    """Write ``results.json``, ``report.md``, ``scores.png`` and ``accuracy.png``.

    Args:
      rows: of the report's table, before what is computed here.
      more: lines of the report after its pictures.
    """
    title = f"Reward model: {config.kind}"
    found = evaluate_pairs(heldout, *scores)
    write_json(workdir / "results.json", found)
    shown = ScoredPairs(*map(displayed, scores))
    plot_scores(workdir / "scores.png", **shown._asdict(), title=title)
    shares = {"all": found.accuracy, **found.by_rating, **found.by_safety}
    plot_accuracy(workdir / "accuracy.png", {config.kind: shares}, title=title)
    lines = [
        f"# {title}",
        "",
        "Llama 2, section 3.2.2. Shares have their 95 % interval and the number of pairs, of the last four",
        "responses, that they are of.",
        "",
        *table(("", ""), [*rows, *_numbers(workdir, found)]),
        "",
        "![accuracy](accuracy.png)",
        "",
        "![scores](scores.png)",
        "",
        *more,
        *_disagreements(heldout, scores, count=config.eval.num_examples),
    ]
    write_report_file(workdir, lines)


def compare_with_people(
    workdir: Path, config: Any, rated: Sequence[RatedAnswer], scores_B: np.ndarray
) -> list[str]:
    """Write the answers with their scores to ``answers.jsonl``, and ``calibration.png`` (Figure 29)."""
    scored = zip(rated, scores_B, strict=True)
    write_rows(workdir / "answers.jsonl", ({**to_plain(one), "score": float(score)} for one, score in scored))
    measure, ratings_B = ratings(rated)
    plot_calibration(
        workdir / "calibration.png",
        {config.kind: calibration(scores_B, ratings_B)},
        title=f"{len(rated):,} answers that people rated",
        human=f"{measure}, as people judge",
    )
    return [
        "## The score beside people's",
        "",
        f"{len(rated):,} answers of at most {config.data.sequence_length:,} tokens; rank correlation of the "
        f"score with the {measure} that people see: {spearman(scores_B, ratings_B):.2f}.",
        "",
        "![calibration](calibration.png)",
        "",
    ]


def _numbers(workdir: Path, found: RewardReport) -> list[tuple[str, str]]:
    metrics = read_metrics(workdir)
    before, *_, after = [line for line in metrics if "eval/heldout/accuracy" in line]
    updates = [line for line in metrics if "train/loss" in line]
    return [
        ("updates", f"{len(updates):,}"),
        ("loss, first and last update", f"{updates[0]['train/loss']:.3f} to {updates[-1]['train/loss']:.3f}"),
        ("held-out accuracy before training", f"{100 * before['eval/heldout/accuracy']:.1f} %"),
        ("held-out accuracy", str(found.accuracy)),
        ("- pairs with equal scores, which count as half right", str(found.tied)),
        *((f"- rated {name.replace('_', ' ')}", str(share)) for name, share in found.by_rating.items()),
        *((f"- {name.replace('_', ' ')}", str(share)) for name, share in found.by_safety.items()),
        ("mean score difference, held out", f"{after['eval/heldout/score_difference']:.3f}"),
        *_unsafe(found.unsafe_at_half),
        *_unsafe(found.unsafe_at_reward_threshold),
    ]


def _unsafe(found: UnsafeDetection | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    at = f"of unsafe responses at score {found.threshold}"
    return [(f"recall {at}", str(found.recall or "-")), (f"precision {at}", str(found.precision or "-"))]


def _disagreements(heldout: Sequence[Preference], scores: ScoredPairs, *, count: int) -> list[str]:
    found = disagreements(*scores, count=count)
    lines = ["## Where the model disagrees with people", "", *([] if found else ["Nowhere."])]
    for index in found:
        pair = heldout[index]
        lines += [
            f"> **{quote(pair.messages[-1].content)}** (rating: {pair.rating}, safety: {pair.safety})",
            ">",
            f"> chosen, {scores.chosen_B[index]:.2f}: {quote(pair.chosen)}",
            ">",
            f"> rejected, {scores.rejected_B[index]:.2f}: {quote(pair.rejected)}",
            "",
        ]
    return lines
