"""HumanEval and MBPP (Llama 2, A.2.2, Table 21): problems, settings, pass@k.

A problem is solved k times out of k tries if one of them passes its tests. Prompts and texts that end a
completion are those of the papers that made the benchmarks, as Llama 2 does not give its own (EVAL-5, D18,
D92).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.config import require
from llama2_jax.data.jsonl import parse_rows
from llama2_jax.data.records import DataError, check, text_of

TOP_P = 0.95
MBPP_EXAMPLES = (2, 3, 4)
MBPP_TEST = range(11, 511)


class CodeProblem(NamedTuple):
    """A function to write, and its tests."""

    id: str
    prompt: str  # what the model continues
    before: str  # the program is this, the completion,
    after: str  # and this
    text: str  # the problem itself with its solution, without examples


class Setting(NamedTuple):
    """What the paper reports of a benchmark."""

    k: int
    temperature: float
    num_samples: int  # of each problem (D18)
    published: tuple[float, float, float, float]  # of Llama 2 in PAPER_SIZES, in percent


class CodeBenchmark(NamedTuple):
    """One of the two."""

    name: str
    read: Callable[[Path], list[CodeProblem]]  # its official file
    until: tuple[str, ...]  # texts that end a completion
    settings: tuple[Setting, ...]


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Probability that of k samples, drawn without replacement from those there are, one or more passed.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. (2021), from whole numbers.

    Raises:
      ConfigError: fewer samples than k, or no such number that passed.
    """
    require(
        1 <= k <= num_samples, f"pass@{k} needs {k} samples of a problem or more, there are {num_samples}"
    )
    require(0 <= num_passed <= num_samples, f"{num_passed} of {num_samples} samples cannot have passed")
    all_draws = math.comb(num_samples, k)
    return (all_draws - math.comb(num_samples - num_passed, k)) / all_draws


def program(problem: CodeProblem, completion: str) -> str:
    """Runs to its end if the completion is right."""
    return f"{problem.before}{completion}\n{problem.after}\n"


def read_humaneval(path: Path) -> list[CodeProblem]:
    """The problems of ``HumanEval.jsonl`` or ``.jsonl.gz``: signature and docstring, to be continued.

    Raises:
      DataError: not a row of that file (file, line, reason), or a problem that stands there twice.
    """
    problems = parse_rows(path, _humaneval_problem)
    _check_ids(path, [problem.id for problem in problems])
    return problems


def _check_ids(path: Path, ids: Sequence[str | int]) -> None:
    twice = [str(one) for one, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{path} has {len(twice)} problems more than once: {', '.join(twice[:5])}; leave one")


def _humaneval_problem(row: dict[str, Any]) -> CodeProblem:
    prompt, tests = text_of(row, "prompt"), text_of(row, "test")
    return CodeProblem(
        text_of(row, "task_id"),
        prompt,
        before=prompt,
        after=f"{tests}\ncheck({text_of(row, 'entry_point')})",
        text=prompt + text_of(row, "canonical_solution"),
    )


def read_mbpp(path: Path) -> list[CodeProblem]:
    """The test problems of ``mbpp.jsonl``, after three others with their solutions.

    Raises:
      DataError: not a row of that file (file, line, reason); no examples in it, no problem, or one twice.
    """
    found = parse_rows(path, _checked_mbpp_row)
    _check_ids(path, [row["task_id"] for row in found])
    rows = {row["task_id"]: row for row in found}
    examples = [rows[number] for number in MBPP_EXAMPLES if number in rows]
    tested = [row for number, row in rows.items() if number in MBPP_TEST]
    if len(examples) < len(MBPP_EXAMPLES) or not tested:
        raise DataError(
            f"{path} has {len(rows)} problems, but not {', '.join(map(str, MBPP_EXAMPLES))}, which are the "
            f"examples, and one or more of {MBPP_TEST[0]} to {MBPP_TEST[-1]}, which are the test; give the "
            "whole mbpp.jsonl"
        )
    shots = "".join(_mbpp_prompt(row) + row["code"] + "\n[DONE]\n\n" for row in examples)
    return [_mbpp_problem(row, shots) for row in tested]


def _checked_mbpp_row(row: dict[str, Any]) -> dict[str, Any]:
    check(isinstance(row["task_id"], int), f"'task_id' is {row['task_id']!r}, not a number")
    tests = row["test_list"]
    check(
        isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests),
        "'test_list' is no list of texts",
    )
    texts = {key: text_of(row, key).replace("\r\n", "\n") for key in ("text", "code", "test_setup_code")}
    return {"task_id": row["task_id"], "test_list": tests, **texts}


def _mbpp_prompt(row: dict[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass "
        f"these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _mbpp_problem(row: dict[str, Any], shots: str) -> CodeProblem:
    tests: Sequence[str] = row["test_list"]
    return CodeProblem(
        f"MBPP/{row['task_id']}",
        shots + _mbpp_prompt(row),
        before="",
        after="\n".join([row["test_setup_code"], *tests]),  # it uses what the solution defines
        text="\n".join([row["text"], *tests, row["code"]]),
    )


CODE = {
    "humaneval": CodeBenchmark(
        "HumanEval",
        read_humaneval,
        ("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        (
            Setting(1, 0.1, 10, (12.8, 18.3, 22.6, 29.9)),
            Setting(100, 0.8, 200, (45.6, 60.2, 77.2, 89.0)),
        ),
    ),
    "mbpp": CodeBenchmark(
        "MBPP",
        read_mbpp,
        ("[DONE]",),
        (
            Setting(1, 0.1, 10, (20.8, 30.6, 33.0, 45.0)),
            Setting(80, 0.8, 160, (62.8, 69.0, 76.1, 81.4)),
        ),
    ),
}
