"""The program from a file of problems to the report, with the tiny model."""

import dataclasses
import json
from pathlib import Path

from experiments import tool_use
from llama2_jax.answers import model_version
from llama2_jax.data.chat import Message, encode_prompt
from llama2_jax.evals import tools
from llama2_jax.evals.text_completion import Completion
from llama2_jax.evals.tools import Call, Transcript, make_tools
from llama2_jax.pretrained import for_decoding, load, save_native
from tests.experiments import runs

PROBLEMS = [{"question": f"Ann has {n} pens. How many?", "answer": n} for n in range(3)]
DIALOGUE = [Message("system", "Be brief."), Message("user", "How many?")]


def evaluate(problems: Path, checkpoint: Path, output: Path, *more: str):
    return runs.run_program(
        "experiments.tool_use",
        "--benchmark=own",
        f"--problems={problems}",
        f"--checkpoint={checkpoint}",
        f"--output={output}",
        "--max_new_tokens=8",
        "--batch_size=1",
        *more,
    )


def test_a_run_that_was_killed_goes_on_and_ends_in_a_report(tmp_path: Path) -> None:
    problems, output = runs.write_lines(tmp_path / "own.jsonl", PROBLEMS), tmp_path / "out"
    loaded = runs.chat_model()  # whose context is too short for the system prompt
    wide = loaded._replace(config=dataclasses.replace(loaded.config, max_context=1024))
    save_native(tmp_path / "model", wide)
    call = Call("CALL_API_1: CALCULATOR | 1-1 ->", 1, "CALCULATOR", "1-1", "0", tools.OK)
    first = {
        "id": 0, "name": "", "text": PROBLEMS[0]["question"], "expected": 0.0,
        "with_tools": Transcript(f"{call.text} 0\n", (call,), tools.ANSWERED)._asdict(),
        "without_tools": Transcript("7", (), tools.ANSWERED)._asdict(),
        "model": model_version(load(tmp_path / "model")),
    }  # fmt: skip
    output.mkdir()
    line = json.dumps(first) + "\n"
    (output / "answers.jsonl").write_text(line + line[:20], encoding="utf-8")
    result = evaluate(problems, tmp_path / "model", output)
    assert result.returncode == 0, result.stderr
    rows = runs.read_lines(output / "answers.jsonl")
    assert rows[0] == json.loads(json.dumps(first))
    assert [(row["id"], row["expected"], row["model"]) for row in rows[1:]] == [
        (n, n, first["model"]) for n in (1, 2)
    ]
    # the other two are random weights, which do not end within 8 tokens
    ends = [[row[way]["end"] for way in ("with_tools", "without_tools")] for row in rows]
    assert ends == [["answered", "answered"], ["cut off", "cut off"], ["cut off", "cut off"]]
    found = json.loads((output / "results.json").read_text())
    assert (found["problems"], found["only_with_tools"], found["only_without_tools"]) == (3, 1, 0)
    assert (found["calls"]["answers_with_a_call"], found["calls"]["ok"]) == (1, 1)
    report = (output / "report.md").read_text()
    assert "| here, with tools | 3 | 33.3 % [" in report
    assert "| here, without tools | 3 | 0.0 % [" in report


def test_search_results_want_the_tool(tmp_path: Path) -> None:
    result = evaluate(tmp_path / "none", tmp_path, tmp_path, "--search_results=known.jsonl")
    assert result.returncode == 2
    assert "--search_results=known.jsonl is for the tool SEARCH; give --tools=SEARCH too" in result.stderr


def test_an_answer_begun_is_continued_where_it_ends() -> None:
    loaded = runs.chat_model()
    tokenizer = loaded.require_tokenizer()
    assert tool_use._ids(loaded, DIALOGUE, "") == encode_prompt(DIALOGUE, tokenizer, loaded.template)
    begun = tokenizer.decode(tool_use._ids(loaded, DIALOGUE, "CALL_API_1: CALCULATOR | 1+1 -> 2\n"))
    assert begun.endswith("How many? [/INST] CALL_API_1: CALCULATOR | 1+1 -> 2\n")


def test_the_model_writes_and_a_full_context_ends_its_answer(monkeypatch) -> None:
    """A model that always comes to a call, by its completions; what it reads is its own."""
    loaded = for_decoding(runs.chat_model())
    read = []

    def complete_until(loaded, prompts, sampling, *, is_complete, seeds, batch_size):
        texts = [loaded.require_tokenizer().decode(prompt) for prompt in prompts]
        read.extend(text.partition("[/INST] ")[2] for text in texts)
        assert is_complete("CALL_API_1: CALCULATOR | 4/2 ->")
        return [Completion("CALL_API_1: CALCULATOR | 4/2 ->", False)] * len(prompts)

    monkeypatch.setattr(tool_use, "complete_until", complete_until)
    length = len(tool_use._ids(loaded, DIALOGUE, "CALL_API_1: CALCULATOR | 4/2 -> 2\n"))
    small = loaded._replace(config=dataclasses.replace(loaded.config, max_context=length + 1))
    [found] = tool_use.transcripts(
        small, [DIALOGUE], make_tools(["CALCULATOR"], {}), max_calls=9, max_new_tokens=40, batch_size=2
    )
    assert read == ["", "CALL_API_1: CALCULATOR | 4/2 -> 2\n"]
    assert (found.end, [call.result for call in found.calls]) == (tools.NO_ROOM, ["2", "2"])
