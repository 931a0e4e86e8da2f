import gzip
import json

import pytest

from llama2_jax.data.records import DataError
from llama2_jax.data.scored_samples import ScoredSample, read_scored_samples


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


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("[-2,7]", "[-2,7]"),  # of MATH
        ("[2,5)", "[2,5)"),
        ("[]", "[]"),
        ("[a\nb]", "[a\nb]"),
        ("['a', 1]", "['a', 1]"),
        ("[" * 300, "[" * 300),
        ("[{[]: 1}]", "[{[]: 1}]"),
        ("['4', 'four']", "4"),
        (["4", "four"], "4"),
        (4, "4"),
    ],
)
def test_targets_of_a_generated_answer(tmp_path, target, text):
    assert read_one(tmp_path, [("Q:", {"until": ["\n"]})], target).text == f"Q: {text}"


def test_targets_of_a_multiple_choice_in_older_logs(tmp_path):
    assert read_one(tmp_path, CHOICES, 1).text == "2 + 2 = 4"
    assert read_one(tmp_path, CHOICES, ["5", "five"]).text == "2 + 2 = 5"


@pytest.mark.parametrize(
    ("likelihoods", "acc", "right"),
    [
        ((-1.5, -2.5), 1.0, "trophy"),  # the first is likelier, and that was right
        ((-1.5, -2.5), 0.0, "suitcase"),
        ((-10.5, -9.5), 1.0, "suitcase"),  # as text "-10.5" is the smaller one too, but "-9.5" > "-10.5"
        ((-10.5, -9.5), 0.0, "trophy"),
        ((-2.0, -2.0), 1.0, "trophy"),  # argmax takes the first of equal ones
        ((-2.0, -2.0), 0.0, "suitcase"),
    ],
)
def test_the_right_one_of_two_prompts_follows_from_whether_the_model_was_right(
    tmp_path, likelihoods, acc, right
):
    requests = [(f"It is too big, the {name}", " is.") for name in ("trophy", "suitcase")]
    for answers in ([[str(one), "False"] for one in likelihoods], [[one, False] for one in likelihoods]):
        sample = read_one(tmp_path, requests, "is.", acc=acc, filtered_resps=answers)
        assert sample.text == f"It is too big, the {right} is."
        assert sample.metric == acc


@pytest.mark.parametrize(
    "name",
    [
        "samples_a_b.jsonl",
        "samples_a_b_2025-01-02T03-04-05.678.jsonl",
        "samples_a_b_2025-01-02T03-04-05.jsonl.gz",
        "a_b.jsonl",
    ],
)
def test_the_dataset_is_the_task(tmp_path, name):
    path = write(tmp_path / name, [logged(0, CHOICES, "1")])
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_scored_samples(path)[0].dataset == "a_b"


def test_whole_prompts_are_warned_of_once_per_file(tmp_path, caplog):
    rows = [logged(doc, [("Q: 1\nA: 1\n\nQ: 3\nA:", " 3")], "3") for doc in range(3)]
    own = write(tmp_path / "own.jsonl", [{"id": "a", "text": "x", "dataset": "d", "metric": 1}])
    files = [write(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    read_scored_samples(files, fewshot_delimiter="\n\n")
    read_scored_samples(own)
    assert caplog.messages == []
    read_scored_samples([own, *files])
    assert [message.split(":")[0] for message in caplog.messages] == [str(file) for file in files]
    assert "give their fewshot_delimiter" in caplog.messages[0]


def test_rows_of_our_own_beside_logged_ones_are_kept(tmp_path):
    own = {"id": "a", "text": "x", "dataset": "d", "metric": 1}
    path = write(tmp_path / "a.jsonl", [logged(0, CHOICES, "1"), own, logged(1, CHOICES, "1")])
    assert [sample.id for sample in read_scored_samples(path)] == ["a/0", "a", "a/1"]


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
        (logged(0, [("a", " c"), ("b", " c"), ("d", " c")], "c"), "3 of 3 continuations are the target 'c'"),
        (logged(0, [("a", " c"), ("b", " c")], "c"), "'filtered_resps' is []; it must be two pairs"),
        (
            logged(0, [("a", " c"), ("b", " c")], "c", filtered_resps=[[-1, True]] * 2, acc=0.5),
            "'acc' is 0.5; of two prompts with one continuation it must be 0 or 1",
        ),
        (
            logged(0, [("a", " c"), ("b", " c")], "c", filtered_resps=[["nan", 0]] * 2),
            "a log-likelihood is no number",
        ),
        (
            logged(0, [("a", " c"), ("b", " c")], "c", filtered_resps=[[None, 0]] * 2),
            "line 1: could not convert string to float: 'None'",
        ),
        (logged(0, CHOICES, 1.5), "'target' is 1.5; it must be a text, a list of texts or the number"),
        (logged(0, [("Q", {})], [1, 2]), "'target' is [1, 2]; it must be a text"),
        (logged(0, [("Q", {})], []), "'target' is []; it must be a text"),
        (logged(0, [("Q", {})], {"a": 1}), "'target' is {'a': 1}; it must be a text"),
        (logged(0, CHOICES, "1", metrics=[]), "line 1: 'metrics' is []; it must name one or more"),
        (logged(0, CHOICES, "1", metrics=[[1]]), "line 1: 'metrics' is [[1]]; it must name one or more"),
        (logged(0, CHOICES, "1", arguments={}), "'arguments' is not an object"),
        (logged(0, CHOICES, "1", arguments={"g": "a"}), "line 1: 'g' of 'arguments' is 'a', not an object"),
        (logged(0, CHOICES, "1", arguments={"g": {}}), "line 1: 'g' of 'arguments' is {}, not an object"),
        (logged(0, [("a",), ("b",)], "b"), "there are 2 requests, but not all have a continuation"),
        (logged(0, [("a", {}), ("b", {})], "b"), "there are 2 requests, but not all have a continuation"),
        (logged(0, [("\ud800", " c")], "c"), "character 0 is a lone surrogate"),
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
