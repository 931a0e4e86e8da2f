"""Figure 21 with a tiny model, and its numbers by hand."""

import json

import pytest

from experiments.temperature_rescaling import (
    checked_temperatures,
    measured,
    read_grouped_prompts,
    sample_version,
)
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.data.records import DataError
from llama2_jax.evals.self_bleu import self_bleu_scorer
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.rlhf.archive import Sample
from tests.experiments import runs
from tests.rlhf.small_policy import policy, saved_policy

ROWS = [
    {"prompt": "The small model", "group": "factual"},
    {"messages": [{"role": "user", "content": "The quiet river"}], "group": "factual"},
    {"prompt": "Write a line", "group": "creative"},
    {"prompt": "Write a poem", "group": "creative"},
]


def test_the_program_end_to_end(tmp_path):
    prompts, output = runs.write_lines(tmp_path / "prompts.jsonl", ROWS), tmp_path / "out"
    result = runs.run_program(
        "experiments.temperature_rescaling", f"--version=SFT={saved_policy()}", f"--prompts={prompts}",
        f"--version=RLHF-V1={saved_policy(1)}", f"--output={output}", "--temperatures=0.01,1.5",
        "--max_new_tokens=8", "--answers=3", "--seed=5",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = runs.read_lines(output / "answers" / "SFT.jsonl")
    assert len(rows) == 4 * 2 * 3
    assert {row["seed"] for row in rows} == {5, 6, 7}
    point = json.loads((output / "results.json").read_text())["points"]["creative"]["SFT"]["0.01"][
        "self_bleu"
    ]
    scores = [
        self_bleu_scorer()([r["text"] for r in rows if (r["prompt_id"], r["temperature"]) == (number, 0.01)])
        for number in "23"
    ]
    assert scores[0] != scores[1]  # alike, they could be mixed up
    assert point["mean"] == pytest.approx(sum(scores) / 2)
    assert point["deviation"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    report = (output / "report.md").read_text()
    assert "| temperature | SFT | RLHF-V1 |" in report
    assert f"| 0.01 | {point['mean']:.1f} ± {point['deviation']:.1f} |" in report
    assert (output / "self_bleu.png").stat().st_size > 10_000


def test_sampling_goes_on_after_a_kill_and_takes_more_answers(tmp_path):
    prompts = read_grouped_prompts(runs.write_lines(tmp_path / "prompts.jsonl", ROWS), group_key="group")
    archive = tmp_path / "answers.jsonl"

    def sampled(count):
        samplings = [SamplingConfig(8, temperature) for temperature in (0.5, 1.5)]
        return sample_version(archive, policy(), prompts, samplings, num_samples=count, batch_size=4)

    first = sampled(2)
    lines = archive.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(first) == 4 * 2 * 2
    archive.write_bytes(b"".join(lines[:10]) + lines[10][:30])
    assert sampled(2) == first
    assert [one for one in sampled(3) if one.seed < 2] == first


def test_points_by_hand():
    def sample(prompt_id, text, stopped=True):
        prompt = Prompt(prompt_id, (Message("user", "?"),), "factual")
        return Sample(prompt, 0, "m", 0.5, 0, (5,), text, stopped, "llama2/x", {}, {})

    alike = [sample("0", "It is so and so.")] * 2
    strange = [sample("1", "one"), sample("1", "", stopped=False)]
    point = measured({"SFT": [*alike, *strange]}, self_bleu_scorer())["factual"]["SFT"][0.5]
    assert point == ((50, pytest.approx(50 * 2**0.5), 2), 0.75, 1)


def test_prompts_and_temperatures_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="has one prompt of creative"):
        read_grouped_prompts(runs.write_lines(tmp_path / "a.jsonl", ROWS[:3]), group_key="group")
    with pytest.raises(DataError, match="line 1: key 'family' is missing"):
        read_grouped_prompts(runs.write_lines(tmp_path / "b.jsonl", ROWS), group_key="family")
    with pytest.raises(DataError, match="line 1: 'group' is empty"):
        read_grouped_prompts(
            runs.write_lines(tmp_path / "c.jsonl", [ROWS[0] | {"group": ""}]), group_key="group"
        )
    assert checked_temperatures(["1", "0.5"]) == [0.5, 1]
    for texts in (["0", "1"], ["warm"], [], ["inf"], ["nan"]):
        with pytest.raises(ConfigError, match="give positive numbers"):
            checked_temperatures(texts)
