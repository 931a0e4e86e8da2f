from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.score import add_logprobs, add_scores
from llama2_jax.config import ConfigError
from llama2_jax.data.sources import to_messages
from llama2_jax.data.tokenizer import encode_pair, split_ids
from llama2_jax.generate.decode import PromptError
from llama2_jax.rlhf.reward_checkpoint import load_reward_model
from llama2_jax.rlhf.reward_model import score_dialogues
from tests.experiments import runs
from tests.rlhf.small_policy import saved_reward_model

ROWS = [
    {"tokens": [1, 20, 30, 40, 50]},
    {"prompt": "The small model", "completion": " reads a letter."},
    {"tokens": [7]},
    {"prompt": "What is a token?", "completion": "A token is a piece of text, often part of a word."},
    {"tokens": list(range(3, 103))},
]


def by_hand(ids: list[int]) -> list[float]:
    """log softmax of a full forward pass of this row alone."""
    loaded = runs.chat_model()
    output = loaded.model.apply({"params": loaded.params}, jnp.asarray([ids], jnp.int32))
    logprobs_TV = np.asarray(jax.nn.log_softmax(output.logits_BTV[0]), np.float64)
    return [logprobs_TV[t - 1, ids[t]] for t in range(1, len(ids))]


def test_logprobs_are_those_of_a_full_forward_pass() -> None:
    for row in add_logprobs(runs.chat_model(), ROWS, batch_size=2):
        expected = by_hand(row["tokens"])
        assert row["logprobs"][0] is None
        assert row["logprobs"][1:] == pytest.approx(expected, abs=1e-5)
        assert row["sum"] == pytest.approx(sum(expected), abs=1e-3)


def test_rows_come_back_in_order_with_what_they_had() -> None:
    scored = add_logprobs(runs.chat_model(), [{**row, "id": i} for i, row in enumerate(ROWS)], batch_size=2)
    assert [row["id"] for row in scored] == [0, 1, 2, 3, 4]
    assert scored[1]["prompt"] == ROWS[1]["prompt"]
    assert scored[0]["tokens"] == ROWS[0]["tokens"]


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_a_row_scores_the_same_alone_and_in_a_batch(batch_size: int) -> None:
    loaded = runs.chat_model()
    together = add_logprobs(loaded, ROWS, batch_size=batch_size)
    for row, scored in zip(ROWS, together, strict=True):
        (alone,) = add_logprobs(loaded, [row], batch_size=1)
        assert scored["logprobs"][1:] == pytest.approx(alone["logprobs"][1:], abs=1e-5)


def test_completion_sum_covers_the_completion_only() -> None:
    loaded = runs.chat_model()
    (row,) = add_logprobs(loaded, [ROWS[1]], batch_size=1)
    prompt = loaded.require_tokenizer().encode("The small model", bos=True)
    assert row["tokens"][: len(prompt)] == prompt
    assert row["completion_tokens"] == len(row["tokens"]) - len(prompt)
    assert row["completion_sum"] == pytest.approx(sum(row["logprobs"][len(prompt) :]), abs=1e-6)


def test_output_rows_score_to_themselves() -> None:
    once = add_logprobs(runs.chat_model(), ROWS, batch_size=5)
    assert add_logprobs(runs.chat_model(), once, batch_size=5) == once


def test_texts_count_before_tokens_and_a_lone_text_does_not() -> None:
    loaded = runs.chat_model()
    plain, both, lone = add_logprobs(
        loaded, [ROWS[1], {**ROWS[1], "tokens": [1, 2]}, {"prompt": "x", "tokens": [1, 2]}], batch_size=4
    )
    assert both == plain
    assert lone["tokens"] == [1, 2]
    assert "completion_sum" not in lone


def test_space_at_the_end_of_a_prompt_belongs_to_the_completion() -> None:
    tokenizer = runs.chat_model().require_tokenizer()
    assert encode_pair("The model ", "reads", tokenizer) == encode_pair("The model", " reads", tokenizer)
    assert encode_pair("The model\n", "reads", tokenizer) != encode_pair("The model", "\nreads", tokenizer)
    either = {
        (before, spaces): split_ids(tokenizer.encode, before, "b", spaces=spaces)[0]
        for before in ("A", "A\n")
        for spaces in (" ", None)
    }
    assert either["A\n", None] == either["A", None] != either["A\n", " "]


def test_token_that_spans_prompt_and_completion_is_of_the_completion() -> None:
    tokenizer = runs.chat_model().require_tokenizer()
    text = "The garden"
    whole = tokenizer.encode(text, bos=True)
    longer_alone = 0
    for cut in range(len(text)):
        alone = tokenizer.encode(text[:cut], bos=True)
        own, rest = split_ids(
            lambda text: tokenizer.encode(text, bos=True), text[:cut], text[cut:], spaces=" "
        )
        ids, before = own + rest, len(own)
        assert ids == whole
        assert 1 <= before < len(ids)
        assert ids[:before] == alone[:before]
        assert before == len(alone) or ids[before] != alone[before]
        longer_alone += len(alone) >= len(whole)
    assert longer_alone, "no cut makes more tokens of the prompt than of all: take another text"


def test_completion_that_is_the_first_token_of_all_is_refused() -> None:
    pytest.importorskip("tokenizers", reason="pip install 'llama2_jax[import]'")
    from tests.interop.tokenizers_for_tests import byte_level_tokenizer

    tokenizer = byte_level_tokenizer()
    tokenizer.bos_id = -1
    loaded = runs.chat_model()._replace(tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="row 0: its completion has no token to score"):
        add_logprobs(loaded, [{"prompt": "", "completion": "a"}], batch_size=1)


def test_empty_completion_and_empty_prompt() -> None:
    rows = [{"prompt": "The model", "completion": ""}, {"prompt": "", "completion": "The model"}]
    empty, whole = add_logprobs(runs.chat_model(), rows, batch_size=2)
    assert (empty["completion_sum"], empty["completion_tokens"]) == (0.0, 0)
    assert whole["completion_sum"] == pytest.approx(whole["sum"])
    assert whole["completion_tokens"] == len(whole["tokens"]) - 1


def test_null_byte_is_scored_like_any_other_byte() -> None:
    (row,) = add_logprobs(runs.chat_model(), [{"prompt": "a\x00b", "completion": "\x00"}], batch_size=1)
    tokenizer = runs.chat_model().require_tokenizer()
    assert tokenizer.decode(row["tokens"]) == "a\x00b\x00"
    assert row["completion_tokens"] == 1
    assert all(np.isfinite(row["logprobs"][1:]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"tokens": [1, runs.VOCABULARY]},
            r"row 1 has token id 340, outside the model's vocabulary 0\.\.339",
        ),
        ({"tokens": [1, -1]}, "row 1 has token id -1"),
        ({"tokens": []}, "row 1 has no tokens"),
        ({"tokens": [1] * 129}, "row 1 has 129 tokens, the model's context is 128"),
        ({"tokens": [1, 2.5]}, "row 1: 'tokens' must be a list of whole numbers"),
        ({"tokens": "12"}, "row 1: 'tokens' must be a list of whole numbers"),
        ({"prompt": "x"}, "row 1 needs 'tokens', or 'prompt' and 'completion'; it has prompt"),
        ({"prompt": "x", "completion": None}, "row 1: 'completion' must be text, it is NoneType"),
        ({}, "row 1 needs .* it has nothing"),
    ],
)
def test_bad_row_is_named(row: dict, message: str) -> None:
    with pytest.raises((ConfigError, PromptError), match=message):
        add_logprobs(runs.chat_model(), [ROWS[0], row], batch_size=2)


def test_program_writes_rows_and_names_a_bad_line(tmp_path: Path) -> None:
    model, output = str(runs.fine_tuned_workdir()), tmp_path / "out" / "scores.jsonl"
    source = runs.write_lines(tmp_path / "in.jsonl", ROWS)
    arguments = [f"--checkpoint={model}", f"--input={source}", f"--output={output}"]
    result = runs.run_program("experiments.score", *arguments)
    assert result.returncode == 0, result.stderr
    scored = runs.read_lines(output)
    expected = add_logprobs(runs.chat_model(), ROWS, batch_size=8)
    assert [row["tokens"] for row in scored] == [row["tokens"] for row in expected]
    assert [row["sum"] for row in scored] == pytest.approx([row["sum"] for row in expected], abs=1e-4)
    before = output.read_bytes()
    runs.write_lines(source, [ROWS[0], "no json"])
    result = runs.run_program("experiments.score", *arguments)
    assert result.returncode == 2
    assert f"error: {source}, line 2: " in result.stderr
    assert output.read_bytes() == before


DIALOGUES = [
    {"id": n, "messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so " * n}]}
    for n in (3, 1, 8)
]


def test_a_reward_model_scores_answers(tmp_path: Path) -> None:
    path, source = saved_reward_model("helpfulness"), runs.write_lines(tmp_path / "in.jsonl", DIALOGUES)
    output = tmp_path / "out.jsonl"
    result = runs.run_program(
        "experiments.score", f"--checkpoint={path}", f"--input={source}", f"--output={output}"
    )
    assert result.returncode == 0, result.stderr
    wanted = score_dialogues(
        load_reward_model(path), [to_messages(row["messages"]) for row in DIALOGUES], batch_size=1
    )
    rows = runs.read_lines(output)
    assert [row.pop("score") for row in rows] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert rows == DIALOGUES


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "why?"}, "row 1 has no 'messages', which a reward model reads; it has prompt"),
        ({"messages": DIALOGUES[0]["messages"][:1]}, "row 1: .* the last message must be from the assistant"),
    ],
)
def test_what_a_reward_model_cannot_score_is_named(row: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        add_scores(load_reward_model(saved_reward_model("helpfulness")), [DIALOGUES[0], row], batch_size=2)
