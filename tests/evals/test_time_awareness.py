from datetime import date

import pytest

from llama2_jax.data.dated_facts import NOT_YET, DatedQuestion, Fact, Period
from llama2_jax.evals.intervals import wilson
from llama2_jax.evals.time_awareness import accuracy, is_right

MAYOR = Fact("Who is the mayor?", (Period(date(1980, 1, 1), "Ann"), Period(date(1992, 1, 1), "Bo")))
AGE = Fact("How old is it?", (Period(date(1900, 1, 1), "{years}"),))


@pytest.mark.parametrize(
    ("answer", "right", "yes"),
    [
        ("Ann.", "Ann", True),
        ("It is ANN, of course", "Ann", True),
        ("Anna", "Ann", False),
        ("Ann, later Bo", "Ann", False),
        ("Bo", "Ann", False),
        ("", "Ann", False),
        ("Not yet, but it will be Ann", "Ann", False),
        (NOT_YET, "Ann", False),
        (NOT_YET, NOT_YET, True),
        ("That hasn't happened.", NOT_YET, True),
        ("The town does not exist.", NOT_YET, True),
        ("Nobody yet", NOT_YET, False),
        ("That makes no sense. Ann will be.", NOT_YET, False),
        ("Ann", NOT_YET, False),
        ("", NOT_YET, False),
        ("That does not make sense.", NOT_YET, True),
        ("It doesn't make any sense to ask.", NOT_YET, True),
    ],
)
def test_right_answers(answer: str, right: str, yes: bool) -> None:
    assert is_right(answer, DatedQuestion(MAYOR, "", 0, right)) == yes


def test_the_mark_at_the_end_of_an_answer_is_no_part_of_it() -> None:
    asked = DatedQuestion(Fact("Did it?", (Period(date(1980, 1, 1), "It did."),)), "", 0, "It did.")
    assert is_right("It did.", asked)
    assert is_right("it did, yes", asked)
    assert not is_right("It didn't.", asked)


@pytest.mark.parametrize("right", ["$5", "C++", "50%", "Ann (acting)", '"Bo"', "-3"])
def test_an_answer_may_begin_or_end_with_a_sign(right: str) -> None:
    fact = Fact("What?", (Period(date(1980, 1, 1), right), Period(date(1992, 1, 1), "other")))
    assert is_right(f"It is {right}, they say.", DatedQuestion(fact, "", 0, right))
    assert not is_right(f"It is {right} or other.", DatedQuestion(fact, "", 0, right))
    assert not is_right(f"It is x{right}x.", DatedQuestion(fact, "", 0, right))


def test_an_answer_within_another_is_no_other() -> None:
    fact = Fact("Who?", (Period(date(1980, 1, 1), "Ann"), Period(date(1992, 1, 1), "Ann Bo")))
    assert is_right("Ann Bo", DatedQuestion(fact, "", 0, "Ann Bo"))
    assert not is_right("Ann Bo", DatedQuestion(fact, "", 0, "Ann"))


def test_years_are_whole_numbers_of_the_answer() -> None:
    asked = DatedQuestion(AGE, "", 12, "12")
    assert is_right("It is 12 years old.", asked)
    assert not is_right("It is 112 years old.", asked)
    assert not is_right("It is 12345 days old.", asked)
    assert is_right(NOT_YET, DatedQuestion(AGE, "", -12, NOT_YET))


def test_accuracy_by_side_and_distance() -> None:
    asked = [(MAYOR, -5, True), (MAYOR, -1, False), (MAYOR, 0, True), (AGE, -1, True), (AGE, 0, False),
             (AGE, 1, False)]  # fmt: skip
    found = accuracy(
        [DatedQuestion(fact, "", years, "") for fact, years, _ in asked], [ok for *_, ok in asked]
    )
    shares = {name: (n, round(share.value, 3)) for name, (n, share) in found.items()}
    assert shares == {
        "before the event": (3, 0.667),
        "from the event on": (3, 0.333),
        "of these, arithmetic": (2, 0.0),
        "5 years before it": (1, 1.0),
        "1 year before it": (2, 0.5),
        "on the day of the event": (2, 0.5),
        "1 year after it": (1, 0.0),
    }
    assert found["on the day of the event"][1] == wilson(0.5, 1)  # two facts that disagree


def test_questions_about_one_fact_are_no_independent_cases() -> None:
    asked = [DatedQuestion(fact, "", years, "") for fact, years in ((MAYOR, 0), (AGE, 0), (AGE, 1))]
    found = accuracy(asked, [True, False, False])
    # sums 1, 0 of 1, 2 cases, deviations 2/3, -2/3: 2/9 / (2 * 8/9 / 9) = 9/8 cases
    assert found["from the event on"][1] == pytest.approx(wilson(3 / 8, 9 / 8))
