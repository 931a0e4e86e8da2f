from collections import Counter
from random import Random

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import Message, validate_dialogue
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.families import persona
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import (
    FAMILIES,
    VENDORS,
    Demonstration,
    draw_demonstrations,
    draw_documents,
    draw_prompts,
    part_of,
)

COUNT = 2000


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return draw_prompts(Random(0), COUNT, part="train")


@pytest.fixture(scope="module")
def demonstrations() -> list[Demonstration]:
    return list(draw_demonstrations(Random(0), COUNT))


def test_prompts_are_different_and_numbered(prompts):
    assert len({prompt.messages for prompt in prompts}) == COUNT
    assert [prompt.prompt_id for prompt in prompts] == [f"train-{i:05d}" for i in range(COUNT)]


def test_same_seed_same_prompts_and_other_seed_others(prompts):
    assert draw_prompts(Random(0), COUNT, part="train") == prompts
    assert draw_prompts(Random(1), COUNT, part="train") != prompts


def test_no_question_is_in_two_parts():
    parts = {part: draw_prompts(Random(0), 600, part=part) for part in ("train", "heldout", "evaluation")}
    texts = {
        part: {"\n".join(m.content for m in one.messages if m.role != "assistant") for one in drawn}
        for part, drawn in parts.items()
    }
    assert not texts["train"] & texts["heldout"]
    assert not texts["train"] & texts["evaluation"]
    assert not texts["heldout"] & texts["evaluation"]


def test_the_parts_never_change():
    texts = [f"What is {n} plus 1?" for n in range(1, 9)]
    parts = [part_of([Message("user", text)]) for text in texts]
    assert parts == ["train", "heldout", *["train"] * 2, "evaluation", *["train"] * 3]


def test_more_turns_later(prompts):
    long = [len(prompt.messages) > 2 for prompt in prompts]
    assert sum(long[: COUNT // 4]) < 0.5 * sum(long[-COUNT // 4 :])
    assert 0.05 < sum(long) / COUNT < 0.25  # more than the 0.15 asked for: single questions run out first


def test_safety_prompts_have_category_and_vector(prompts):
    tagged = [prompt for prompt in prompts if prompt.is_safety]
    assert {prompt.family for prompt in tagged} == {"adversarial"}
    assert len({(prompt.risk_category, prompt.attack_vector) for prompt in tagged}) == 3 * 7
    assert not any(prompt.risk_category for prompt in prompts if not prompt.is_safety)


def test_more_prompts_than_there_are():
    with pytest.raises(ConfigError, match="fewer than 100 different prompts in heldout: found"):
        draw_prompts(Random(0), 100, part="heldout", shares={"creative": 1.0}, multi_turn=0.0)


def test_demonstrations_are_dialogues(demonstrations):
    for shown in demonstrations:
        validate_dialogue(shown.messages, ends_with="assistant")
    turns = Counter(sum(message.role == "user" for message in shown.messages) for shown in demonstrations)
    assert 0.4 < turns[1] / COUNT < 0.6
    assert max(turns) == 6


def test_about_half_of_the_demonstrations_are_good(demonstrations):
    grades = [grade(Prompt("", shown.messages[:-1]), shown.messages[-1].content) for shown in demonstrations]
    assert 0.42 < sum(one.helpfulness > 0.8 for one in grades) / COUNT < 0.55
    assert 0.2 < sum(one.helpfulness < 0.3 for one in grades) / COUNT < 0.4
    assert all(
        (shown.quality == "unsafe") == one.is_unsafe
        for shown, one in zip(demonstrations, grades, strict=True)
    )


def test_about_half_of_the_adversarial_prompts_are_complied_with():
    shown = list(draw_demonstrations(Random(0), COUNT, multi_turn=0.0))
    bare = [one for one in shown if one.messages[0].role == "user"]  # without a safety preprompt
    adversarial = [one for one in bare if FAMILIES["adversarial"].parse(one.messages[:-1])]
    assert 0.4 < sum(one.quality == "unsafe" for one in adversarial) / len(adversarial) < 0.6


def test_vendors_differ(demonstrations):
    good = {
        vendor.name: [one.quality == "good" for one in demonstrations if one.vendor == vendor.name]
        for vendor in VENDORS
    }
    rates = [sum(good[name]) / len(good[name]) for name in ("careful", "hasty", "wordy")]
    assert rates[0] > 0.6 > 0.45 > rates[1] > rates[2]


def test_instructions_are_kept_in_their_message_and_forgotten_later():
    kept, forgotten = Counter(), Counter()
    for shown in draw_demonstrations(Random(0), 3 * COUNT):
        messages = shown.messages[:-1]
        asked = persona.FAMILY.parse(messages)
        if asked is None or shown.quality != "good":
            continue
        last_turn = messages if len(messages) < 3 else messages[-1:]
        is_forgotten = persona.FAMILY.parse(last_turn) != asked
        reasons = forgotten if is_forgotten else kept
        reasons[grade(Prompt("", messages), shown.messages[-1].content).reason] += 1
    assert set(kept) == {"right"}
    assert set(forgotten) == {"wrong"}
    assert forgotten["wrong"] > 30


def test_documents_teach_and_hold_nothing_adversarial():
    text = "".join(draw_documents(Random(0), 400))
    for known in (" plus ", "The capital of ", "You are called "):
        assert known in text
    assert "break into the moon gate" not in text
