from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags

from experiments import checkpoint_flags
from experiments import generate as program
from experiments.generate import complete_rows, prompt_ids
from experiments.score import add_logprobs
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import Message, encode_prompt
from llama2_jax.generate.decode import PromptError
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.pretrained import for_decoding
from tests.experiments import runs

GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)
ROWS = [
    {"id": "a", "prompt": "The small model"},
    {"id": "b", "tokens": [1, 20, 30]},
    {"id": "c", "messages": [{"role": "user", "content": "What is a token?"}]},
    {"id": "d", "prompt": ""},
    {"id": "e", "prompt": "The patient teacher explains a longer story after the rain."},
]


def complete(
    rows: list[dict], sampling: SamplingConfig = GREEDY, *, batch_size: int = 2, seed: int = 0
) -> list[dict]:
    return list(complete_rows(runs.chat_model(), rows, sampling, batch_size=batch_size, seed=seed))


def test_every_row_comes_back_in_order_with_its_completion() -> None:
    results = complete(ROWS)
    assert [row["id"] for row in results] == ["a", "b", "c", "d", "e"]
    for given, row in zip(ROWS, results, strict=True):
        assert given.items() <= row.items()
        assert isinstance(row["completion"], str)
        assert 1 <= len(row["completion_tokens"]) <= 12
        assert row["stopped"] == (row["completion_tokens"][-1] == 2)
        assert len(row["logprobs"]) == len(row["completion_tokens"])


def test_rows_are_turned_into_the_tokens_they_describe() -> None:
    loaded = runs.chat_model()
    tokenizer = loaded.require_tokenizer()
    ids = [prompt_ids(row, loaded, where="row") for row in ROWS]
    assert ids[0] == tokenizer.encode("The small model", bos=True)
    assert ids[1] == [1, 20, 30]
    assert ids[2] == encode_prompt([Message("user", "What is a token?")], tokenizer, loaded.template)
    assert ids[3] == [tokenizer.bos_id]


def test_logprobs_are_those_that_score_gives() -> None:
    loaded = runs.chat_model()
    prompts = [prompt_ids(row, loaded, where="row") for row in ROWS]
    results = complete(ROWS, SamplingConfig(max_new_tokens=8, temperature=1.0), seed=3)
    joined = [
        {"tokens": prompt + row["completion_tokens"]} for prompt, row in zip(prompts, results, strict=True)
    ]
    scored = add_logprobs(loaded, joined, batch_size=4)
    for prompt, row, score in zip(prompts, results, scored, strict=True):
        assert row["logprobs"] == pytest.approx(score["logprobs"][len(prompt) :], abs=1e-4)


@pytest.mark.parametrize("prompt", ["The small model", "The quiet river ", "", "a\n", "  two  spaces"])
def test_completion_is_what_the_prompt_lacks_of_the_joined_text(prompt: str) -> None:
    tokenizer = runs.chat_model().require_tokenizer()
    (row,) = complete([{"prompt": prompt}], batch_size=1)
    ids = tokenizer.encode(prompt, bos=True) + row["completion_tokens"]
    assert prompt + row["completion"] == tokenizer.decode(ids[:-1] if row["stopped"] else ids)


def test_generated_rows_can_be_scored() -> None:
    loaded = runs.chat_model()
    tokenizer = loaded.require_tokenizer()
    prompts = [{"prompt": text} for text in ("The small model", "The quiet river", "", "The letter reads 12")]
    results = complete(prompts, batch_size=4)
    compared = 0
    for row, scored in zip(results, add_logprobs(loaded, results, batch_size=4), strict=True):
        ids = tokenizer.encode(row["prompt"], bos=True) + row["completion_tokens"]
        length = len(row["completion_tokens"]) - row["stopped"]  # the stop token has no text
        if scored["tokens"] == ids[: len(ids) - row["stopped"]]:
            compared += 1
            assert scored["completion_tokens"] == length
            assert scored["completion_sum"] == pytest.approx(sum(row["logprobs"][:length]), abs=1e-3)
    assert compared >= 3, "text of a trained tokenizer should nearly always come back as the same ids"


def test_first_of_several_keys_counts() -> None:
    loaded = runs.chat_model()
    messages = ROWS[2]["messages"]
    texts = {"prompt": "The small model", "messages": messages, "tokens": [1, 2]}
    ids = [prompt_ids(row, loaded, where="row") for row in (texts, {"messages": messages, "tokens": [1, 2]})]
    assert ids == [prompt_ids(row, loaded, where="row") for row in (ROWS[0], ROWS[2])]


@pytest.mark.parametrize("seed", [-1, 2**32 - 1])
def test_seeds_of_all_rows_are_checked_before_the_first_batch(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed .* is outside 0 to 4294967295"):
        complete(ROWS, seed=seed)


def test_greedy_takes_the_most_likely_token() -> None:
    (row,) = complete(ROWS[:1], batch_size=1)
    ids = prompt_ids(ROWS[0], runs.chat_model(), where="row")
    loaded = runs.chat_model()
    logits = loaded.model.apply({"params": loaded.params}, np.array([ids], np.int32)).logits_BTV
    assert row["completion_tokens"][0] == int(logits[0, -1].argmax())


def test_sampled_row_depends_on_its_seed_and_not_on_its_batch() -> None:
    sampling = SamplingConfig(max_new_tokens=8, temperature=1.0)
    together = complete(ROWS, sampling, batch_size=5, seed=7)
    in_pairs = complete(ROWS, sampling, batch_size=2, seed=7)
    other_seed = complete(ROWS, sampling, batch_size=5, seed=8)
    tokens = [[row["completion_tokens"] for row in rows] for rows in (together, in_pairs, other_seed)]
    assert tokens[0] == tokens[1]
    assert tokens[0] != tokens[2]


def test_completion_leaves_the_stop_token_out() -> None:
    tokenizer = runs.chat_model().require_tokenizer()
    results = complete([ROWS[2]] * 4, SamplingConfig(max_new_tokens=60, temperature=1.0), batch_size=4)
    stopped = [row for row in results if row["stopped"]]
    assert stopped, "the fine-tuned model is expected to end an answer now and then"
    for row in stopped:
        assert row["completion"] == tokenizer.decode(row["completion_tokens"][:-1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "row 1 has none of 'prompt', 'tokens', 'messages'; it has text"),
        ({"prompt": 3}, "row 1: 'prompt' must be text, it is int"),
        ({"tokens": [1, "2"]}, "row 1: 'tokens' must be a list of whole numbers"),
        ({"tokens": [1, 340]}, "prompt 1 has token id 340"),
        ({"tokens": []}, "prompt 1 is empty"),
        ({"tokens": [1] * 128}, "prompt 1 has 128 tokens, the model's context is 128"),
        ({"messages": "hi"}, "row 1: 'messages' is str, not a list"),
        ({"messages": [{"role": "user"}]}, "row 1: message 0 has no 'content' text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "row 1: roles are assistant"),
        ({"messages": [{"role": "user", "content": "<<SYS>>"}]}, "row 1: Error: special tags"),
    ],
)
def test_bad_row_is_named(row: dict, message: str) -> None:
    with pytest.raises((ConfigError, PromptError), match=message):
        complete([ROWS[0], row])


def flag_values(*arguments: str) -> flags.FlagValues:
    """Flags of a program of its own, as given after its name."""
    values = flags.FlagValues()
    checkpoint_flags.define(values)
    values(["program", f"--checkpoint={runs.fine_tuned_workdir()}", *arguments])
    return values


def test_model_split_over_two_devices_gives_the_same_tokens() -> None:
    loaded = checkpoint_flags.load_checkpoint(flag_values("--tensor=2"))
    head = loaded.params["unembedding_DV"]
    assert head.sharding.shard_shape(head.shape)[1] == runs.VOCABULARY // 2
    results = complete_rows(for_decoding(loaded), ROWS[:2], GREEDY, batch_size=2, seed=0)
    for row, expected in zip(results, complete(ROWS[:2]), strict=True):
        assert row["completion_tokens"] == expected["completion_tokens"]
        assert row["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4)


def test_dtype_is_that_of_parameters_and_computation() -> None:
    for given, dtype in (((), "float32"), (("--dtype=bfloat16",), "bfloat16")):
        loaded = checkpoint_flags.load_checkpoint(flag_values(*given))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {dtype}
        assert loaded.config.compute_dtype == dtype
        assert loaded.params["unembedding_DV"].sharding.num_devices == 1


def test_flags_reach_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(checkpoint_flags, "load", lambda path, **named: given.update(named))
    checkpoint_flags.load_checkpoint(
        flag_values("--dtype=bfloat16", "--attention_impl=xla", "--template=chatml")
    )
    partitioner = given.pop("partitioner")
    assert partitioner.mesh.size == 1
    assert given == {
        "dtype": "bfloat16",
        "compute_dtype": "bfloat16",
        "attention_impl": "xla",
        "template": "chatml",
    }


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (9, "--tensor=9 needs as many devices, but 8 are present; lower it"),
        (3, r"dimension \w = \d+ of a tensor .* is not divisible by 3 devices of mesh axis tensor"),
    ],
)
def test_devices_that_cannot_share_the_model_are_refused(tensor: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checkpoint_flags.load_checkpoint(flag_values(f"--tensor={tensor}"))


def test_rows_are_given_as_their_batches_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    generate = program.generate
    monkeypatch.setattr(program, "generate", lambda *a, **k: batches.append(a) or generate(*a, **k))
    rows = complete_rows(runs.chat_model(), ROWS, GREEDY, batch_size=2, seed=0)
    assert next(rows)["id"] == "a"
    assert len(batches) == 1


def test_the_output_is_not_the_input(tmp_path: Path) -> None:
    source = runs.write_lines(tmp_path / "in.jsonl", ROWS)
    for name in ("generate", "score"):
        result = runs.run_program(
            f"experiments.{name}", "--checkpoint=x", f"--input={source}",
            f"--output={tmp_path}/../{tmp_path.name}/in.jsonl",
        )  # fmt: skip
        assert result.returncode == 2
        assert "in.jsonl is the file of --input; name another" in result.stderr
    assert runs.read_lines(source) == ROWS


def test_program_writes_the_output_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    source = runs.write_lines(tmp_path / "in.jsonl", ROWS)
    arguments = [
        f"--checkpoint={runs.fine_tuned_workdir()}", f"--input={source}", f"--output={output}",
        "--temperature=0", "--max_new_tokens=12", "--batch_size=2",
    ]  # fmt: skip
    result = runs.run_program("experiments.generate", *arguments)
    assert result.returncode == 0, result.stderr
    expected = complete(ROWS)
    assert [r["completion_tokens"] for r in runs.read_lines(output)] == [
        r["completion_tokens"] for r in expected
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
