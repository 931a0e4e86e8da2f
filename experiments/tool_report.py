"""``report.md`` and ``results.json`` of answers with and without tools, beside Table 15."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import percent, quote, settings_table, table, write_report_file
from llama2_jax.config import write_json
from llama2_jax.evals.intervals import wilson
from llama2_jax.evals.math_problems import PUBLISHED, Problem, is_right
from llama2_jax.evals.tools import OUTCOMES, Call, Transcript, call_counts

Rows = Sequence[Mapping[str, Any]]

EXAMPLES = 5
WAYS = {"with_tools": "with tools", "without_tools": "without tools"}


def write_tool_report(
    output: Path, settings: Mapping[str, Any], answers: Rows, problems: Sequence[Problem], *, left_out: int
) -> list[str]:
    """Write both files; returns the lines of the tables.

    Args:
      answers: a row per problem with a transcript under each key of ``WAYS``.
      left_out: problems of the file without one number as their answer.
    """
    found = {way: [_transcript(row[way]) for row in answers] for way in WAYS}
    right = {
        way: [is_right(one.answer, problem) for one, problem in zip(own, problems, strict=True)]
        for way, own in found.items()
    }
    results = {
        "problems": len(problems),
        "left_out": left_out,
        "right": {way: wilson(sum(own), len(own)) for way, own in right.items()},
        "only_with_tools": sum(a > b for a, b in zip(*right.values(), strict=True)),
        "only_without_tools": sum(a < b for a, b in zip(*right.values(), strict=True)),
        "calls": call_counts(found["with_tools"]),
    }
    write_json(output / "results.json", results)
    lines = [*_right(settings["benchmark"], results), *_calls(results["calls"], len(problems))]
    examples = _examples(answers, found["with_tools"], right["with_tools"])
    write_report_file(output, [*lines, "", "## Settings", "", *settings_table(settings), *examples])
    return lines


def _transcript(row: Mapping[str, Any]) -> Transcript:
    return Transcript(row["text"], tuple(Call(*call) for call in row["calls"]), row["end"])


def _right(benchmark: str, results: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "# Tool use",
        "",
        "Llama 2, section 5.1 and Table 15. Share of the problems whose answer is right by Toolformer's",
        'rule: its first number, or the first after "=". With intervals of 95 %.',
        "",
    )
    n = f"{results['problems']:,}"
    here = [(f"here, {WAYS[way]}", n, percent(share)) for way, share in results["right"].items()]
    paper = [(f"{name}, paper", "", f"{own[benchmark]:.1f} %") for name, own in PUBLISHED.items()
             if benchmark in own]  # fmt: skip
    yield from table(("", "n", "right"), [*here, *paper])
    yield from (
        "",
        f"{results['only_with_tools']:,} problems are right with tools alone, "
        f"{results['only_without_tools']:,} without them alone. {results['left_out']:,} of the file are left "
        "out: their answer is not one number.",
    )


def _calls(calls: Mapping[str, Any], n: int) -> Iterator[str]:
    share = percent(wilson(calls["answers_with_a_call"], n))
    yield from (
        "",
        "## Calls",
        "",
        f"{share} of the answers have a call. {calls['answers_left_to_a_result']:,} say no number, so "
        "that the last result counts as their answer.",
        "",
    )
    outcomes = [(f"calls: {name}", f"{calls[name]:,}") for name in OUTCOMES]
    ends = [(f"answers: {end}", f"{count:,}") for end, count in calls["ends"].items()]
    yield from table(
        ("", ""),
        [*outcomes, ("calls without an arrow, which nothing answers", f"{calls['unfinished']:,}"), *ends],
    )


def _examples(answers: Rows, found: Sequence[Transcript], right: Sequence[bool]) -> Iterator[str]:
    """The first answers: what a reader should look at before believing a table."""
    yield from ("", "## Answers with tools", "")
    rows = [
        (quote(row["text"][:300]), f"{row['expected']:g}", quote(one.text[:500]), "yes" if ok else "no")
        for row, one, ok in list(zip(answers, found, right, strict=True))[:EXAMPLES]
    ]
    yield from table(("problem", "expected", "answer", "right"), rows)
