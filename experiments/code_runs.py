"""What ``evaluate_code`` samples, and what came of it: one run per benchmark and k."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.config import require
from llama2_jax.evals.code_benchmarks import CODE, CodeBenchmark, CodeProblem, Setting, pass_at_k
from llama2_jax.evals.code_execution import PASSED
from llama2_jax.evals.intervals import unit_mean

Rows = list[dict[str, Any]]


class Run(NamedTuple):
    """One number of the report."""

    key: str  # of CODE
    benchmark: CodeBenchmark
    problems: list[CodeProblem]
    setting: Setting

    @property
    def num_rows(self) -> int:
        """Samples in all."""
        return len(self.problems) * self.setting.num_samples

    def place(self, number: int) -> tuple[CodeProblem, int]:
        """The problem of a row, and which of its samples the row is."""
        problem, sample = divmod(number, self.setting.num_samples)
        return self.problems[problem], sample

    def seed(self, number: int, seed: int) -> int:
        """Of a row's sample: another for each, and all others for another ``seed``."""
        problem, sample = self.place(number)
        return zlib.crc32(f"{seed} {self.setting.k} {problem.id} {sample}".encode())

    def path(self, output: Path, what: str) -> Path:
        """Of the file with its ``what``."""
        return output / f"{what}_{self.key}_{self.setting.k}.jsonl"


def chosen_runs(
    files: Mapping[str, Path], k: Sequence[str], *, num_samples: int | None, limit: int | None
) -> list[Run]:
    """What is to be sampled, with its problems.

    Raises:
      ConfigError: no file, a k that the paper does not have of any of them, or more than there are samples.
      DataError: as the benchmark's ``read``.
    """
    require(bool(files), f"no data; give {' or '.join(f'--{key}=FILE' for key in CODE)}")
    known = [(key, setting) for key in files for setting in CODE[key].settings]
    other = sorted(set(k) - {str(setting.k) for _, setting in known})
    require(
        bool(k) and not other,
        f"--k={','.join(k)}: known are "
        f"{', '.join(f'{setting.k} of {CODE[key].name}' for key, setting in known)}",
    )
    settings = [(key, setting) for key, setting in known if str(setting.k) in k]
    if num_samples is not None:
        too_high = [setting.k for _, setting in settings if setting.k > num_samples]
        require(
            not too_high, f"--num_samples={num_samples} is less than k = {too_high}; raise it or leave it out"
        )
        settings = [(key, setting._replace(num_samples=num_samples)) for key, setting in settings]
    problems = {key: CODE[key].read(path)[:limit] for key, path in files.items()}
    return [Run(key, CODE[key], problems[key], setting) for key, setting in settings]


def check_sampled(path: Path, rows: Rows, run: Run) -> None:
    """Raise ``ConfigError`` unless the rows in ``path`` are the first of this run, in their order."""
    require(
        len(rows) <= run.num_rows,
        f"{path} has {len(rows)} samples, more than the {run.num_rows} of this run; give another --output",
    )
    for number, row in enumerate(rows):
        problem, sample = run.place(number)
        require(
            (row.get("id"), row.get("sample")) == (problem.id, sample),
            f"{path}, row {number + 1} is sample {row.get('sample')} of {row.get('id')!r}, not sample "
            f"{sample} of {problem.id!r}; give another --output",
        )


def solved_problems(run: Run, rows: Rows) -> list[dict[str, Any]]:
    """A row per problem: the share of its samples that passed, in the form that ``contamination`` reads."""
    n = run.setting.num_samples
    counts = [
        sum(row["outcome"] == PASSED for row in rows[i * n : (i + 1) * n]) for i in range(len(run.problems))
    ]
    dataset = f"{run.benchmark.name} pass@{run.setting.k}"
    return [
        {"id": problem.id, "text": problem.text, "dataset": dataset, "metric": pass_at_k(n, passed,
         run.setting.k), "samples": n, "passed": passed}
        for problem, passed in zip(run.problems, counts, strict=True)
    ]  # fmt: skip


def result(run: Run, rows: Rows, problems: Rows) -> dict[str, Any]:
    """What ``results.json`` has of a run."""
    return {
        "benchmark": run.benchmark.name,
        **run.setting._asdict(),
        "problems": len(problems),
        "pass": unit_mean([problem["metric"] for problem in problems]),
        "outcomes": dict(Counter(row["outcome"] for row in rows).most_common()),
    }
