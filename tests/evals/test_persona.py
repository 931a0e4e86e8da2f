import pytest

from llama2_jax.evals.persona import (
    CONSTRAINTS,
    Outcome,
    accuracy_by_turn,
    is_brief,
    is_haiku,
    is_one_sentence,
)


def test_accuracy_by_turn_with_its_interval_and_what_is_beyond_the_context():
    outcomes = [Outcome(2, True)] * 9 + [Outcome(2, False)] + [Outcome(4, True)] * 10
    outcomes += [Outcome(6, True), Outcome(6, None), Outcome(20, None), Outcome(20, None)]
    second, fourth, sixth, last = accuracy_by_turn(outcomes, (2, 4, 6, 20))
    assert (second.asked, second.beyond_context) == (10, 0)
    assert second.accuracy == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-4)  # Wilson, 9 of 10
    assert fourth.accuracy == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)  # 10 of 10: n / (n + z^2)
    assert (sixth.asked, sixth.beyond_context) == (1, 1)
    assert last == (20, None, 0, 2)


@pytest.mark.parametrize(
    ("answer", "one_sentence", "brief"),
    [
        ("My name is Bach.", True, True),
        ("Yes!", True, True),
        ("No. Ask a guard.", False, True),
        ("This is a long answer without an end", False, False),
        ("The five words are here.", True, True),
        ("It costs 3.50 euros.", True, True),
        ("Dr. Smith lives here.", True, True),
        ("Use e.g. salt.", True, True),
        ('He said "No." Then he left.', False, False),
        ("...and so on", False, True),
        (".", False, True),
        ("", False, False),
    ],
)
def test_constraints_on_form(answer, one_sentence, brief):
    assert is_one_sentence(answer) is one_sentence
    assert is_brief(answer) is brief


def test_haiku():
    poem = "An old silent pond\nA frog jumps into the pond\nSplash! Silence again."
    assert is_haiku(poem)
    assert not is_haiku(poem.replace("\n", " "))
    assert not is_haiku("One\nTwo\nThree")


def test_constraints_name_what_they_check():
    assert {name: check("Short.") for name, (_, check) in CONSTRAINTS.items()} == {
        "one sentence": True, "haiku": False, "brief": True
    }  # fmt: skip
