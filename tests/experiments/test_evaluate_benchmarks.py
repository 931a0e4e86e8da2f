import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from experiments import evaluate_benchmarks
from experiments.benchmark_report import result, write_benchmark_report
from experiments.evaluate_benchmarks import Asking, Run, check_origin, chosen_runs, evaluate, open_tasks
from llama2_jax.config import ConfigError, write_json
from llama2_jax.evals.benchmarks import AGIEVAL, BENCHMARKS, SUITES
from llama2_jax.pretrained import LoadedModel, load
from tests.experiments import runs
from tests.rlhf.small_policy import saved_policy

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: question
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: true, temperature: 1.0}
repeats: 2
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: vote, filter: [{function: majority_vote}, {function: take_first}]}
"""
GROUP = """
group: both
task: [choice, write]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
QUESTIONS = [
    {"question": "The small model", "choices": ["reads", "xqzv"], "label": 0},
    {"question": "What is a token?", "choices": ["qqqq zzzz", "A piece"], "label": 1},
    {"question": "The rain", "choices": ["xqzv", "falls"], "label": 0},
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks of lm_eval, a group of both, and their data."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    questions = runs.write_lines(tmp_path / "questions.jsonl", QUESTIONS)
    for name, text in (("choice", CHOICE), ("write", WRITE), ("both", GROUP)):
        (folder / f"{name}.yaml").write_text(text.replace("QUESTIONS", str(questions)))
    return folder


def test_a_task_is_evaluated_reported_and_not_asked_twice(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        f"--checkpoint={saved_policy()}",
        "--tasks=choice,both",
        f"--include_path={tasks}",
        f"--output={tmp_path / 'out'}",
    ]
    first = runs.run_program("experiments.evaluate_benchmarks", *arguments)
    assert first.returncode == 0, first.stderr
    samples = [json.loads(line) for line in (tmp_path / "out/choice/samples_choice.jsonl").open()]
    assert [sample["doc"]["label"] for sample in samples] == [0, 1, 0]
    assert samples[0]["arguments"]["gen_args_0"] == {"arg_0": "The small model", "arg_1": " reads"}
    for sample in samples:  # marked by the likelihoods that the row itself shows
        logprobs = [answer[0] for answer in sample["filtered_resps"]]
        assert sample["acc"] == (logprobs.index(max(logprobs)) == sample["doc"]["label"])
    share = sum(sample["acc"] for sample in samples) / 3
    assert f"| choice | 0 | 3 | acc | {share:.4f} |" in (tmp_path / "out/report.md").read_text()

    both = json.loads((tmp_path / "out/both/results.json").read_text())
    assert both["results"]["choice"]["acc,none"] == both["groups"]["both"]["acc,none"] == share
    assert "| both | " in (report := (tmp_path / "out/report.md").read_text())
    assert f"| 3 | acc | {share:.4f} |" in report  # of the group: its other task has another metric
    written = [json.loads(line) for line in (tmp_path / "out/both/samples_write.jsonl").open()]
    assert [(row["doc_id"], row["filter"]) for row in written] == [
        (n, name) for name in ("first", "vote") for n in range(3)
    ]
    assert any(len(set(row["resps"][0])) == 2 for row in written)  # repeats are different samples

    (tmp_path / "out/both/results.json").unlink()  # as if it had been killed there
    monkeypatch.setattr(evaluate_benchmarks, "TaskManager", only_own_tasks)
    chosen, how = chosen_runs(["choice", "both"], num_shots=None), Asking(include_path=str(tasks))
    evaluate(tmp_path / "out", chosen, lambda: load(saved_policy()), how)
    assert json.loads((tmp_path / "out/both/results.json").read_text()) == both
    (tmp_path / "out/report.md").unlink()
    evaluate(tmp_path / "out", chosen, never, how)  # nothing is asked
    assert (tmp_path / "out/report.md").read_text() == report
    other = runs.run_program("experiments.evaluate_benchmarks", *arguments, "--num_shots=1")
    assert other.returncode == 2
    assert "has results of other settings" in other.stderr


def only_own_tasks(*, include_path: list[Any]) -> TaskManager:
    """Without lm_eval's own, of which there are thousands to look through."""
    return TaskManager(include_path=include_path, include_defaults=False)


def never() -> LoadedModel:
    raise AssertionError


def test_an_unknown_task_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_benchmarks, "TaskManager", only_own_tasks)
    with pytest.raises(
        ConfigError, match=r"lm_eval .* has no arc_eazy; known: llama2, llama2_knowledge, llama2_reading and"
    ):
        evaluate(tmp_path, {"arc_eazy": Run(("arc_eazy",))}, never, Asking())


def test_the_papers_suite_has_its_shots() -> None:
    chosen = chosen_runs([*SUITES, "arc_easy"], num_shots=None)
    assert chosen["MMLU"] == Run(("mmlu",), 5)
    assert chosen["GSM8K"] == Run(("gsm8k",), 8)
    assert [chosen[name].shots for name in ("SQuAD", "SQuAD-1-shot", "SQuAD-4-shot", "SQuAD-5-shot")] == [
        0,
        1,
        4,
        5,
    ]
    names = ("TriviaQA", *(f"TriviaQA-{shots}-shot" for shots in (0, 1, 64)))  # Table 22
    assert [chosen[name] for name in names] == [Run(("triviaqa",), shots) for shots in (5, 0, 1, 64)]
    assert chosen["NaturalQuestions-64-shot"] == Run(("nq_open",), 64)
    assert [chosen[name].shots for name in ("QuAC", "QuAC-1-shot")] == [0, 1]
    assert chosen["arc_easy"] == Run(("arc_easy",))
    assert "HumanEval" not in chosen


@pytest.mark.parametrize(
    ("names", "shots", "words"),
    [
        (["llama2"], 5, "--tasks=llama2 has the paper's shots; leave out --num_shots=5"),
        ([], None, "--tasks is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused(names: list[str], shots: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen_runs(names, num_shots=shots)


@pytest.mark.parametrize("name", ["choice", "write"])  # one names the split of its examples, one does not
def test_no_question_is_among_its_examples(tasks: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(evaluate_benchmarks, "TaskManager", only_own_tasks)
    how = Asking(include_path=str(tasks))
    (task,) = open_tasks({name: Run((name,), 2)}, how)[1][name]
    for question in QUESTIONS:
        prompt = task.fewshot_context(question, num_fewshot=2)
        assert all(prompt.count(other["question"]) == 1 for other in QUESTIONS)
    words = f"{name} has 2 examples for each question, 3 are asked for; lower --num_shots"
    with pytest.raises(ConfigError, match=words):
        evaluate(tasks / "out", {name: Run((name,), 3)}, never, how)


def test_results_of_another_model_are_not_joined(tmp_path: Path) -> None:
    origin = {"model": "workdir w, step 10, checksum 0", "lm_eval_version": "0.4.13"}
    (tmp_path / "choice").mkdir()
    runs.write_lines(tmp_path / "choice" / "results.json", [origin | {"results": {}}])
    check_origin(tmp_path, origin)
    with pytest.raises(ConfigError, match=r"choice/results.json was made with something else:\n.*step 16"):
        check_origin(tmp_path, origin | {"model": "workdir w, step 16, checksum 1"})


def test_tasks_of_one_benchmark_are_weighted_by_their_questions() -> None:
    sizes = dict(zip(AGIEVAL, (254, 651, 230, 510, 269, 206, 206, 220), strict=True))  # 2546 in all
    found = {
        "results": {task: {"acc,none": float(task == "agieval_logiqa_en")} for task in AGIEVAL},
        "n-metric": {task: {"acc,none": size} for task, size in sizes.items()},
    }
    agieval = next(benchmark for benchmark in BENCHMARKS if benchmark.tasks == AGIEVAL)
    assert result(agieval, found) == (pytest.approx(100 * 651 / 2546), 2546)


def test_a_metric_of_no_question_is_no_result(tmp_path: Path) -> None:
    quac, boolq = (next(one for one in BENCHMARKS if one.name == name) for name in ("QuAC", "BoolQ"))
    for benchmark, metric in ((quac, "f1_of_all,none"), (boolq, "acc,none")):
        (task,) = benchmark.tasks
        found = {
            "results": {task: {metric: 0.25}},
            "n-metric": {task: {metric: 1}},
            "n-shot": {task: 0},
        }
        write_json(tmp_path / benchmark.name / "results.json", found)
    write_json(tmp_path / "config.json", {"limit": 1})
    write_benchmark_report(tmp_path, ["QuAC", "BoolQ"])
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept == {"benchmarks": {"QuAC": None, "BoolQ": 25.0}, "groups": {}}
    report = (tmp_path / "report.md").read_text()
    assert "| QuAC | 0 | 0 | - | 39.4 |" in report
    assert "| BoolQ | 0 | 1 | 25.0 | 77.4 |" in report
