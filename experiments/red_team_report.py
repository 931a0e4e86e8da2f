"""Reports of a red-team exercise: robustness, what was sought, and the rejection rate of later versions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.report import percent, quote, table, write_report_file
from llama2_jax.analysis.human_plots import plot_panels
from llama2_jax.analysis.red_team_plots import plot_gamma
from llama2_jax.config import write_json
from llama2_jax.data.red_team_logs import Attack, Session
from llama2_jax.evals.intervals import Share, bracketed
from llama2_jax.evals.red_team import Finding, Labelled, Rejection, Robustness, labelled, robustness


def write_red_team_report(
    workdir: Path, sessions: Sequence[Session], attacks: Sequence[Attack], findings: Sequence[Finding]
) -> None:
    """``report.md``, ``results.json`` and pictures of the logs (RED-2, RED-3)."""
    found = robustness(sessions, attacks, findings)
    labels = labelled(list(found), attacks)
    write_json(workdir / "results.json", {"robustness": found, "labels": labels})
    plot_gamma(workdir / "gamma.png", {name: (one.gamma, one.mean_of_rates) for name, one in found.items()})
    panels = {title: own.dialogues for title, own in labels.items()}
    plot_panels(
        workdir / "dialogues.png", panels, list(found), ylabel="% of the dialogues", title="What was tried"
    )
    lines = [
        "# Red teaming",
        "",
        "Llama 2, 4.3. gamma is the number of prompts that triggered a violation per person and hour: the",
        "lower, the more robust (in the paper 1.8, later 0.45, of the 7B model). It is all prompts over all",
        "hours; beside it the mean of the people's own rates (D71). A prompt counts once for each person.",
        "Intervals are of 95 %: of gamma from a bootstrap over people, which is too narrow with few of them;",
        "of dialogues, knowing that those of one person go together.",
        "",
        "![gamma by version](gamma.png)",
        "",
        *table(
            ("version", "people", "hours", "dialogues", "violating prompts", "gamma", "mean of the rates"),
            [(quote(name), *_robustness_cells(one)) for name, one in found.items()],
        ),
        "",
        "![dialogues by label](dialogues.png)",
    ]
    for title, own in labels.items():
        lines += ["", f"## By {title}", "", *_labelled_table(title, own)]
    write_report_file(workdir, lines)


def write_rejection_report(folder: Path, found: Mapping[str, Rejection], *, judge: str) -> list[str]:
    """``report.md``, ``results.json`` and the picture of the rejection rate (RED-4).

    Returns:
      the lines of the report.
    """
    write_json(folder / "results.json", {"judge": judge, "rejection": found})
    panels = {
        "version that the prompts broke": _turned({name: one.by_version for name, one in found.items()}),
        "risk area": _turned({name: one.by_risk_area for name, one in found.items()}),
    }
    everything = {"all": {name: one.overall for name, one in found.items()}}
    title = "Violating prompts that are rejected now"
    plot_panels(
        folder / "rejection.png",
        {"all": everything, **panels},
        list(found),
        ylabel="rejected (%)",
        title=title,
    )
    rows = [
        (quote(name), f"{one.overall.size:,}", percent(one.overall), f"{one.unrated:,}")
        for name, one in found.items()
    ]
    lines = [
        "# Rejection rate",
        "",
        "Llama 2, 4.3: of the prompts that triggered a violation of an earlier version, the share whose",
        "answer by this version does not violate (in the paper about 90 % from model to model). Intervals",
        "are of 95 % and know that prompts of one person go together.",
        f"Judged by {judge}.",
        "",
        "![rejection rate](rejection.png)",
        "",
        *table(("version", "prompts", "rejected", "not judged"), rows),
    ]
    for title, panel in panels.items():
        rows = [
            (quote(group), quote(name), f"{share.size:,}", percent(share))
            for group, own in panel.items()
            for name, share in own.items()
        ]
        lines += ["", f"## By {title}", "", *table((title, "version", "prompts", "rejected"), rows)]
    write_report_file(folder, lines)
    return lines


def _turned(shares: Mapping[str, Mapping[str, Share]]) -> dict[str, dict[str, Share]]:
    """Version to group to share, as group to version to share."""
    groups = dict.fromkeys(group for own in shares.values() for group in own)
    return {group: {name: own[group] for name, own in shares.items() if group in own} for group in groups}


def _robustness_cells(one: Robustness) -> list[str]:
    return [
        f"{one.people:,}",
        f"{one.hours:,.1f}",
        f"{one.dialogues:,}",
        f"{one.violating_prompts:,}",
        bracketed(one.gamma, ".2f"),
        bracketed(one.mean_of_rates, ".2f"),
    ]


def _labelled_table(title: str, found: Labelled) -> list[str]:
    rows = []
    for label, versions in found.dialogues.items():
        for version, share in versions.items():
            violating = found.violating.get(label, {}).get(version)
            rows.append(
                (
                    quote(label),
                    quote(version),
                    f"{violating.size if violating else 0:,}",
                    f"{100 * share.value:.1f} %",
                    percent(violating) if violating else "",
                )
            )
    return table((title, "version", "dialogues", "of all", "violating"), rows)
