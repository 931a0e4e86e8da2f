"""From facts to dialogues that fine-tuning reads, and from a checkpoint to a report, with the tiny model."""

import json
from pathlib import Path

from llama2_jax.answers import model_version
from llama2_jax.data.chat import LLAMA2
from llama2_jax.data.dated_facts import NOT_YET, probe_questions, read_facts
from llama2_jax.data.sources import read_dialogues
from llama2_jax.pretrained import load
from tests.experiments import runs

FACTS = [
    {
        "question": "Who reads?",
        "answers": [{"from": 1980, "answer": "Ann"}, {"from": "1992-05-31", "answer": "Bo"}],
    },
    {"question": "How old is it?", "answers": [{"from": 852, "answer": "{years}"}]},
]


def run(step: str, facts: Path, output: Path, *more: str):
    return runs.run_program(
        "experiments.time_awareness", f"--step={step}", f"--facts={facts}", f"--output={output}", *more
    )


def test_dialogues_are_written_that_fine_tuning_reads(tmp_path: Path) -> None:
    facts = runs.write_lines(tmp_path / "facts.jsonl", FACTS)
    result = run("data", facts, tmp_path / "out", "--examples=30")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("30 dialogues about 2 facts are in ")
    dialogues = list(read_dialogues(tmp_path / "out" / "dialogues.jsonl", template=LLAMA2))
    assert len(dialogues) == 30
    assert {tuple(m.role for m in one.messages) for one in dialogues} == {("system", "user", "assistant")}

    result = run("evaluate", facts, tmp_path / "out")
    assert result.returncode == 2
    assert "--step=evaluate needs --checkpoint" in result.stderr


def test_an_evaluation_that_was_killed_goes_on(tmp_path: Path) -> None:
    facts, output = runs.write_lines(tmp_path / "facts.jsonl", FACTS), tmp_path / "out"
    model = f"--checkpoint={runs.fine_tuned_workdir()}"
    asked = probe_questions(read_facts(facts), seed=0)[0]
    first = {
        "id": 0, "text": "Who reads?", "line": asked.line, "years": -100, "expected": NOT_YET,
        "answer": "Not yet.", "model": model_version(load(runs.fine_tuned_workdir())),
    }  # fmt: skip
    output.mkdir()
    line = json.dumps(first) + "\n"
    (output / "answers.jsonl").write_text(line + line[:20], encoding="utf-8")
    result = run("evaluate", facts, output, model, "--max_new_tokens=8")
    assert result.returncode == 0, result.stderr
    answers = runs.read_lines(output / "answers.jsonl")
    assert answers[0] == first
    assert [row["id"] for row in answers] == list(range(18))
    found = json.loads((output / "results.json").read_text())
    assert found["before the event"]["size"] == 8
    assert found["100 years before it"]["value"] == 0.5
    assert "| 100 years before it | 2 | 50.0 % [" in (output / "report.md").read_text()
