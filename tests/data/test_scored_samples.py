import json

import pytest

from llama2_jax.data.scored_samples import ScoredSample, read_scored_samples
from llama2_jax.data.sources import DataError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def logged(doc_id, requests, target, **more):
    """A row as lm_eval logs it."""
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(request)}
        for i, request in enumerate(requests)
    }
    common = {"doc": {}, "resps": [], "filtered_resps": [], "filter": "none", "metrics": ["acc"], "acc": 1.0}
    return {"doc_id": doc_id, "target": target, "arguments": arguments, **common, **more}


CHOICES = [("2 + 2 =", " 3"), ("2 + 2 =", " 4"), ("2 + 2 =", " 5")]


def read_one(tmp_path, *request, **more):
    path = write(tmp_path / "samples_sums_2025-01-02T03-04-05.678.jsonl", [logged(7, *request, **more)])
    (sample,) = read_scored_samples(path)
    return sample


def test_rows_of_our_own(tmp_path):
    rows = [
        {"id": "a", "text": "x y", "dataset": "d", "metric": True, "note": 1},
        {"id": 1, "text": "z", "dataset": "d", "metric": 0.5},
    ]
    samples = read_scored_samples(write(tmp_path / "a.jsonl", rows))
    assert samples == [("a", "x y", "d", 1.0), ("1", "z", "d", 0.5)]


@pytest.mark.parametrize(
    ("requests", "target", "text"),
    [
        (CHOICES, "1", "2 + 2 = 4"),  # the number of the choice
        ([("Sky:", " blue"), ("Sky:", " red")], "red", "Sky: red"),  # its text
        ([("Sky:", " red"), ("", " red")], "red", "Sky: red"),  # acc_mutual_info asks without prompt too
        ([("I like", " tea")], "tea", "I like tea"),
        ([("Q: 2 + 2\nA:", {"until": ["\n"]})], "4", "Q: 2 + 2\nA: 4"),
        ([("Q: 2 + 2\nA:\n", {"until": ["\n"]})], "['4', 'four']", "Q: 2 + 2\nA:\n4"),
        ([("The whole text.",)], "", "The whole text."),
    ],
)
def test_a_logged_sample_is_the_prompt_with_the_right_answer(tmp_path, requests, target, text):
    assert read_one(tmp_path, requests, target) == ScoredSample("sums/7", text, "sums", 1.0)


def test_examples_are_cut_off_where_a_delimiter_is_given(tmp_path):
    row = logged(0, [("Q: 1\nA: 1\n\nQ: 2\nA: 2\n\nQ: 3\nA:", " 3")], "3")
    path = write(tmp_path / "a.jsonl", [row])
    assert read_scored_samples(path, fewshot_delimiter="\n\n")[0].text == "Q: 3\nA: 3"
    assert read_scored_samples(path)[0].text == "Q: 1\nA: 1\n\nQ: 2\nA: 2\n\nQ: 3\nA: 3"


def test_a_delimiter_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [logged(0, CHOICES, "1")])
    with pytest.raises(DataError, match="line 1: the prompt has no"):
        read_scored_samples(path, fewshot_delimiter="\n\n")


def test_one_filter_and_one_metric_count(tmp_path, caplog):
    metrics = {"metrics": ["strict", "loose"], "strict": 0.0, "loose": 1.0}
    rows = [
        logged(doc, [("Q", {})], "A", filter=name, **metrics)
        for name in ("first", "last")
        for doc in range(2)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert [sample.metric for sample in read_scored_samples(path)] == [0.0, 0.0]
    assert [sample.metric for sample in read_scored_samples(path, metric="loose")] == [1.0, 1.0]
    assert "metrics of filter 'first'; not of last" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "text": "x", "dataset": "d"}, "line 1: key 'metric' is missing"),
        ({"id": "a", "text": " ", "dataset": "d", "metric": 1}, "the text is empty"),
        ({"id": "a", "text": "x", "dataset": "d", "metric": "1"}, "'metric' is '1', not a number"),
        ({"id": "a", "text": "x", "dataset": "d", "metric": float("nan")}, "'metric' is nan, not a number"),
        (logged(0, CHOICES, "six"), "0 of 3 continuations are the target 'six'"),
        (logged(0, [("a", " c"), ("b", " c")], "c"), "2 of 2 continuations are the target 'c'"),
        (logged(0, CHOICES, "1", arguments=[["a", "b"]]), "'arguments' is not an object"),
        (logged(0, [([{"role": "user"}], {})], "c"), "the prompt is list, not text"),
        (logged(0, CHOICES, "1", acc=[0.5, 7]), "'acc' is [0.5, 7], not a number"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, message):
    with pytest.raises(DataError) as error:
        read_scored_samples(write(tmp_path / "a.jsonl", [row]))
    assert message in str(error.value)


def test_a_sample_counts_once(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": "a", "text": "x", "dataset": "d", "metric": 1}] * 2)
    with pytest.raises(DataError, match="sample 'a' of d is there twice"):
        read_scored_samples(path)
