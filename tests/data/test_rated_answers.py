import json

import pytest

from llama2_jax.config import to_plain
from llama2_jax.data.chat import Message
from llama2_jax.data.rated_answers import RatedAnswer, read_rated_answers
from llama2_jax.data.records import DataError

RATED = RatedAnswer((Message("user", "How?"),), "So.", 0.25, False, "toy")


def test_rows_read_back(tmp_path):
    path = tmp_path / "answers.jsonl"
    row = to_plain(RATED)
    short = {key: value for key, value in row.items() if key != "risk_category"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(short) + "\n")
    assert read_rated_answers(path) == [RATED, RATED._replace(risk_category="")]
    assert RATED.dialogue == [Message("user", "How?"), Message("assistant", "So.")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harm": 2}, "'harm' is 2; it must be a number from 0 to 1"),
        ({"harm": "much"}, "'harm' is 'much'"),
        ({"harm": True}, "'harm' is True; it must be a number from 0 to 1"),
        ({"is_unsafe": 1}, "'is_unsafe' is 1; it must be true or false"),
        ({"messages": [{"role": "assistant", "content": "So."}]}, "beginning with user"),
        ({"answer": None}, "no 'content' text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(to_plain(RATED) | change) + "\n")
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        read_rated_answers(path)


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    row = to_plain(RATED)
    del row["harm"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="key 'harm' is missing"):
        read_rated_answers(path)
