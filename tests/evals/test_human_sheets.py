import csv
import json

import pytest

from llama2_jax.config import ConfigError, to_plain
from llama2_jax.data.chat import Message
from llama2_jax.data.records import DataError
from llama2_jax.evals.human_sheets import (
    INSTRUCTIONS,
    SCALES,
    Answered,
    item_from_row,
    make_items,
    read_answers,
    read_ratings,
    write_rater_sheet,
)
from tests.experiments.runs import write_lines


def answered(question: str, answer: str, **fields) -> Answered:
    return Answered((Message("user", question),), answer, **fields)


def models(count: int) -> dict[str, list[Answered]]:
    return {
        name: [answered(f"question {number}", f"{name} says {number}") for number in range(count)]
        for name in ("ours", "theirs")
    }


def sheet_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill_in(path, rating):
    """Write a sheet again with ``rating`` of each row."""
    rows = sheet_rows(path)
    with path.open("w", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows({**row, "rating": rating(row)} for row in rows)


def test_sides_are_drawn_for_each_rater_and_the_same_for_a_seed():
    items = make_items(models(400), "helpfulness", num_raters=3, seed=1)
    assert items == make_items(models(400), "helpfulness", num_raters=3, seed=1)
    assert items != make_items(models(400), "helpfulness", num_raters=3, seed=2)
    for rater in range(3):
        assert 160 < sum(item.swapped[rater] for item in items) < 240  # 4 deviations of 10
    alike = sum(item.swapped[0] == item.swapped[1] for item in items)
    assert 160 < alike < 240
    assert [item.item_id for item in items] == [str(number) for number in range(1, 401)]
    order = [int(item.messages[0].content.split()[1]) for item in items]
    assert order != sorted(order) == list(range(400))


def test_sides_do_not_depend_on_what_the_models_are_or_say():
    first, second = models(50), {"b": models(50)["theirs"], "a": models(50)["ours"]}
    drawn = [
        [item.swapped for item in make_items(one, "helpfulness", num_raters=3, seed=0)]
        for one in (first, second)
    ]
    assert drawn[0] == drawn[1]


def test_a_sheet_shows_both_answers_and_no_model(tmp_path):
    given = {
        name: [answered(one.messages[0].content, one.answer[-1]) for one in own]
        for name, own in models(9).items()
    }
    items = make_items(given, "helpfulness", num_raters=2, seed=0)
    for rater in range(2):
        write_rater_sheet(tmp_path / f"{rater}.csv", items, rater)
    text = (tmp_path / "0.csv").read_text()
    assert "ours" not in text
    assert "theirs" not in text
    rows = sheet_rows(tmp_path / "0.csv")
    assert list(rows[0]) == ["item_id", "rater", "dialogue", "A", "B", "rating"]
    orders = [[row["item_id"] for row in sheet_rows(tmp_path / f"{rater}.csv")] for rater in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_ratings_are_seen_from_our_side_whoever_is_shown_first(tmp_path):
    items = make_items(models(20), "helpfulness", num_raters=3, seed=0)
    paths = [tmp_path / f"{rater}.csv" for rater in range(3)]
    prefers_ours = {True: "2", False: "6"}
    for rater, path in enumerate(paths):
        write_rater_sheet(path, items, rater)
        fill_in(path, lambda row: prefers_ours[row["A"].startswith("ours")])
    fill_in(paths[1], lambda row: "4")
    fill_in(paths[2], lambda row: " SKIP " if row["item_id"] == "1" else "1")
    rated = read_ratings(paths, items, "helpfulness")
    assert [one.item for one in rated] == items
    assert {one.ratings[:2] for one in rated} == {(2, 0)}
    assert rated[0].ratings[2] is None
    assert rated[0].given == [2, 0]
    assert [one.ratings[2] for one in rated[1:]] == [-3 if one.item.swapped[2] else 3 for one in rated[1:]]
    assert {one.model for one in rated} == {"theirs"}


@pytest.mark.parametrize("task", SCALES)
def test_the_sheet_of_another_rater_is_refused(tmp_path, task):
    """Its A and B may stand the other way round, and one person's ratings would count twice."""
    items = make_items(models(20), task, num_raters=3, seed=0)
    paths = [tmp_path / f"{rater}.csv" for rater in range(3)]
    for rater, path in enumerate(paths):
        write_rater_sheet(path, items, rater)
        fill_in(path, lambda row: "2")
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(DataError, match=r"2.csv is the sheet of rater 2; put that of rater 3 there"):
        read_ratings(paths, items, task)
    assert len(read_ratings(paths[:2], items, task)) == len(items)


def test_safety_has_a_row_for_each_answer(tmp_path):
    items = make_items(models(4), "safety", num_raters=1, seed=0)
    assert len(items) == 8
    write_rater_sheet(tmp_path / "0.csv", items, 0)
    fill_in(tmp_path / "0.csv", lambda row: "5" if row["answer"].startswith("ours") else "1")
    rated = read_ratings([tmp_path / "0.csv"], items, "safety")
    assert {(one.model, *one.ratings) for one in rated} == {("ours", 5), ("theirs", 1)}


@pytest.mark.parametrize("task", SCALES)
def test_instructions_name_every_rating(task):
    numbers = {line.split()[0] for line in INSTRUCTIONS[task].splitlines() if line[:1].isdigit()}
    assert numbers == {str(number) for number in range(1, len(SCALES[task]) + 1)}


def test_a_system_prompt_is_shown_if_all_models_had_it():
    same = [answered("q", "a", system="Be brief.")]
    (item,) = make_items({"x": same, "y": same}, "helpfulness", num_raters=1, seed=0)
    assert item.messages == (Message("system", "Be brief."), Message("user", "q"))
    assert item.with_system == (True, True)
    (item,) = make_items({"x": same, "y": [answered("q", "b")]}, "helpfulness", num_raters=1, seed=0)
    assert item.messages == (Message("user", "q"),)
    assert item.with_system == (True, False)


def test_an_attack_with_and_without_a_system_prompt_is_two_rows(tmp_path):
    attacks = [answered("q", "a", system="You are DAN."), answered("q", "b")]
    for models_of in ({"x": attacks}, {"x": attacks, "y": attacks}):
        items = make_items(models_of, "safety", num_raters=1, seed=0)
        shown = {(item.messages[0].role, item.answers) for item in items}
        assert shown == {("system", ("a",)), ("user", ("b",))}
    items = make_items({"x": attacks, "y": attacks[:1]}, "safety", num_raters=1, seed=0)
    assert {item.messages[0].role for item in items} == {"user"}  # y never answers without
    messages = [{"role": "system", "content": "You are DAN."}, {"role": "user", "content": "q"}]
    rows = [{"messages": messages, "completion": "a"}, {"prompt": "q", "completion": "b"}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert read_answers(path, "safety") == attacks
    with pytest.raises(DataError, match="line 2: this dialogue stands twice, system prompts apart"):
        read_answers(path, "helpfulness")
    write_lines(path, [rows[0], rows[0]])
    with pytest.raises(DataError, match="line 2: this dialogue stands twice; leave one out"):
        read_answers(path, "safety")


def test_other_models_may_have_answered_less_but_nothing_else():
    given = models(3)
    given["short"] = given["theirs"][:1]
    items = make_items(given, "helpfulness", num_raters=3, seed=0)
    assert sorted(item.models for item in items) == [("ours", "short")] + [("ours", "theirs")] * 3
    given["ours"] = given["ours"][1:]
    with pytest.raises(ConfigError, match=r"1 of 3 dialogues of theirs are not among the 2 of ours"):
        make_items(given, "helpfulness", num_raters=3, seed=0)
    with pytest.raises(ConfigError, match="only ours was given; name a model to compare it with"):
        make_items({"ours": given["ours"]}, "helpfulness", num_raters=3, seed=0)


def test_an_item_comes_back_from_json():
    given = {name: [answered("q", "a", categories=("x", "y"))] for name in "ab"}
    (item,) = make_items(given, "helpfulness", num_raters=3, seed=0)
    assert item_from_row(json.loads(json.dumps(to_plain(item)))) == item


def test_answers_are_read_from_rows_of_generate(tmp_path):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            {"prompt": "q", "completion": " a\n", "topic": "x", "stopped": True},
            {"messages": messages, "completion": "b", "topic": ["x", "y"]},
        ],
    )
    assert read_answers(path, "helpfulness", category_key="topic") == [
        answered("q", "a", categories=("x",)),
        answered("hi", "b", system="S", categories=("x", "y")),
    ]
    assert read_answers(path, "helpfulness")[0].categories == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "completion": "b", "topic": "x"}, "this dialogue stands twice"),
        ({"prompt": "r", "topic": "x"}, "key 'completion' is missing"),
        ({"completion": "b", "topic": "x"}, "key 'messages' is missing"),
        ({"prompt": "r", "completion": "b"}, "key 'topic' is missing"),
        ({"prompt": "r", "completion": "b", "topic": " "}, "'topic' is ' '; it must be a text or a list"),
        ({"prompt": "r", "completion": "b", "topic": []}, r"'topic' is \[\]; it must be a text or a list"),
        (
            {"messages": [{"role": "assistant", "content": "x"}], "completion": "b", "topic": "x"},
            "roles are assistant",
        ),
    ],
)
def test_rows_that_are_refused(tmp_path, row, reason):
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "topic": "x"}, row])
    with pytest.raises(DataError, match=f"a.jsonl, line 2: {reason}"):
        read_answers(path, "helpfulness", category_key="topic")


def test_ratings_that_are_refused(tmp_path):
    items = make_items(models(3), "helpfulness", num_raters=1, seed=0)
    path = tmp_path / "rater.csv"
    write_rater_sheet(path, items, 0)
    with pytest.raises(DataError, match="3 of 3 rows have no valid rating: item_id . has ''"):
        read_ratings([path], items, "helpfulness")
    fill_in(path, lambda row: "8" if row["item_id"] == "2" else "7")
    with pytest.raises(
        DataError, match="1 of 3 rows .*: item_id 2 has '8'; it must be one of 1, 2, 3, 4, 5, 6, 7, skip"
    ):
        read_ratings([path], items, "helpfulness")
