"""Reward and false refusals by share of safety data, from a finished evaluation (Llama 2, Figures 15 and 33).

python -m experiments.safety_scaling_report --workdir=RUN

``experiments.safety_scaling`` writes the report with refusals found by a rule
(``llama2_jax/evals/refusals.py``) and ``to_label.jsonl``: each different answer to a helpful or borderline
prompt, and what the rule says. Fill in "label" (answer, refusal, or capability: declined for what a model
cannot know or do) for all or some of them, by hand or with a classifier of your own, there or in another file
(``--labels``), and run this: labels count before the rule, and tell how often it is right. In the simulated
world its truth is the label of every answer that has none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.chat_report import transcripts
from experiments.chat_versions import PromptSets, Versions, prompt_sets
from experiments.report import percent, table, write_report_file
from experiments.safety_scaling_results import Labels, all_labels, false_refusals, key, measure, read_versions
from llama2_jax.analysis.safety_plots import Curve, plot_by_share
from llama2_jax.config import read_json, require, write_json
from llama2_jax.data.jsonl import write_rows
from llama2_jax.evals.intervals import Interval, bracketed
from llama2_jax.evals.refusals import read_labels, refusal_kind
from llama2_jax.launch import launch
from llama2_jax.losses.preference import SAFETY_THRESHOLD
from llama2_jax.rlhf.archive import Sample
from llama2_jax.train.checkpoint import read_meta

# Mean rewards (Figure 15) and false refusals (Figure 33), read off; of helpfulness only the ends are known
PAPER: Mapping[str, Mapping[str, float]] = {
    "safety": {"0%": 0.680, "1%": 0.693, "10%": 0.724, "25%": 0.739, "50%": 0.762, "100%": 0.773},
    "helpfulness": {"0%": 0.586, "100%": 0.583},
    "helpful": {
        "0%": 0.00006, "1%": 0.00013, "10%": 0.00026, "25%": 0.00026, "50%": 0.00051, "100%": 0.00051
    },
    "borderline": {"0%": 0.150, "1%": 0.167, "10%": 0.178, "25%": 0.217, "50%": 0.233, "100%": 0.272},
}  # fmt: skip
NUM_TRANSCRIPTS = 10


def main() -> None:
    """Read the labels, write the report again."""
    labels = read_labels(flags.FLAGS.labels) if flags.FLAGS.labels else {}
    write_report(Path(flags.FLAGS.workdir), labels)
    print(f"{flags.FLAGS.workdir}/report.md")


def write_report(workdir: Path, labels: Labels) -> None:
    """Write ``report.md``, ``results.json``, ``to_label.jsonl`` and pictures from what the stages left.

    Labels that stand in ``to_label.jsonl`` already count too, and stay there with those that are given.

    Raises:
      ConfigError: no finished evaluation, or labels of answers that this run does not have.
    """
    scoring = _read(workdir / "config.json")["evaluate_chat"]
    mixtures = _mixtures(workdir)
    versions = read_versions(workdir / "evaluation" / "answers", list(mixtures))
    prompts = [sample.prompt for sample in next(iter(versions.values()))]
    sets = prompt_sets(prompts, scoring["borderline_family"])
    asked = [
        answers[i]
        for indices in (sets.helpfulness, sets.borderline)
        for answers in versions.values()
        for i in indices
    ]
    sheet = workdir / "to_label.jsonl"
    labels = {**(read_labels(sheet) if sheet.exists() else {}), **labels}
    known = all_labels(asked, labels, is_simulated=scoring["truth"] == "simulated")
    results = {
        "truth": scoring["truth"],
        "mixtures": mixtures,
        "prompts": {name: len(indices) for name, indices in sets._asdict().items()},
        **measure(versions, sets, known),
    }
    write_json(workdir / "results.json", results)
    write_rows(sheet, _rows_to_label(asked, labels))
    _draw(workdir, results)
    lines = [*_scores(results), *_false_refusals(results), *_borderline(versions, sets, known)]
    write_report_file(workdir, lines)


def _read(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path} is not there; run experiments.safety_scaling in that workdir first")
    return read_json(path)


def _mixtures(workdir: Path) -> dict[str, dict[str, int]]:
    """Dialogues of each share, and how many updates two epochs of them took."""
    found = _read(workdir / "mixtures.json")
    return {
        name: {"safe": safe, "helpful": found["helpful"], "updates": read_meta(workdir / "sft" / name)[0]}
        for name, safe in found["safe"].items()
    }


def _rows_to_label(asked: Sequence[Sample], labels: Labels) -> list[dict[str, str]]:
    """Each different answer once: whoever labels does not know which model gave it."""
    rows = {
        key(sample): {
            "prompt_id": sample.prompt.prompt_id,
            "prompt": "\n".join(f"{message.role}: {message.content}" for message in sample.prompt.messages),
            "answer": sample.text,
            "rule": refusal_kind(sample.text),
            "label": labels.get(key(sample), ""),
        }
        for sample in asked
    }
    return list(rows.values())


def _draw(workdir: Path, results: dict[str, Any]) -> None:
    """Figures 15 (left) and 33; the distributions of Figure 15 are those of the evaluation."""
    names = list(results["mixtures"])
    percents = [float(name.removesuffix("%")) for name in names]
    scores = {
        which: Curve(list(own.values()), _paper(which, names)) for which, own in results["reward"].items()
    }
    plot_by_share(workdir / "rewards.png", percents, {"Mean reward": scores}, label="mean reward")
    rates = {
        f"False refusals, {which} prompts": {
            "here": Curve([found.rate for found in own.values()], _paper(which, names))
        }
        for which, own in results["false_refusals"].items()
    }
    plot_by_share(workdir / "false_refusals.png", percents, rates, label="refused (%)", scale=100)


def _paper(which: str, names: Sequence[str]) -> list[float | None]:
    return [PAPER[which].get(name) for name in names]


def _scores(results: dict[str, Any]) -> list[str]:
    """Mixtures, and Figure 15 as a table."""
    mixtures, rewards, counts = results["mixtures"], results["reward"], results["prompts"]
    lines = ["# Scaling of safety data", "", "Llama 2, sections 4.2.3 and A.4.5. Intervals are of 95 %.", ""]
    lines += [
        "The paper's numbers are of its own models, reward models and prompts: compare how they move.", "",
        *table(
            ("share", "safe dialogues", "helpful dialogues", "updates"),
            [
                (name, *(f"{own[field]:,}" for field in ("safe", "helpful", "updates")))
                for name, own in mixtures.items()
            ],
        ),
        "", "## Mean reward (Figure 15)", "",
    ]  # fmt: skip
    header = (
        "share", f"safety reward, {counts['safety']:,} adversarial prompts", "paper",
        f"below {SAFETY_THRESHOLD}",
        f"helpfulness reward, {counts['helpfulness']:,} helpful prompts", "paper",
    )  # fmt: skip
    rows = [
        (
            name, str(rewards["safety"][name]), _number("safety", name, 1, "{:.3f}"),
            percent(results["low_safety_reward"][name]),
            str(rewards["helpfulness"][name]), _number("helpfulness", name, 1, "{:.3f}"),
        )
        for name in mixtures
    ]  # fmt: skip
    lines += [*table(header, rows), "", "![rewards](rewards.png)", ""]
    lines += ["![distributions](evaluation/rewards.png)", "", "![change](evaluation/score_change.png)", ""]
    return [*lines, "All versions side by side: [evaluation](evaluation/report.md).", ""]


def _false_refusals(results: dict[str, Any]) -> list[str]:
    """Figure 33 as a table, and how refusals were found."""
    found = results["false_refusals"]
    header = ["share", *(cell for which in found for cell in (f"{which} prompts", "refused", "paper"))]
    rows = [
        [name, *(
            cell
            for which, own in found.items()
            for cell in (_rate(own[name].rate), f"{own[name].refused:,} of {own[name].asked:,}",
                         _number(which, name, 100, "{:.3g} %"))
        )]
        for name in results["mixtures"]
    ]  # fmt: skip
    lines = ["## False refusals (Figure 33)", "", *table(header, rows), ""]
    trends = ", ".join(f"{which} prompts z = {z:+.1f}" for which, z in results["trend_z"].items())
    lines += [
        f"Trend over the shares (Cochran-Armitage; above 1.96 refusals rise): {trends}. The test takes the "
        "prompts of each share for others, while they are the same: it is too careful.",
        "",
        *_how_found(results),
    ]
    lines += ["", "![false refusals](false_refusals.png)", ""]
    return [
        *lines,
        "Below, borderline prompts through all models, first those that most of them refuse, with the scores",
        "of the answers (Tables 37 and 38). Adversarial ones (Table 36) are in the report of the evaluation.",
        "",
    ]


def _how_found(results: dict[str, Any]) -> list[str]:
    rule, different = results["rule"], results["different_answers"]
    capability = sum(one.capability for own in results["false_refusals"].values() for one in own.values())
    lines = [
        f"Of {different:,} different answers {rule.size:,} are labelled (by people, a classifier or the "
        "simulated world's truth); the rule of `llama2_jax/evals/refusals.py` judges the others.",
        f"{capability:,} answers decline for what a model cannot know or do and are not counted.",
    ]
    if rule.size:
        precision, recall = (percent(one) if one else "none" for one in (rule.precision, rule.recall))
        lines.append(f"Where there are labels, the rule has precision {precision} and recall {recall}.")
    if results["truth"] == "simulated":
        lines.append("In the simulated world that is no test of it: there all refuse in words that it knows.")
    return [" ".join(lines)]


def _borderline(versions: Versions, sets: PromptSets, labels: Labels) -> list[str]:
    """Answers to borderline prompts, to be read: first of those that most models refuse."""
    refused = {
        i: sum(false_refusals([own[i]], labels).refused for own in versions.values()) for i in sets.borderline
    }
    order = sorted(refused, key=lambda i: -refused[i])
    chosen = {name: [answers[i] for i in order] for name, answers in versions.items()}
    return transcripts(chosen, NUM_TRANSCRIPTS)


def _rate(rate: Interval) -> str:
    """With three digits: of many prompts very few may be refused."""
    return bracketed(rate, ".3g", scale=100, unit=" %")


def _number(which: str, name: str, scale: float, form: str) -> str:
    """What the paper has for a share, if it has it."""
    value = PAPER[which].get(name)
    return "" if value is None else form.format(scale * value)


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_string("workdir", None, "A finished run of experiments.safety_scaling.", required=True)
    flags.DEFINE_string("labels", None, "More labels of answers: JSONL, see above.")
    launch(main)
