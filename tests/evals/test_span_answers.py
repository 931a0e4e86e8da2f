import pytest

from llama2_jax.evals.harness_tasks import quac, squad
from llama2_jax.evals.span_answers import (
    exact_match,
    f1,
    human_f1,
    normalized,
    quac_f1,
    quac_references,
    squad_scores,
)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The  Norman Conquest.", "norman conquest"),
        ("an A.N. other", "other"),  # punctuation goes first, so that A.N. is an article
        ("a-an", "aan"),  # and a hyphen joins
        ("theatre", "theatre"),
        ("l\u2019\u00c9tranger", "l\u2019\u00e9tranger"),  # an apostrophe that is not ASCII's stays
        ("Beyoncé\u00a0Knowles\n", "beyoncé knowles"),
        ("$1,000", "1000"),
        ("The", ""),
        ("!?", ""),
    ],
)
def test_answers_are_compared_without_case_punctuation_and_articles(answer, wanted):
    assert normalized(answer) == wanted


def test_f1_is_of_words_as_often_as_they_are_there():
    assert f1("the red red car", "red car") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))  # 2 of 3, 2 of 2
    assert f1("red red", "red") == pytest.approx(2 / 3)
    assert f1("blue", "red") == 0
    assert exact_match("A red car!", "red  car") == 1
    assert exact_match("red cars", "red car") == 0


@pytest.mark.parametrize(
    ("answer", "references", "wanted"), [("", [""], 1), ("the", [""], 1), ("x", [""], 0)]
)
def test_no_answer_is_right_only_if_there_is_none(answer, references, wanted):
    assert squad_scores(answer, references) == (wanted, wanted)
    assert squad_scores(answer, []) == (wanted, wanted)


def test_squad_takes_the_nearest_reference():
    assert squad_scores("in 1066", ["1066", "the year 1066"]) == (0, pytest.approx(2 / 3))
    assert squad_scores("Year 1066", ["1066", "the year 1066"]) == (1, 1)
    assert squad_scores("", ["1066"]) == (0, 0)
    assert squad_scores("", ["the", "1066"]) == (0, 0)  # a reference without words does not count


def test_squads_marks_by_kind_of_question():
    answerable, none = {"answers": {"text": ["red car"]}}, {"answers": {"text": []}}
    assert squad.marks(answerable, ["red"]) == {
        "exact_match": 0,
        "f1": pytest.approx(2 / 3),
        "exact_match_answerable": 0,
        "f1_answerable": pytest.approx(2 / 3),
    }
    for written in ("unanswerable", " Unanswerable.", ""):
        assert squad.marks(none, [written]) == {"exact_match": 1, "f1": 1, "exact_match_unanswerable": 1}
        assert squad.marks(answerable, [written])["exact_match"] == 0
    assert squad.marks(none, ["red"])["exact_match_unanswerable"] == 0


NONE = "CANNOTANSWER"


def test_half_who_found_no_answer_decide_it():
    assert quac_references(["x", NONE]) == [NONE]
    assert quac_references(["x", NONE, "y"]) == ["x", "y"]
    assert quac_references([NONE]) == [NONE]


def test_quac_leaves_out_one_reference_after_the_other():
    # F1 with them: 2/3, 1, 0; without the first 1, without the second 2/3, without the third 1
    references = ["red car", "red", "blue"]
    assert quac_f1("red", references) == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert quac_f1("red", ["red car"]) == pytest.approx(2 / 3)
    assert quac_f1("CANNOTANSWER.", [NONE]) == 1
    # nearest others: "red" 2/3, "red car" 2/3, none
    assert human_f1(references) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert human_f1(["red"]) == 1


def test_quacs_f1_is_of_questions_on_which_people_agree():
    assert quac.marks({"references": ["red car", "red", "blue"]}, ["red"]) == {
        "f1_of_all": pytest.approx(8 / 9),
        "f1": pytest.approx(8 / 9),  # people: 4/9
    }
    assert quac.marks({"references": ["red", "blue"]}, ["red"]) == {"f1_of_all": 0.5}  # people: 0
    assert quac.marks({"references": [NONE, NONE, "x"]}, [NONE]) == {"f1_of_all": 1, "f1": 1}
