from random import Random

import pytest

from llama2_jax.data.chat import LLAMA2
from llama2_jax.data.preferences import Preference, read_preferences, write_preferences
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.public import draw_preferences
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import VENDORS, part_of

COUNT = 300


@pytest.fixture(scope="module")
def preferences() -> list[Preference]:
    return draw_preferences(Random(0), COUNT, part="heldout")


def test_same_seed_same_preferences(preferences):
    assert len(preferences) == COUNT
    assert list(draw_preferences(Random(0), 20, part="heldout")) == preferences[:20]


def test_prompts_are_of_their_part_and_answers_of_two_vendors(preferences):
    names = {vendor.name for vendor in VENDORS}
    for one in preferences:
        assert part_of(one.messages) == "heldout"
        assert {one.chosen_model, one.rejected_model} < names
        assert one.chosen_model != one.rejected_model
        assert one.chosen != one.rejected
    assert {one.track for one in preferences} == {"helpfulness", "safety"}


def test_people_mostly_prefer_what_is_better(preferences):
    def helpfulness(one, answer):
        return grade(Prompt("", one.messages), answer).helpfulness

    differences = [
        helpfulness(one, one.chosen) - helpfulness(one, one.rejected)
        for one in preferences
        if one.track == "helpfulness"
    ]
    clear = [difference for difference in differences if abs(difference) > 0.5]
    assert len(clear) > 50
    assert sum(difference > 0 for difference in clear) > 0.9 * len(clear)


def test_the_file_is_one_that_reward_models_read(preferences, tmp_path):
    write_preferences(tmp_path / "public.jsonl", preferences)
    read = read_preferences(tmp_path / "public.jsonl", template=LLAMA2)
    assert 0.9 * COUNT < len(read) <= COUNT  # a few chose the unsafe answer, and are left out (PREF-4)
