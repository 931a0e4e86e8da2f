"""lm_eval's tasks in the paper's setting, on documents in the form of their data sets, which are on a hub.

The model is one that knows the answers: every benchmark must then have its metric, and it must be 1.
"""

import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from llama2_jax.evals import harness_tasks
from llama2_jax.evals.benchmarks import BENCHMARKS, KNOWLEDGE_SHOTS, READING_SHOTS, SUITES, Benchmark
from llama2_jax.evals.harness import choose_examples

NUM_DOCUMENTS = 12
ABCD = ["water", "fire", "wood", "iron"]
# one document of each data set, with a number in it; of several tasks of one benchmark, the form of one
DOCUMENTS: dict[str, dict[str, Any]] = {
    "piqa": {"goal": "open jar {n}", "sol1": "twist it", "sol2": "eat it", "label": 0},
    "social_iqa": {
        "context": "Ann fell {n} times.",
        "question": "How is Ann?",
        "answerA": "hurt",
        "answerB": "glad",
        "answerC": "tall",
        "label": "1",
    },
    "hellaswag": {
        "activity_label": "Sitting",
        "ctx_a": "Man {n} sits.",
        "ctx_b": "he",
        "endings": ["stands.", "flies.", "melts.", "sings."],
        "label": "0",
    },
    "winogrande": {
        "sentence": "Tom beat Bob {n} times because _ was fast.",
        "option1": "Tom",
        "option2": "Bob",
        "answer": "1",
    },
    "arc_easy": {
        "question": "What is rain {n}?",
        "choices": {"text": ABCD, "label": list("ABCD")},
        "answerKey": "A",
    },
    "openbookqa": {
        "question_stem": "Rain {n} is",
        "choices": {"text": ABCD, "label": list("ABCD")},
        "answerKey": "A",
    },
    "commonsense_qa": {
        "question": "What is rain {n}?",
        "choices": {"text": [*ABCD, "gold"], "label": list("ABCDE")},
        "answerKey": "A",
    },
    "nq_open": {"question": "who wrote hamlet {n}", "answer": ["Shakespeare"]},
    "triviaqa": {
        "question": "Who wrote Hamlet {n}?",
        "answer": {"value": "Shakespeare", "aliases": ["Shakespeare"]},
    },
    "llama2_squad": {
        "id": "{n}",
        "title": "{n}",
        "context": "Mars is red.",
        "question": "What is Mars like?",
        "answers": {"text": ["red", "Red"], "answer_start": [8, 8]},
    },
    "llama2_quac": {
        "dialogue_id": "d",
        "wikipedia_page_title": "{n}",
        "background": "",
        "section_title": "Life",
        "context": "He sang the blues. CANNOTANSWER",
        "turn_ids": ["d_q#0", "d_q#1"],
        "questions": ["What did he sing?", "What else?"],
        "orig_answers": {"texts": ["the blues", "blues"], "answer_starts": [8, 12]},
        "answers": {
            "texts": [["the blues", "He sang the blues"], ["blues"]],
            "answer_starts": [[8, 0], [12]],
        },
    },
    "boolq": {"passage": "Rain {n} is wet.", "question": "is rain wet", "label": 1},
    "gsm8k": {"question": "2 and 3 apples, {n}?", "answer": "2+3=5\n#### 5"},
    "minerva_math_algebra": {
        "problem": "What is $1+1$, {n}?",
        "solution": "It is $\\boxed{2}$.",
        "level": "Level 1",
        "type": "Algebra",
    },
    "mmlu_anatomy": {"question": "What is rain {n}?", "choices": ABCD, "answer": 0, "subject": "anatomy"},
    "bbh_fewshot_navigate": {"input": "Do you return, {n}?", "target": "No"},
    "agieval_aqua_rat": {"query": "Q: rain {n}? A:", "choices": ["(A)water", "(B)fire"], "gold": [0]},
}
RIGHT = (" twist it", " hurt", " stands.", " water", " A", " yes", " (A)water")
WRITTEN = {
    "nq_open": "Shakespeare",
    "triviaqa": "Shakespeare",
    "llama2_squad": "Red.",
    "llama2_quac": "the blues",
    "gsm8k": "2+3=5\n#### 5",
    "minerva_math_algebra": "Final Answer: The final answer is $2$. I hope it is correct.",
    "bbh_fewshot_navigate": "No",
}


class Oracle(LM):
    """Knows the answers."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        right = [
            "because Tom" in context or (text in RIGHT and " was fast" not in text)
            for context, text in (request.args for request in requests)
        ]
        return [(-1.0 if is_right else -100.0, False) for is_right in right]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [WRITTEN[request.task_name] for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


@functools.cache
def manager() -> TaskManager:
    return TaskManager(include_path=harness_tasks.FOLDER)


def of(task: str) -> Benchmark:
    """The benchmark that has this task, or a group of it."""
    group = {"mmlu_anatomy": "mmlu", "bbh_fewshot_navigate": "bbh_fewshot"}.get(task, task)
    return next(benchmark for benchmark in BENCHMARKS if group in benchmark.tasks)


def documents(task: str, folder: Path) -> dict[str, Any]:
    """Fields of the task that make it read documents of ours."""
    paths = {}
    for first, splits in ((0, ("validation", "test")), (50, ("train", "dev"))):
        path = folder / f"{first}.jsonl"
        numbers = range(first, first + NUM_DOCUMENTS)
        lines = [json.dumps(DOCUMENTS[task]).replace("{n}", f"number {n:02}") for n in numbers]
        path.write_text("\n".join(lines) + "\n")
        paths |= dict.fromkeys(splits, str(path))
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": paths}}


def test_every_benchmark_is_among_them() -> None:
    assert {of(task).name for task in DOCUMENTS} | {"ARC-challenge"} == {b.name for b in BENCHMARKS}
    tasks = {task for benchmark in itertools.chain(*SUITES.values()) for task in benchmark.tasks}
    assert tasks <= set(manager().all_tasks)


@pytest.mark.parametrize(
    ("task", "benchmark"),
    [(task, of(task)) for task in DOCUMENTS]
    + [(one.tasks[0], one) for one in (*KNOWLEDGE_SHOTS, *READING_SHOTS) if one.shots <= 5],
    ids=lambda value: value.name if isinstance(value, Benchmark) else value,
)
def test_right_answers_are_right(
    task: str, benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = evaluate(task, benchmark, tmp_path)
    value = found["results"][task][benchmark.metric]
    # of each first question two people said different things: F1 is 1 with the one, 2/(1 + 3) with the other
    assert value == pytest.approx((0.75 + 1) / 2 if task == "llama2_quac" else 1)
    assert found["n-shot"][task] == benchmark.shots
    for sample in found["samples"][task]:  # the question itself is asked, and is no example
        (own,) = set(re.findall(r"number \d\d", json.dumps(sample["doc"])))
        assert sample["arguments"][0][0].count(own) == 1


def evaluate(task: str, benchmark: Benchmark, folder: Path) -> dict[str, Any]:
    member = {"task": task, **dict(benchmark.changes), **documents(task, folder)}
    loaded = manager().load([{"group": "paper", "task": [member]}])["tasks"]
    choose_examples(loaded[task], benchmark.shots)
    return lm_eval.simple_evaluate(
        Oracle(),
        tasks=list(loaded.values()),
        num_fewshot=benchmark.shots,
        limit=NUM_DOCUMENTS,
        bootstrap_iters=0,
        task_manager=manager(),
    )


def test_the_prompts_of_reading_comprehension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    squad, quac = (one for one in READING_SHOTS if one.shots == 1)
    (tmp_path / "squad").mkdir()
    samples = evaluate("llama2_squad", squad, tmp_path / "squad")["samples"]["llama2_squad"]
    description, example, question = samples[0]["arguments"][0][0].split("\n\n")
    assert description.endswith('not answer is "unanswerable".')
    assert re.fullmatch(
        r"Title: number 5\d\nPassage: Mars is red\.\nQuestion: What is Mars like\?\nAnswer: red", example
    )
    assert question == "Title: number 00\nPassage: Mars is red.\nQuestion: What is Mars like?\nAnswer:"

    samples = evaluate("llama2_quac", quac, tmp_path)["samples"]["llama2_quac"]
    assert [sample["doc"]["id"] for sample in samples[:3]] == ["d_q#0", "d_q#1", "d_q#0"]
    _, example, question = samples[1]["arguments"][0][0].split("\n\n")
    turns = "Passage: He sang the blues.\nQ: What did he sing?\nA: the blues\nQ: What else?\nA:"
    assert example.endswith(turns + " blues")  # an example is a whole dialogue
    assert question == "Title: number 00\nSection: Life\n" + turns
