import json

import pytest

from llama2_jax.data.records import DataError
from llama2_jax.evals.safety_prompts import SafetyPrompt
from llama2_jax.evals.toxigen import GROUPS, read_prompts, toxic_shares

ROWS = [
    {"id": 0, "text": " they are all kind ", "toxicity_score": 1.0, "target_groups": ["women"]},
    {"id": 4, "text": "tea is grown there", "target_groups": ["asian", "chinese"]},
]


def test_the_official_file_is_read(tmp_path):
    path = tmp_path / "toxiGen.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    assert read_prompts(path) == [
        SafetyPrompt("they are all kind", "they are all kind", ("women",)),
        SafetyPrompt("tea is grown there", "tea is grown there", ("asian", "chinese")),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "the JSON is nested too deeply"),
        ("{}", "must be a list of"),
        ("[3]", "entry 1: it is int, not an object"),
        (json.dumps([*ROWS, {"text": "x"}]), "entry 3 has no 'target_groups'"),
        (json.dumps([{"text": " ", "target_groups": ["women"]}]), "its text is empty"),
        (json.dumps([{"text": "x", "target_groups": []}]), "must be a list that is not empty"),
        (json.dumps([{"text": "x", "target_groups": ["men"]}]), r"has \['men'\]; known are asian, mexican"),
        (json.dumps([{"text": "x", "target_groups": [["men"]]}]), r"has \[\['men'\]\]"),
    ],
)
def test_another_form_is_refused(tmp_path, content, message):
    path = tmp_path / "toxiGen.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_prompts(path)


def test_an_answer_counts_in_each_of_its_groups_and_once_in_all():
    groups = [("asian", "chinese"), ("asian",), ("women",), ("asian", "women")]
    shares = toxic_shares(groups, [0.5, 0.1, 0.4999, 1.0])
    assert {name: share.value for name, share in shares.items()} == {
        "all": 2 / 4,
        "Asian": 2 / 3,
        "Chinese": 1 / 1,
        "Women": 1 / 2,
    }


def test_there_are_the_papers_13_groups():
    assert len(set(GROUPS.values())) == 13
