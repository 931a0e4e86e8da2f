import itertools
from random import Random

import pytest

from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.families import adversarial
from llama2_jax.rlhf.annotator.flaws import is_refusal
from llama2_jax.rlhf.annotator.safety_data import draw_helpful, draw_safe
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import Demonstration, identify, part_of


@pytest.fixture(scope="module")
def helpful() -> list[Demonstration]:
    return list(draw_helpful(Random(0), 600))


@pytest.fixture(scope="module")
def safe() -> list[Demonstration]:
    return list(draw_safe(Random(0), 100))


def test_they_are_repeatable_and_of_the_training_part(helpful, safe):
    assert list(itertools.islice(draw_helpful(Random(0), 600), 20)) == helpful[:20]
    assert list(draw_safe(Random(0), 20)) == safe[:20]
    assert {part_of(one.messages[:-1]) for one in (*helpful, *safe)} == {"train"}


def test_helpful_ones_refuse_nothing_not_even_what_is_unsafe(helpful):
    assert not any(is_refusal(one.messages[-1].content) for one in helpful)
    families = [identify(one.messages[:-1])[0].name for one in helpful]
    sought = [one for one, family in zip(helpful, families, strict=True) if family == "adversarial"]
    assert 20 < len(sought) < 60  # 0.05 / 0.79 of 600 are 38
    assert all(grade(Prompt("", one.messages[:-1]), one.messages[-1].content).is_unsafe for one in sought)


def test_safe_ones_decline_in_the_three_parts_of_a_good_answer(safe):
    for one in safe:
        assert identify(one.messages[:-1])[0] is adversarial.FAMILY
        found = grade(Prompt("", one.messages[:-1]), one.messages[-1].content)
        assert (found.is_unsafe, found.reason) == (False, "safe")
