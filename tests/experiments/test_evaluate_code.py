"""The program from official files to the report, with the tiny model, and what an oracle would get."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import checkpoint_flags, evaluate_code
from experiments.code_report import write_code_report
from experiments.code_runs import Run, check_sampled, chosen_runs, result, solved_problems
from llama2_jax.config import ConfigError
from llama2_jax.data.scored_samples import read_scored_samples
from llama2_jax.evals.code_benchmarks import program
from llama2_jax.evals.code_execution import run_programs
from llama2_jax.pretrained import load
from tests.evals.linux import needs_linux
from tests.evals.test_code_benchmarks import HUMANEVAL, lines, mbpp
from tests.experiments import runs
from tests.rlhf.small_policy import saved_policy

OTHER = HUMANEVAL | {"task_id": "HumanEval/1"}
ALLOWED = "--allow_code_execution"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "humaneval": lines(tmp_path / "HumanEval.jsonl", [HUMANEVAL, OTHER]),
        "mbpp": lines(tmp_path / "mbpp.jsonl", [mbpp(number) for number in (2, 3, 4, 11, 12)]),
    }


def chosen(files: dict[str, Path], k: str, num_samples: int | None = None) -> list[Run]:
    return chosen_runs(files, k.split(","), num_samples=num_samples, limit=None)


def test_the_papers_settings(files: dict[str, Path]) -> None:
    found = [
        (run.key, run.setting.k, run.setting.temperature, run.setting.num_samples)
        for run in chosen(files, "1,100,80")
    ]
    assert found == [
        ("humaneval", 1, 0.1, 10),
        ("humaneval", 100, 0.8, 200),
        ("mbpp", 1, 0.1, 10),
        ("mbpp", 80, 0.8, 160),
    ]


@needs_linux
def test_an_oracle_solves_all_and_half_an_oracle_half(files: dict[str, Path], tmp_path: Path) -> None:
    written = {
        "humaneval": "    return sum(numbers)\n",
        "mbpp": "def add(x): return x + 11",
    }  # wrong for MBPP/12
    results = []
    for run in chosen(files, "1", num_samples=2):
        programs = [program(run.place(number)[0], written[run.key]) for number in range(run.num_rows)]
        outcomes = run_programs(programs, timeout_secs=20, num_workers=2)
        rows = [
            {"id": run.place(number)[0].id, "sample": number % 2, "outcome": outcome}
            for number, outcome in enumerate(outcomes)
        ]
        results.append(result(run, rows, solved_problems(run, rows)))
    assert [one["pass"].value for one in results] == [1, 0.5]
    assert results[1]["outcomes"] == {"passed": 2, "AssertionError": 2}
    write_code_report(tmp_path, {"checkpoint": "oracle"}, results)
    report = (tmp_path / "report.md").read_text()
    assert (
        "| HumanEval | pass@1 | 0.1 | 2 | 2 | 100.0 % [34.2, 100.0] | 12.8 | 18.3 | 22.6 | 29.9 |" in report
    )
    assert "Code, as in Table 3 the plain mean of both pass@1: 75.0 %" in report
    assert "| AssertionError | 0 | 2 |" in report
    write_code_report(tmp_path, {}, results[:1])
    assert "Table 3" not in (tmp_path / "report.md").read_text()


def test_pass_at_k_is_estimated_for_each_problem(files: dict[str, Path]) -> None:
    (run,) = (one for one in chosen(files, "80", num_samples=160))
    outcomes = (
        ["timed out"] * 159 + ["passed"] + ["SyntaxError"] * 160
    )  # 1 of 160: in half of all draws of 80
    rows = [{"outcome": outcome} for outcome in outcomes]
    assert [(one["metric"], one["passed"]) for one in solved_problems(run, rows)] == [(0.5, 1), (0, 0)]


@needs_linux
def test_a_run_goes_on_where_it_was_killed(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = [
        f"--checkpoint={saved_policy()}",
        f"--output={out}",
        f"--humaneval={files['humaneval']}",
    ]
    arguments += ["--num_samples=3", "--batch_size=2", "--max_new_tokens=20", "--num_workers=1", ALLOWED]
    first = runs.run_program("experiments.evaluate_code", *arguments)
    assert first.returncode == 0, first.stderr
    path = out / "samples_humaneval_1.jsonl"
    samples = runs.read_lines(path)
    assert [(row["id"], row["sample"]) for row in samples] == [
        (f"HumanEval/{i}", n) for i in (0, 1) for n in range(3)
    ]
    assert all(row["outcome"] != "passed" for row in samples)
    scored = read_scored_samples(out / "problems_humaneval_1.jsonl")
    assert [(one.dataset, one.metric) for one in scored] == [("HumanEval pass@1", 0.0)] * 2
    results = json.loads((out / "results.json").read_text())
    assert results["pass_at_k"][0]["pass"]["value"] == 0
    assert "| HumanEval | pass@1 | 0.1 | 3 | 2 | 0.0 % [" in (out / "report.md").read_text()

    path.write_text("".join(json.dumps(row) + "\n" for row in samples[:3]) + '{"id": "HumanEv')  # cut off
    given = SimpleNamespace(seed=0, batch_size=4, max_new_tokens=20, timeout_secs=3.0, num_workers=1)
    monkeypatch.setattr(evaluate_code, "flags", SimpleNamespace(FLAGS=given))
    monkeypatch.setattr(checkpoint_flags, "load_checkpoint", lambda: load(saved_policy()))
    humaneval = chosen({"humaneval": files["humaneval"]}, "1", num_samples=3)
    assert evaluate_code.sample_missing(out, humaneval) == [samples]  # the same samples, in other batches
    assert runs.read_lines(path) == samples


def test_each_sample_has_a_seed_of_its_own(files: dict[str, Path]) -> None:
    once, hundred, mbpp_once = chosen(files, "1,100", num_samples=100)
    seeds = [
        run.seed(number, seed)
        for run in (once, hundred, mbpp_once)
        for seed in (0, 1)
        for number in range(run.num_rows)
    ]
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 200
    few = chosen(files, "1", num_samples=3)[0]
    assert few.seed(3, 0) == once.seed(100, 0)  # the first sample of the second problem


def test_nothing_is_executed_without_leave(files: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["--checkpoint=/none", f"--output={tmp_path / 'out'}", f"--humaneval={files['humaneval']}"]
    found = runs.run_program("experiments.evaluate_code", *arguments)
    assert found.returncode == 2
    assert "give --allow_code_execution" in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="no data; give --humaneval=FILE or --mbpp=FILE"):
        chosen({}, "1")


@pytest.mark.parametrize(
    ("k", "num_samples", "words"),
    [
        ("10", None, "--k=10: known are 1 of HumanEval, 100 of HumanEval, 1 of MBPP, 80 of MBPP"),
        ("1,100", 20, r"--num_samples=20 is less than k = \[100\]"),
    ],
)
def test_a_k_that_cannot_be_is_refused(files: Any, k: str, num_samples: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen(files, k, num_samples)


def test_samples_of_other_problems_are_refused(files: dict[str, Path]) -> None:
    run = chosen(files, "1", num_samples=1)[0]
    rows = [{"id": "HumanEval/0", "sample": 0}, {"id": "HumanEval/1", "sample": 0}]
    check_sampled(Path("samples"), rows, run)
    with pytest.raises(
        ConfigError, match="samples, row 1 is sample 0 of 'HumanEval/1', not sample 0 of 'HumanEval/0'"
    ):
        check_sampled(Path("samples"), rows[::-1], run)
    with pytest.raises(ConfigError, match="has 4 samples, more than the 2 of this run"):
        check_sampled(Path("samples"), rows * 2, run)
