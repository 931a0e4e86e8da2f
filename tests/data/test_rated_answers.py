import json

import pytest

from llama2_jax.config import ConfigError, to_plain
from llama2_jax.data.chat import Message
from llama2_jax.data.rated_answers import RatedAnswer, ratings, read_rated_answers
from llama2_jax.data.records import DataError

RATED = RatedAnswer((Message("user", "How?"),), "So.", 0.25, False, "toy")


def test_rows_read_back(tmp_path):
    path = tmp_path / "answers.jsonl"
    row = to_plain(RATED)
    short = {key: value for key, value in row.items() if key != "risk_category"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(short) + "\n")
    assert read_rated_answers(path) == [RATED, RATED._replace(risk_category="")]
    assert RATED.dialogue == [Message("user", "How?"), Message("assistant", "So.")]


def test_quality_is_the_median_of_the_grades(tmp_path):
    path = tmp_path / "answers.jsonl"
    row = {"messages": [{"role": "user", "content": "How?"}], "answer": "So."}
    rows = [
        row | {"quality": 6},
        row | {"quality": [7, 2, 3]},
        row | {"quality": 1, "harm": 0.5, "is_unsafe": True},
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    rated = read_rated_answers(path)
    assert [one.quality for one in rated] == [6, 3, 1]
    assert [(one.harm, one.is_unsafe) for one in rated] == [(None, None), (None, None), (0.5, True)]
    assert ratings(rated) == ("quality", [6, 3, 1])
    assert ratings([RATED, rated[2]]) == ("harm", [0.25, 0.5])
    with pytest.raises(ConfigError, match="of 3 rated answers 2 have a quality and 2 a harm; compare"):
        ratings([RATED, rated[0], rated[2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality": 0}, "'quality' is 0; it must be a number from 1 to 7, or a list of them"),
        ({"quality": [7, 8]}, r"'quality' is \[7, 8\]"),
        ({"quality": []}, r"'quality' is \[\]"),
        ({"quality": 5, "is_unsafe": None}, "'is_unsafe' is None; it must be true or false"),
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
    with pytest.raises(DataError, match="a row needs 'quality', or 'harm' and 'is_unsafe'"):
        read_rated_answers(path)
