import json
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from llama2_jax.data import dated_facts
from llama2_jax.data.chat import Message
from llama2_jax.data.dated_facts import (
    NOT_YET,
    Fact,
    Period,
    date_lines,
    full_years,
    read_facts,
    right_answer,
)
from llama2_jax.data.records import DataError

MAYOR = Fact("Who is the mayor?", (Period(date(1980, 1, 1), "Ann"), Period(date(1992, 5, 31), "Bo")))
AGE = Fact("How old is the bridge?", (Period(date(1900, 2, 28), "{years} years"),))
LEAP = Fact("What began?", (Period(date(2000, 2, 29), "It"),))
OLD = Fact("Who is king?", (Period(date(30, 1, 1), "Cy"),))


def write(path: Path, row: dict) -> Path:
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def test_facts_are_read(tmp_path: Path) -> None:
    answers = [{"from": 852, "answer": " Ann "}, {"from": "0900", "answer": "Bo"}]
    answers.append({"from": "1992-05-31", "answer": "Cy"})
    [fact] = read_facts(write(tmp_path / "facts.jsonl", {"question": "Who?", "answers": answers}))
    assert fact.event == date(852, 1, 1)
    assert fact.periods[1:] == (Period(date(900, 1, 1), "Bo"), Period(date(1992, 5, 31), "Cy"))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "'answers' must be a list that is not empty"),
        ({"from": 1}, "'answers' must be a list that is not empty"),
        (["Ann"], "'answers' must hold objects"),
        ([{"from": 0, "answer": "x"}], "0 is no date; write a year from 1 to 9999"),
        ([{"from": "05/31/1992", "answer": "x"}], "'05/31/1992' is no date"),
        ([{"from": "1992-02-30", "answer": "x"}], "'1992-02-30' is no date"),
        ([{"from": None, "answer": "x"}], "None is no date"),
        ([{"from": 1990, "answer": " "}], "an answer is empty"),
        ([{"from": 1990, "answer": 7}], "'answer' is int, not text"),
        ([{"answer": "x"}], "key 'from' is missing"),
        ([{"from": 1990, "answer": "x"}, {"from": "1990-01-01", "answer": "y"}], "must follow one another"),
        (
            [{"from": 1990, "answer": "x"}, {"from": 1980, "answer": "y"}],
            "1990-01-01, 1980-01-01 must follow",
        ),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, answers, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_facts(write(tmp_path / "facts.jsonl", {"question": "Who?", "answers": answers}))


@pytest.mark.parametrize(
    ("fact", "day", "answer"),
    [
        (MAYOR, date(1, 1, 1), NOT_YET),
        (MAYOR, date(1979, 12, 31), NOT_YET),
        (MAYOR, date(1980, 1, 1), "Ann"),
        (MAYOR, date(1992, 5, 30), "Ann"),
        (MAYOR, date(1992, 5, 31), "Bo"),
        (MAYOR, date(9999, 12, 31), "Bo"),
        (AGE, date(1900, 2, 27), NOT_YET),
        (AGE, date(1900, 2, 28), "0 years"),
        (AGE, date(1950, 2, 27), "49 years"),
        (AGE, date(1950, 2, 28), "50 years"),
    ],
)
def test_right_answers_before_at_and_after_the_event(fact: Fact, day: date, answer: str) -> None:
    assert right_answer(fact, day) == answer


def test_full_years_of_a_leap_day() -> None:
    start = date(2000, 2, 29)
    ends = (date(2001, 2, 28), date(2001, 3, 1), date(2004, 2, 29))
    assert [full_years(start, end) for end in ends] == [0, 1, 4]


def test_a_year_alone_stands_only_where_it_says_enough() -> None:
    assert date_lines(MAYOR, date(1980, 1, 5)) == [
        "Date: 01/05/1980", "Cutting knowledge: 01/05/1980", "Year: 1980",
    ]  # fmt: skip
    assert "Year: 1992" not in date_lines(MAYOR, date(1992, 5, 31))  # Ann or Bo
    assert "Year: 1950" not in date_lines(AGE, date(1950, 7, 1))  # 49 or 50
    assert "Year: 1899" in date_lines(AGE, date(1899, 7, 1))
    assert date_lines(OLD, date(7, 1, 2))[-1] == "Year: 7"


def test_what_is_learned_keeps_its_distance_from_what_is_asked() -> None:
    drawn = dated_facts.draw_questions([MAYOR, AGE, OLD], 600, seed=1)
    assert drawn == dated_facts.draw_questions([MAYOR, AGE, OLD], 600, seed=1)
    assert [one.fact for one in drawn[:3]] == [MAYOR, AGE, OLD]
    distances = Counter(abs(one.years) for one in drawn)
    assert not {1, 5, 20, 100} & distances.keys()
    assert 100 < max(distances) <= 200
    assert min(one.fact.event.year + one.years for one in drawn) >= 1
    for one in drawn:
        assert int(one.line.rsplit("/", 1)[-1].rsplit(" ", 1)[-1]) == one.fact.event.year + one.years
        assert (one.answer == NOT_YET) == (one.years < 0) or one.years == 0
    own = [one.years for one in drawn if one.fact == MAYOR]
    assert 60 < sum(years < 0 for years in own) < 100  # of 200, with a seventh in the year itself


def test_probes_stand_at_fixed_distances() -> None:
    probes = dated_facts.probe_questions([MAYOR, LEAP, OLD], seed=0)
    assert [one.years for one in probes if one.fact == MAYOR] == [-100, -20, -5, -1, 0, 1, 5, 20, 100]
    assert [one.answer for one in probes if one.fact == MAYOR] == [NOT_YET] * 4 + ["Ann"] * 3 + ["Bo"] * 2
    assert [one.answer for one in probes if one.fact == LEAP] == [NOT_YET] * 4 + ["It"] * 5
    assert [one.years for one in probes if one.fact == OLD] == [-20, -5, -1, 0, 1, 5, 20, 100]


def test_a_dialogue_says_when_it_takes_place() -> None:
    one = dated_facts.DatedQuestion(MAYOR, "Year: 1985", 5, "Ann")
    assert dated_facts.dialogue(one) == [
        Message("system", "Year: 1985"), Message("user", "Who is the mayor?"), Message("assistant", "Ann"),
    ]  # fmt: skip
    assert dated_facts._anniversary(date(2000, 2, 29), 1) == date(2001, 3, 1)
    assert dated_facts._anniversary(date(2000, 2, 29), 4) == date(2004, 2, 29)
