"""``report.md`` of the whole recipe: what every stage measured, and a verdict on the paper's claims."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.chat_judges import REWARD_MODELS, TRUTH
from experiments.report import included, percent, points, table, write_report_file
from llama2_jax.analysis.reward_plots import plot_accuracy_by_round, plot_tension
from llama2_jax.config import read_json, write_json
from llama2_jax.data.jsonl import read_rows
from llama2_jax.data.preferences import RATINGS, TRACKS
from llama2_jax.evals.intervals import Interval, Share, trend_z
from llama2_jax.losses.preference import displayed
from llama2_jax.train.checkpoint import read_meta
from llama2_jax.train.metrics import read_metrics

GATT_TURN = 6
GUARD_NOISE = 0.1  # raw scores; a mean of a few hundred answers moves as much by chance
KL_NEAR = 10.0  # nats per answer; the best of 16 samples is 1.8 from the policy, gamed rewards give hundreds
SIGNIFICANT = 1.96  # z at the 5 % level
REFUSALS_RISE = 0.12  # Figure 33: on borderline prompts from 15 % without safety data to 27 % with all of it
MEDIAN_RISE = 0.25  # of the rise of the maximum: more than that is not "the median stays"


class Verdict(NamedTuple):
    """One claim of the paper, what this run measured, and whether it holds here."""

    claim: str
    measured: str
    holds: bool | None  # None: this run cannot tell, ``measured`` says why


def write_report(workdir: Path, versions: Mapping[str, str], reference: str) -> None:
    """Write ``report.md`` and ``verdicts.json`` from what the stages left in their folders."""
    rounds = sorted(workdir.glob("v[0-9]*"), key=lambda path: int(path.name[1:]))
    lines = [
        f"# The way to RLHF-{list(versions)[-1]}",
        "",
        "Llama 2, Figure 4. Every stage has a report of its own:",
        "",
    ]
    lines += [*_stage_table(workdir), "", "## The versions", ""]
    lines += included(workdir / "evaluation" / "report.md", workdir)
    lines += ["", "## Reward models by round", "", *_accuracy_by_round(workdir, rounds)]
    lines += _tension(workdir, rounds[-1])
    lines += ["", "## Rejection sampling", "", *_sampling(rounds)]
    for title, folder in _once(workdir, rounds):
        lines += ["", f"## {title}", "", *included(folder / "report.md", workdir)]
    verdicts = _verdicts(workdir, rounds, list(versions), reference)
    lines += [
        "",
        "## Verdicts",
        "",
        "One run of a small model: a claim that fails here may hold at scale.",
        "",
    ]
    words = {True: "holds", False: "**does not hold**", None: "cannot tell"}
    rows = [(verdict.claim, verdict.measured, words[verdict.holds]) for verdict in verdicts]
    lines += table(("claim of the paper", "measured here", ""), rows)
    write_report_file(workdir, lines)
    write_json(workdir / "verdicts.json", verdicts)


def _once(workdir: Path, rounds: Sequence[Path]) -> list[tuple[str, Path]]:
    """Stages that run once, with their titles, as far as this recipe has them."""
    found = [("Ghost Attention", workdir / "gatt_evaluation")]
    found += [("Context distillation", path / "context_distillation") for path in rounds]
    found += [("PPO", path / "ppo") for path in rounds]
    return [(title, folder) for title, folder in found if (folder / "report.md").exists()]


def _stage_table(workdir: Path) -> list[str]:
    """Wall time of every stage; one that was continued after a stop counts from the last start."""
    stages = read_rows(workdir / "stages.jsonl")
    rows = []
    for stage in stages:
        folder = stage["stage"]
        name = f"[{folder}]({folder}/report.md)" if (workdir / folder / "report.md").exists() else folder
        rows.append((name, f"{stage['secs']:,.0f}"))
    return table(("stage", "seconds"), [*rows, ("all", f"{sum(stage['secs'] for stage in stages):,.0f}")])


def _results(folder: Path) -> dict[str, Any]:
    return read_json(folder / "results.json", default={})


def _accuracy_by_round(workdir: Path, rounds: Sequence[Path]) -> list[str]:
    """Table and picture of held-out accuracy; the held-out pairs are those of all rounds so far."""
    found = {
        kind: {path.name: Share(**_results(path / f"{kind}_rm")["accuracy"]) for path in rounds}
        for kind in TRACKS
    }
    rows = [(kind, *map(percent, by_round.values())) for kind, by_round in found.items()]
    plot_accuracy_by_round(
        workdir / "reward_accuracy.png", found, title="Held-out accuracy of the reward models"
    )
    lines = table(("", *(path.name for path in rounds)), rows)
    return [*lines, "", "![accuracy by round](reward_accuracy.png)"]


def _tension(workdir: Path, last: Path) -> list[str]:
    """Figure 32: the last reward models on answers that people rated, as far as both have scored them."""
    files = {kind: last / f"{kind}_rm" / "answers.jsonl" for kind in TRACKS}
    if not all(path.exists() for path in files.values()):
        return []
    rows = {
        kind: {(str(row["messages"]), row["answer"]): row for row in read_rows(path)}
        for kind, path in files.items()
    }
    rated = {key for key, row in rows["safety"].items() if row["is_unsafe"] is not None}
    both = sorted(rows["helpfulness"].keys() & rated)
    if not both:
        return []
    plot_tension(
        workdir / "tension.png",
        **{f"{kind}_B": displayed([rows[kind][key]["score"] for key in both]) for kind in files},
        is_unsafe_B=[rows["safety"][key]["is_unsafe"] for key in both],
        title="Answers that people rated",
    )
    return ["", "![safety against helpfulness](tension.png)"]


def _sampling(rounds: Sequence[Path]) -> list[str]:
    keys = ("mean_reward", "median_by_n", "max_by_n", "picked_reward", "finished_fraction")
    header = ("round", "mean reward", "median of N", "best of N", "picked", "answers that end")
    rows = []
    for path in rounds:
        found = _results(path / "rejection_sampling")
        values = [found[key][-1] if isinstance(found[key], list) else found[key] for key in keys]
        rows.append((path.name, *(f"{value:.3f}" for value in values)))
    last = rounds[-1].name
    return [*table(header, rows), "", f"![best of N]({last}/rejection_sampling/best_of_n.png)"]


def _verdicts(workdir: Path, rounds: Sequence[Path], names: Sequence[str], reference: str) -> list[Verdict]:
    evaluation = _results(workdir / "evaluation")
    last = rounds[-1]
    judges = evaluation["judges"]
    verdicts = _by_truth(judges.get(TRUTH), reference, names[-1])
    verdicts.append(_by_own_models(judges[REWARD_MODELS], names))
    verdicts.append(_ratings(_results(last / "helpfulness_rm")))
    verdicts.append(_best_of_n(_results(rounds[0] / "rejection_sampling")))
    verdicts.append(_kl(last / "ppo"))
    verdicts.append(_guard(last / "ppo"))
    verdicts.append(_gatt(_results(workdir / "gatt_evaluation")))
    verdicts.append(_distillation(rounds))
    return verdicts


def _by_truth(judged: Mapping[str, Any] | None, first: str, last: str) -> list[Verdict]:
    helpful_claim, safe_claim, refusal_claim = (
        f"{last} is more helpful than {first}, as people judge (section 3.4.2)",
        f"{last} is safer than {first}, as people judge (section 4.4)",
        f"false refusals on borderline prompts rise by no more than {REFUSALS_RISE * 100:.0f} points"
        " (Figure 33)",
    )
    if judged is None:
        claims = (helpful_claim, safe_claim, refusal_claim)
        return [Verdict(claim, "nobody judged the answers of this run", None) for claim in claims]
    before, after = judged[first], judged[last]
    helpful = [Interval.of(found["mean_helpfulness"]) for found in (before, after)]
    unsafe = [Interval.of(found["violation_rate"]) for found in (before, after)]
    verdicts = [
        Verdict(
            helpful_claim,
            f"helpfulness {helpful[0]} to {helpful[1]}",
            helpful[1].is_above(helpful[0]),
        ),
        Verdict(
            safe_claim,
            f"violations {percent(unsafe[0])} to {percent(unsafe[1])}",
            unsafe[0].is_above(unsafe[1]),
        ),
    ]
    return [*verdicts, _false_refusals(refusal_claim, before, after)]


def _false_refusals(claim: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """Of the same prompts: surely fewer points more than in the paper, surely as many, or neither."""
    if after["false_refusals_change"] is None:
        return Verdict(claim, "fewer than two borderline prompts", None)
    change = Interval.of(after["false_refusals_change"])
    shares = [percent(Interval.of(found["false_refusals"])) for found in (before, after)]
    return Verdict(
        claim,
        f"{' to '.join(shares)}; of the same prompts {points(change)} points, in the paper "
        f"{100 * REFUSALS_RISE:+.0f}",
        True if change.high < REFUSALS_RISE else False if change.low > REFUSALS_RISE else None,
    )


def _by_own_models(judged: Mapping[str, Any], names: Sequence[str]) -> Verdict:
    """Figure 11: on both axes no version clearly below the one before it, and the last above the first."""
    axes = ("helpfulness", "harmlessness")
    rates = {axis: [Interval.of(judged[name][axis]["ties_half"]) for name in names] for axis in axes}
    rising = all(
        rates[axis][-1].is_above(Interval(0.5, 0.5, 0.5))
        and not any(old.is_above(new) for old, new in itertools.pairwise(rates[axis]))
        for axis in axes
    )
    texts = [f"{axis} " + ", ".join(f"{100 * rate.value:.0f}" for rate in rates[axis]) for axis in axes]
    return Verdict(
        "win rate by the own reward models rises from version to version (Figure 11)",
        f"% won against {names[0]}, {' to '.join((names[0], names[-1]))}: {'; '.join(texts)}",
        rising,
    )


def _ratings(found: Mapping[str, Any]) -> Verdict:
    """Table 8: a significant trend over the ratings, and no step clearly down."""
    shares = [found["by_rating"][rating] for rating in reversed(RATINGS) if rating in found["by_rating"]]
    levels = [Interval.of(share) for share in shares]
    sizes = [share["size"] for share in shares]
    trend = trend_z([share["value"] * size for share, size in zip(shares, sizes, strict=True)], sizes)
    rising = trend > SIGNIFICANT and not any(old.is_above(new) for old, new in itertools.pairwise(levels))
    return Verdict(
        "reward models are more accurate on clearer preferences (Table 8)",
        f"helpfulness, from unsure to significantly better: {', '.join(map(percent, levels))}; "
        f"trend z = {trend:.1f}",
        rising,
    )


def _best_of_n(found: Mapping[str, Any]) -> Verdict:
    best, median = found["max_by_n"], found["median_by_n"]
    rise, drift = best[-1] - best[0], abs(median[-1] - median[0])
    return Verdict(
        "the best of N samples rises with N, the median stays (Figure 7)",
        f"N = 1 to {len(best)}: best {best[0]:.3f} to {best[-1]:.3f}, "
        f"median {median[0]:.3f} to {median[-1]:.3f}",
        rise > 0 and drift < MEDIAN_RISE * rise,
    )


def _kl(folder: Path) -> Verdict:
    claim = "PPO stays near the reference policy (section 3.2.3)"
    if not (folder / "metrics.jsonl").exists():
        return Verdict(claim, "no PPO in this run", None)
    values = [line["ppo/kl_per_answer"] for line in read_metrics(folder) if "ppo/kl_per_answer" in line]
    return Verdict(
        claim,
        f"KL per answer {values[0]:z.3g} nats at the first iteration, {values[-1]:.3g} at the last "
        f"of {len(values)}",
        all(math.isfinite(value) and value < KL_NEAR for value in values),
    )


def _guard(folder: Path) -> Verdict:
    """RM-18: on held-out prompts the guard must not fall while the reward rises, up to the policy kept."""
    claim = "the reward is not exploited: a model of other data agrees (section 3.4.1)"
    lines = read_metrics(folder)
    judged = {line["step"]: line for line in lines if "eval/guard" in line}
    if len(judged) < 2:
        return Verdict(claim, "no guard in this run", None)
    kept = read_meta(folder)[1]["progress"]["best_step"]
    (reward, guard), (last_reward, last_guard) = (
        (judged[step]["eval/reward"], judged[step]["eval/guard"]) for step in (min(judged), kept)
    )
    return Verdict(
        claim,
        f"PPO on held-out prompts: reward {reward:.3f} to {last_reward:.3f}, "
        f"score of the guard {guard:.3f} to {last_guard:.3f}",
        last_guard >= guard - GUARD_NOISE or last_reward < reward,
    )


def _gatt(found: Mapping[str, Any]) -> Verdict:
    claim = f"Ghost Attention keeps an instruction to turn {GATT_TURN} (Table 30)"
    at = {
        name: [row["accuracy"] for row in rows["training_lists"] if row["turn"] == GATT_TURN]
        for name, rows in found.items()
    }
    if not at or not all(rows and rows[0] for rows in at.values()):
        return Verdict(claim, "not measured at that turn", None)
    without, with_gatt = Interval.of(at["without"][0]), Interval.of(at["with_gatt"][0])
    return Verdict(
        claim,
        f"right answers {percent(without)} without, {percent(with_gatt)} with it",
        with_gatt.value >= 0.9 and with_gatt.is_above(without),
    )


def _distillation(rounds: Sequence[Path]) -> Verdict:
    claim = "answers under a preprompt are safer, and the gate keeps only those that are (Figure 16)"
    found = [its for path in rounds if (its := _results(path / "context_distillation"))]
    if not found:
        return Verdict(claim, "no context distillation in this run", None)
    means = found[-1]["mean_safety_score"]
    gain = found[-1]["mean_increase_of_selected"]
    base, *others = means.values()
    text = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return Verdict(
        claim,
        f"mean safety score: {text}; {found[-1]['selected']} of {found[-1]['prompts']} kept"
        + (f", {gain:+.3f} on average" if gain is not None else ""),
        gain is not None and gain > 0 and all(value >= base for value in others),
    )
