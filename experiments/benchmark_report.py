"""``report.md`` of academic benchmarks: beside the paper's results, by groups of Table 3, and all metrics."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.report import settings_table, table, write_report_file
from llama2_jax.config import read_json, write_json
from llama2_jax.evals.benchmarks import SUITES, Benchmark, by_size, group_means
from llama2_jax.model.config import PAPER_SIZES


class Result(NamedTuple):
    """Of one benchmark."""

    percent: float | None  # None of no question
    questions: int


def write_benchmark_report(output: Path, names: Sequence[str]) -> None:
    """Write ``report.md`` and ``results.json`` from the results of lm_eval in the folders ``names``."""
    found = {name: read_json(output / name / "results.json") for name in names}
    settings = read_json(output / "config.json")
    ours = {
        benchmark: result(benchmark, found[benchmark.name])
        for benchmark in itertools.chain(*SUITES.values())
        if benchmark.name in found
    }
    percents = {benchmark.name: one.percent for benchmark, one in ours.items()}
    means = group_means({name: value for name, value in percents.items() if value is not None})
    write_json(output / "results.json", {"benchmarks": percents, "groups": means})
    lines = ["# Academic benchmarks", ""]
    lines += settings_table(settings)
    lines += [*_beside_the_paper(ours), *_groups(means), *_all_metrics(found)]
    write_report_file(output, lines)


def result(benchmark: Benchmark, found: dict[str, Any]) -> Result:
    """The benchmark's metric over the questions of all its tasks.

    It may be of none of them, as F1 of a few questions of QuAC on which people do not agree.
    """
    values = [found["results"][task].get(benchmark.metric, 0.0) for task in benchmark.tasks]
    sizes = [_questions(found, task, benchmark.metric) for task in benchmark.tasks]
    return Result(100 * by_size(values, sizes) if any(sizes) else None, sum(sizes))


def _questions(found: dict[str, Any], task: str, metric: str) -> int:
    """How many the metric is of; of a group, in those of its tasks that have it."""
    if task in found["n-metric"]:
        return found["n-metric"][task].get(metric, 0)
    return sum(_questions(found, part, metric) for part in found["group_subtasks"][task])


def _beside_the_paper(ours: dict[Benchmark, Result]) -> list[str]:
    if not ours:
        return []
    header = (
        "group",
        "benchmark",
        "shots",
        "questions",
        "here",
        *(f"Llama 2 {size.upper()}" for size in PAPER_SIZES),
        "differs from the paper",
    )
    rows = [
        (
            b.group,
            b.name,
            str(b.shots),
            f"{one.questions:,}",
            "-" if one.percent is None else f"{one.percent:.1f}",
            *map(str, b.published),
            b.note,
        )
        for b, one in ours.items()
    ]
    return [
        "",
        "Percent, beside what the paper says of Llama 2 (Tables 3, 19 to 25):",
        "",
        *table(header, rows),
    ]


def _groups(means: dict[str, float]) -> list[str]:
    if not means:
        return []
    rows = [(group, f"{value:.1f}") for group, value in means.items()]
    return ["", "Groups of Table 3 that are complete, plain means:", "", *table(("group", "here"), rows)]


def _all_metrics(found: dict[str, Any]) -> list[str]:
    header = ("task", "shots", "questions", "metric", "value", "standard error")
    rows = [row for result in found.values() for row in metric_rows(result)]
    return ["", "All metrics, as lm_eval computes them:", "", *table(header, rows)]


def metric_rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Task, shots, questions, metric, value and standard error, of every metric in a ``results.json``."""
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, choice = key.partition(",")  # "exact_match,strict-match"
            if not choice or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{choice}")
            yield (
                task,
                str(found["n-shot"].get(task, "")),
                f"{_questions(found, task, key):,}",
                metric if choice == "none" else f"{metric} ({choice})",
                f"{value:.4f}" if isinstance(value, float) else str(value),
                f"{error:.4f}" if isinstance(error, float) else "",
            )
