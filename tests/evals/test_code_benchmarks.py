import gzip
import itertools
import json
from collections.abc import Callable
from math import isclose
from pathlib import Path
from typing import Any

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.records import DataError
from llama2_jax.evals.code_benchmarks import CODE, pass_at_k, program, read_humaneval, read_mbpp
from llama2_jax.evals.code_execution import run_program
from tests.evals.linux import needs_linux

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Their sum."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(numbers)\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert "
    "candidate([]) == 0\n",
}


def mbpp(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n  return x + {number}",
        "task_id": number,
        "test_setup_code": "",
        "test_list": [f"assert add({x}) == {x + number}" for x in (0, 1, 5)],
        "challenge_test_list": [],
    } | changes


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("k", "wanted"), [(1, 0.3), (5, 0.916667), (8, 1)])
def test_pass_at_k(k: int, wanted: float) -> None:
    assert isclose(pass_at_k(10, 3, k), wanted, abs_tol=5e-7)


@pytest.mark.parametrize(("n", "c", "k"), [(6, 2, 3), (5, 0, 2), (5, 5, 5), (7, 1, 7), (4, 3, 1)])
def test_pass_at_k_is_the_share_of_draws_that_have_one_that_passed(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations(range(n), k))
    assert isclose(pass_at_k(n, c, k), sum(min(draw) < c for draw in draws) / len(draws))


def test_pass_at_k_of_many_samples_loses_no_digits() -> None:
    assert pass_at_k(200, 1, 100) == 0.5
    assert pass_at_k(100_000, 1, 1) == 1e-5  # 1 - C(99999, 1)/C(100000, 1) in floats is off in the 12th digit


@pytest.mark.parametrize(
    ("n", "c", "k", "words"),
    [
        (5, 1, 6, "pass@6 needs 6 samples of a problem or more, there are 5"),
        (5, 6, 1, "6 of 5 samples cannot have passed"),
    ],
)
def test_impossible_counts_are_refused(n: int, c: int, k: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("size", range(4))
def test_published_results_give_code_in_table_3(size: int) -> None:
    published = [benchmark.settings[0].published[size] for benchmark in CODE.values()]
    assert abs(sum(published) / 2 - (16.8, 24.5, 27.8, 37.5)[size]) <= 0.05 + 1e-9


@needs_linux
def test_humaneval_is_continued_and_checked(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(HUMANEVAL) + "\n")
    (problem,) = read_humaneval(tmp_path / "HumanEval.jsonl.gz")
    assert problem.prompt == HUMANEVAL["prompt"]
    assert problem.text == HUMANEVAL["prompt"] + "    return sum(numbers)\n"
    for body, outcome in (("    return sum(numbers)", "passed"), ("    return 3", "AssertionError")):
        assert run_program(program(problem, body), timeout_secs=20) == outcome


@needs_linux
def test_mbpp_is_asked_after_three_examples_and_checked(tmp_path: Path) -> None:
    setup = "class_of = Box(4)\n"
    boxed = mbpp(12, test_setup_code=setup, test_list=["assert class_of.x == 4"])
    rows = [mbpp(1), mbpp(2), mbpp(3), mbpp(4), mbpp(10), mbpp(11), boxed, mbpp(511)]
    first, second = read_mbpp(lines(tmp_path / "mbpp.jsonl", rows))
    assert (first.id, second.id) == ("MBPP/11", "MBPP/12")
    asked = first.prompt.split("\n\nYou are")
    assert [f"add {number}." in part for number, part in zip((2, 3, 4, 11), asked, strict=True)] == [True] * 4
    assert asked[0] == (
        "You are an expert Python programmer, and here is your task: Write a function to add 2. Your code "
        "should pass these tests:\n\nassert add(0) == 2\nassert add(1) == 3\nassert add(5) == 7\n[BEGIN]\n"
        "def add(x):\n  return x + 2\n[DONE]"
    )
    assert first.prompt.endswith("assert add(5) == 16\n[BEGIN]\n")
    assert run_program(program(first, "def add(x): return x + 11"), timeout_secs=20) == "passed"
    assert run_program(program(first, "def add(x): return 11"), timeout_secs=20) == "AssertionError"
    box = "class Box:\n    def __init__(self, x): self.x = x"  # the setup uses what the solution defines
    assert run_program(program(second, box), timeout_secs=20) == "passed"


@pytest.mark.parametrize(
    ("read", "rows", "words"),
    [
        (read_humaneval, [mbpp(11)], r"data.jsonl.*1.*prompt"),
        (read_humaneval, [HUMANEVAL | {"test": 3}], "'test' is int, not text"),
        (read_humaneval, [HUMANEVAL] * 2, "has 1 problems more than once: HumanEval/"),
        (read_mbpp, [HUMANEVAL], "data.jsonl.*1.*task_id"),
        (read_mbpp, [mbpp(11), mbpp(11), mbpp(12)], "has 1 problems more than once: 11; leave one"),
        (read_mbpp, [mbpp(11, test_list=[])], "'test_list' is no list of texts"),
        (read_mbpp, [mbpp(11), mbpp(12)], "has 2 problems, but not 2, 3, 4, which are the examples"),
        (read_mbpp, [mbpp(2), mbpp(3), mbpp(4)], "one or more of 11 to 510"),
    ],
)
def test_other_files_are_refused(
    read: Callable[[Path], Any], rows: list[dict[str, Any]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        read(lines(tmp_path / "data.jsonl", rows))
