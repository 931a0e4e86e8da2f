"""``report.md`` of HumanEval and MBPP: pass@k beside the paper's, and how the programs ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import percent, settings_table, table, write_report_file
from llama2_jax.config import write_json
from llama2_jax.evals.code_benchmarks import CODE
from llama2_jax.evals.code_execution import PASSED
from llama2_jax.model.config import PAPER_SIZES


def write_code_report(
    output: Path, settings: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> None:
    """Write ``results.json``, with the mean of Table 3 if both benchmarks are there, and ``report.md``."""
    mean = code_mean(results)
    write_json(output / "results.json", {"pass_at_k": list(results), "code": mean})
    lines = ["# HumanEval and MBPP", ""]
    lines += settings_table(settings)
    lines += [
        "",
        "Percent, with a 95 % interval over problems, beside what the paper says of Llama 2 (Table 21):",
        "",
    ]
    lines += _beside_the_paper(results)
    lines += [
        "",
        "n samples of each problem, from which pass@k is estimated without bias (EVAL-5); the paper does "
        "not give n (D18), the prompts, or the longest completion (D92).",
    ]
    if mean is not None:
        lines += ["", f"Code, as in Table 3 the plain mean of both pass@1: {100 * mean:.1f} %"]
    lines += ["", "How the programs ended:", "", *_outcomes(results)]
    write_report_file(output, lines)


def code_mean(results: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean of pass@1 of all benchmarks, the group "Code" of Table 3 (EVAL-3); None if one is missing."""
    first = {one["benchmark"]: one["pass"].value for one in results if one["k"] == 1}
    return sum(first.values()) / len(first) if len(first) == len(CODE) else None


def _beside_the_paper(results: Sequence[Mapping[str, Any]]) -> list[str]:
    header = (
        "benchmark",
        "",
        "temperature",
        "n",
        "problems",
        "here",
        *(f"Llama 2 {size.upper()}" for size in PAPER_SIZES),
    )
    rows = [
        (
            one["benchmark"],
            f"pass@{one['k']}",
            str(one["temperature"]),
            str(one["num_samples"]),
            str(one["problems"]),
            percent(one["pass"]),
            *map(str, one["published"]),
        )
        for one in results
    ]
    return table(header, rows)


def _outcomes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted(
        {name for one in results for name in one["outcomes"]}, key=lambda name: (name != PASSED, name)
    )
    header = ("outcome", *(f"{one['benchmark']} pass@{one['k']}" for one in results))
    rows = [(name, *(f"{one['outcomes'].get(name, 0):,}" for one in results)) for name in names]
    return table(header, rows)
