from collections import Counter
from fractions import Fraction

import pytest

from llama2_jax.data.chat import LLAMA2
from llama2_jax.data.jsonl import read_rows
from llama2_jax.data.preferences import prompt_key, read_preferences
from llama2_jax.data.prompts import read_prompts
from tests.tools.pyrit_files import prepared_with
from tools.prepare_pyrit import MIN_GAP, pairs_of, prepare, rating_of, read_prompts_with_harm, safety_bin

# Invented rows in the layout of the package: a comment, the header, then a row per answer.
ONE = """# dataset_version=1.0, harm_definition=toy.yaml,,
harm_category,objective,assistant_response,human_score_1,data_type
TOY,How to upset a badger?,"No, leave it alone.",0.0,text
TOY,How to upset a badger?,Sing to it.,0.75,text
TOY, How to upset a badger?,Sing to it.,0.5,text
TOY,How to upset a badger?,"Wake it
up.",1.0,text
TOY,How to upset an owl?,Daylight.,0.25,text
"""
THREE = """# dataset_version=1.0,,,,
harm_category,objective,assistant_response,human_score_1,human_score_2,human_score_3,data_type
toy,How to upset a cat?,A bath.,1.0,0.75,1.0,text
toy,How to upset a cat?,Bark.,0.25,0.25,0.5,text
toy,How to upset a cat?,Talk.,0.25,0.0,0.25,text
"""


@pytest.fixture
def tables(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "one.csv").write_text(ONE)
    (folder / "three.csv").write_text(THREE)
    return folder


def test_scores_of_prompts(tables):
    badger, owl, cat = read_prompts_with_harm(tables)
    assert badger.prompt.messages[0].content == "How to upset a badger?"
    assert (badger.prompt.risk_category, badger.prompt.is_safety) == ("toy", True)
    # the answer that stands twice has its last score
    assert list(badger.harm.items()) == [
        ("No, leave it alone.", 0),
        ("Sing to it.", 0.5),
        ("Wake it\nup.", 1),
    ]
    assert owl.harm == {"Daylight.": Fraction(1, 4)}
    assert list(cat.harm.values()) == [Fraction(11, 12), Fraction(1, 3), Fraction(1, 6)]


def test_pairs_choose_the_less_harmful_answer(tables):
    badger, owl, cat = read_prompts_with_harm(tables)
    found = {(pair.chosen[:4], pair.rejected[:4], pair.rating, pair.safety) for pair in pairs_of(badger)}
    assert found == {
        ("No, ", "Sing", "slightly_better", "chosen_safe"),
        ("No, ", "Wake", "significantly_better", "chosen_safe"),
        ("Sing", "Wake", "slightly_better", "both_unsafe"),
    }
    assert list(pairs_of(owl)) == []
    # gaps 7/12 and 9/12; 1/3 against 1/6 is below the least gap
    assert [(pair.chosen, pair.rejected, pair.rating, pair.safety) for pair in pairs_of(cat)] == [
        ("Bark.", "A bath.", "slightly_better", "chosen_safe"),
        ("Talk.", "A bath.", "better", "chosen_safe"),
    ]


def test_grades_and_bins():
    assert [rating_of(Fraction(gap, 4)) for gap in (1, 2, 3, 4)] == [
        "unsure", "slightly_better", "better", "significantly_better",
    ]  # fmt: skip
    assert rating_of(MIN_GAP) == rating_of(Fraction(1, 3)) == "unsure"
    assert safety_bin(Fraction(0), Fraction(1, 4)) == "both_safe"
    assert safety_bin(Fraction(1, 3), Fraction(7, 12)) == "chosen_safe"
    assert safety_bin(Fraction(1, 2), Fraction(1)) == "both_unsafe"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepared_with(prepare, tmp_path_factory.mktemp("pyrit"))


def test_counts_of_the_real_tables(prepared):
    train, heldout = (
        read_preferences(prepared / f"preferences_{side}.jsonl", template=LLAMA2)
        for side in ("train", "heldout")
    )
    assert Counter(pair.rating for pair in train + heldout) == {
        "unsure": 1008, "slightly_better": 977, "better": 574, "significantly_better": 229,
    }  # fmt: skip
    assert not {prompt_key(pair.messages) for pair in train} & {prompt_key(pair.messages) for pair in heldout}
    assert max(Counter(pair.prompt_id for pair in train).values()) == 853
    assert {pair.risk_category for pair in heldout} == {pair.risk_category for pair in train}
    assert len({pair.rating for pair in heldout}) == 4


def test_answers_and_prompts_of_the_real_tables(prepared):
    sides = ("train", "heldout")
    prompts = [prompt for side in sides for prompt in read_prompts(prepared / f"prompts_{side}.jsonl")]
    answers = [row for side in sides for row in read_rows(prepared / f"answers_{side}.jsonl")]
    assert (len(prompts), len(answers)) == (390, 984)
    assert {0.0, 0.25, 0.5, 0.75, 1.0} <= {row["harm"] for row in answers}
