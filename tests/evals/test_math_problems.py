import json
from pathlib import Path

import pytest

from llama2_jax.data.records import DataError
from llama2_jax.evals.math_problems import Problem, Problems, is_right, predicted, read_problems


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("8", 8),
        ("There are 8 apples, not 9.", 8),
        ("The correct answer is 5+3=8.", 8),
        ("5 + 3 = 8, 8 * 2 = 16", 8),
        ("x = unknown, so 4", 4),
        ("It costs $1,234.50 in all.", 1234.5),
        ("1, 2 and 3", 1),
        ("1,2345", 1),
        ("25% of them", 25),
        ("-5 degrees", -5),
        ("\u22125 degrees", -5),
        ("= -$7", -7),
        ("10-5", 10),
        ("about .5 m", 0.5),
        ("3/4 of a cake", 0.75),
        ("1/0", None),
        ("8.", 8),
        ("eight", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(answer: str, number: float | None) -> None:
    assert predicted(answer) == number


def test_right_answers() -> None:
    assert is_right("1,200 m", Problem("", "", 1200))
    assert is_right("It is 0.33333", Problem("", "", 1 / 3))
    assert not is_right("It is 0.33", Problem("", "", 1 / 3))
    assert not is_right("She had 7 and now has 8.", Problem("", "", 8))  # the rule is the first number
    assert not is_right("56090", Problem("", "", 56088))
    assert not is_right("9" * 500, Problem("", "", 9))
    assert is_right("0", Problem("", "", 0))
    assert not is_right("none", Problem("", "", 0))


ASDIV = """<?xml version="1.0" encoding="UTF-8"?>
<Machine-Reading-Corpus-File><ProblemSet>
{}
</ProblemSet></Machine-Reading-Corpus-File>
"""
ANSWERS = (
    "9 (apples)",
    "1,250 (km per h)",
    "3:5",
    "yes",
    "9 (apples); 4 (pears)",
    "1/4",
    "1 1/2 (m)",
    "12 %",
)


def test_asdiv(tmp_path: Path) -> None:
    path = tmp_path / "ASDiv.xml"
    entries = [
        f'<Problem ID="own-{n}" Grade="1" Source="us"><Body>Two &amp; two\n  apples.</Body>'
        f"<Question>How many?</Question><Solution-Type>Addition</Solution-Type><Answer>{answer}</Answer>"
        "<Formula>2+2=4</Formula></Problem>"
        for n, answer in enumerate(ANSWERS)
    ]
    path.write_text(ASDIV.format("\n".join(entries)), encoding="utf-8")
    text = "Two & two apples. How many?"
    expected = [("own-0", 9), ("own-1", 1250), ("own-5", 0.25), ("own-7", 12)]
    assert read_problems(path, "asdiv") == Problems([Problem(n, text, a) for n, a in expected], 4)
    path.write_text(ASDIV.format("<Problem><Body>x</Body></Problem>"), encoding="utf-8")
    with pytest.raises(DataError, match="problem 1 lacks Body, Question or Answer"):
        read_problems(path, "asdiv")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not XML: .*; give the official ASDiv\.xml"):
        read_problems(path, "asdiv")


def test_svamp(tmp_path: Path) -> None:
    path = tmp_path / "SVAMP.json"
    row = {"ID": "own-1", "Body": "Ann has 3 pens", "Question": "How many?", "Equation": "3.0", "Answer": 3.0}
    path.write_text(json.dumps([row | {"Type": "Addition"}]), encoding="utf-8")
    assert read_problems(path, "svamp") == Problems([Problem("own-1", "Ann has 3 pens How many?", 3)], 0)
    del row["Answer"]
    path.write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(DataError, match="problem 1 has no 'Answer'; it has ID, Body, Question, Equation"):
        read_problems(path, "svamp")
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="is dict, not a list of problems"):
        read_problems(path, "svamp")


def test_mawps(tmp_path: Path) -> None:
    path = tmp_path / "mawps.json"
    rows = [
        {"iIndex": n, "sQuestion": f"Question {n}?", "lEquations": ["X=2+2"], "lSolutions": solutions}
        for n, solutions in enumerate([[4.0], [1.0, 2.0], ["5"]])
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    expected = [Problem("0", "Question 0?", 4), Problem("2", "Question 2?", 5)]
    assert read_problems(path, "mawps") == Problems(expected, 1)
    path.write_text(json.dumps([{**rows[0], "lSolutions": [None]}]), encoding="utf-8")
    with pytest.raises(DataError, match="problem 1: the answer is None, neither number nor text"):
        read_problems(path, "mawps")


def test_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "How old?", "answer": 51}\n{"question": "Who?", "answer": "Ada"}\n')
    assert read_problems(path, "own") == Problems([Problem("", "How old?", 51)], 1)
    path.write_text('{"question": "Who?", "answer": "Ada"}\n')
    with pytest.raises(DataError, match="has 1 problems, none of which has one number as its answer"):
        read_problems(path, "own")
