import pytest

from llama2_jax.config import to_plain
from llama2_jax.data.chat import Message
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.prompts import (
    Prompt,
    prompt_from_row,
    read_prompts,
    read_prompts_to_train_on,
    write_prompts,
)
from llama2_jax.data.records import DataError

PROMPTS = [
    Prompt("a", (Message("system", "Be brief."), Message("user", "Why?"))),
    Prompt("b", (Message("user", "How?"),), "facts", True, "toy", "none"),
]


def test_prompts_survive_the_file(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    assert read_prompts(tmp_path / "prompts.jsonl") == PROMPTS


def test_what_a_row_does_not_say_has_its_default():
    row = {"prompt_id": "a", "messages": [{"role": "user", "content": "Why?"}]}
    assert prompt_from_row(row) == Prompt("a", (Message("user", "Why?"),))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colour": "red"}, "unknown key(s) colour; known: prompt_id"),
        ({"messages": None}, "'messages' is NoneType, not a list"),
        ({"messages": [{"role": "assistant", "content": "So."}]}, "beginning with user"),
        ({"is_safety": 1}, "'is_safety' is 1; it must be of type bool"),
        ({"prompt_id": "a"}, "prompt_id 'a' stands twice"),
    ],
)
def test_a_bad_row_names_file_line_and_reason(tmp_path, change, reason):
    path = tmp_path / "prompts.jsonl"
    write_rows(path, [to_plain(PROMPTS[0]), to_plain(PROMPTS[1]) | change])
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert reason in str(caught.value)


def test_what_is_trained_on_has_no_empty_message(tmp_path):
    path = tmp_path / "prompts.jsonl"
    empty = Prompt("x", (Message("system", " "), Message("user", "Why?")))
    write_prompts(path, [PROMPTS[0], empty])
    assert len(read_prompts(path)) == 2  # to be asked it is good enough
    with pytest.raises(
        DataError, match=r"prompts.jsonl: prompt 'x': message\(s\) \[0\] are empty; leave it out"
    ):
        read_prompts_to_train_on(path)
