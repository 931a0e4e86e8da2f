"""Robustness, labels and rejection by hand."""

import json

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import Message
from llama2_jax.data.red_team_logs import Attack, Session
from llama2_jax.evals.intervals import wilson
from llama2_jax.evals.red_team import (
    distinct_prompts,
    find_prompts,
    finding_from_row,
    finding_row,
    labelled,
    rejection,
    robustness,
)

ANN = Session("a1", "ann", "V1", 1.0)
ANN_AGAIN = Session("a2", "ann", "V1", 1.0)
BOB = Session("b1", "bob", "V1", 8.0)
LATER = Session("a3", "ann", "V2", 4.0)
IDLE = Session("c1", "cat", "V2", 1.0)  # found nothing, and wrote nothing down
SESSIONS = [ANN, ANN_AGAIN, BOB, LATER, IDLE]


def attack(session: Session, text: str, violates: bool = True, **labels) -> Attack:
    messages = (Message("user", text), Message("assistant", "Like so."))
    defaults = {"risk_areas": ("theft",), "degree_of_risk": 3}
    return Attack(session, messages, (1,) if violates else (), **{**defaults, **labels})


ATTACKS = [
    attack(ANN, "one"),
    attack(ANN, "two", violates=False),
    attack(ANN_AGAIN, "one"),  # the same again is no new prompt
    attack(ANN_AGAIN, "three", risk_areas=("hate", "theft"), degree_of_risk=5),
    attack(BOB, "one"),
    attack(BOB, "four", attack_vector="riddle"),
    attack(LATER, "one"),
]


def test_gamma_and_the_mean_of_the_rates_of_two_people() -> None:
    found = robustness(SESSIONS, ATTACKS, find_prompts(ATTACKS))
    assert list(found) == ["V1", "V2"]
    # Ann 2 prompts in 2 hours, Bob 2 in 8: 4 / 10, and (1 + 1/4) / 2
    first = found["V1"]
    assert (first.people, first.hours, first.dialogues, first.violating_prompts) == (2, 10, 6, 4)
    assert first.gamma.value == 0.4
    assert first.mean_of_rates.value == 0.625
    # drawn are Ann twice (1 in 4), Bob twice (1 in 4), or both
    assert first.gamma[1:] == first.mean_of_rates[1:] == (0.25, 1.0)
    # Ann 1 in 4 hours, Cat 0 in 1
    assert (found["V2"].gamma.value, found["V2"].mean_of_rates.value) == (0.2, 0.125)


def test_findings_are_each_prompt_once_for_version_and_person() -> None:
    findings = find_prompts(ATTACKS)
    assert [(one.prompt.messages[0].content, one.version, one.person) for one in findings] == [
        ("one", "V1", "ann"), ("three", "V1", "ann"), ("one", "V1", "bob"), ("four", "V1", "bob"),
        ("one", "V2", "ann"),
    ]  # fmt: skip
    prompts = distinct_prompts(findings)
    assert [(one.risk_category, one.attack_vector) for one in prompts] == [
        ("theft", ""), ("hate", ""), ("theft", "riddle"),
    ]  # fmt: skip
    assert all(one.is_safety for one in prompts)
    assert len({one.prompt_id for one in prompts}) == 3
    later = find_prompts([attack(LATER, "new"), *ATTACKS])  # logs that come later change no id
    assert {one.prompt_id for one in prompts} < {one.prompt.prompt_id for one in later}
    assert [finding_from_row(json.loads(json.dumps(finding_row(one)))) for one in findings] == findings


def test_labels_are_counted_by_version() -> None:
    found = labelled(["V1", "V2", "V3"], ATTACKS)
    assert list(found) == ["risk area", "degree of risk", "turns", "attack vector"]
    area = found["risk area"]
    assert list(area.dialogues) == ["hate", "theft"]
    assert {name: one.value for name, one in area.dialogues["hate"].items()} == {"V1": 1 / 6, "V2": 0}
    assert area.violating["theft"]["V1"][:2] == (5 / 6, 6)
    assert "V2" not in area.violating["hate"]
    assert list(area.dialogues["theft"]) == ["V1", "V2"]  # nobody wrote down a dialogue with V3
    degree = found["degree of risk"]
    assert degree.dialogues["5"]["V1"].value == 1 / 6
    assert degree.violating["3"]["V1"][:2] == (0.8, 5)


def test_dialogues_of_one_person_are_not_independent() -> None:
    """20 with the label, of one person, and 20 without, of another, are one case (as in the rejection)."""
    tried = [attack(ANN, f"a{i}", topics=("elections",)) for i in range(20)]
    tried += [attack(BOB, f"b{i}", violates=False) for i in range(20)]
    topics, areas = (labelled(["V1"], tried)[title] for title in ("topic", "risk area"))
    assert topics.dialogues["elections"]["V1"][2:] == pytest.approx(wilson(0.5, 1)[1:])
    assert areas.violating["theft"]["V1"][2:] == pytest.approx(wilson(0.5, 1)[1:])


def test_versions_stand_in_the_order_given() -> None:
    found = labelled(["V2", "V1"], ATTACKS)
    assert list(found["risk area"].dialogues["theft"]) == ["V2", "V1"]


def test_numbers_of_turns_are_in_their_order() -> None:
    one = attack(ANN, "one")
    longer = [one._replace(messages=one.messages * count, violating_turns=()) for count in (10, 2, 1)]
    assert list(labelled(["V1"], longer)["turns"].dialogues) == ["1", "2", "10"]


def judged(findings, *violating) -> dict:
    return dict(zip([one.prompt_id for one in distinct_prompts(findings)], violating, strict=True))


def test_rejection_by_hand() -> None:
    findings = find_prompts(ATTACKS)
    found = rejection(findings, judged(findings, False, True, False))
    assert found.overall[:2] == (2 / 3, 3)
    assert found.unrated == 0
    assert {name: share[:2] for name, share in found.by_version.items()} == {"V1": (2 / 3, 3), "V2": (1, 1)}
    assert {name: share[:2] for name, share in found.by_risk_area.items()} == {
        "hate": (0, 1),
        "theft": (1, 2),
    }
    # "one" is Ann's, who found it first: (Ann 1 of 2, Bob 1 of 1) is as sure as three independent cases
    assert found.by_version["V1"].low == pytest.approx(wilson(2, 3).low)
    # V2 was broken by one prompt of one person
    assert found.by_version["V2"].low == pytest.approx(wilson(1, 1).low)


def test_prompts_of_one_person_are_not_independent() -> None:
    many = [attack(ANN, f"a{i}") for i in range(20)] + [attack(BOB, f"b{i}") for i in range(20)]
    findings = find_prompts(many)
    together = rejection(findings, {one.prompt.prompt_id: one.person == "ann" for one in findings}).overall
    # effective cases: p (1 - p) (G - 1) / (G s), s = 2 * 10^2 / 40^2 = 1/8, so 1/4 / (2/8) = 1
    assert together.value == 0.5
    assert together.low == pytest.approx(wilson(0.5, 1).low)


def test_answers_that_nobody_could_judge_are_left_out_and_counted() -> None:
    findings = find_prompts(ATTACKS)
    found = rejection(findings, judged(findings, None, True, False))
    assert (found.overall.value, found.overall.size, found.unrated) == (0.5, 2, 1)
    assert list(found.by_version) == ["V1"]
    with pytest.raises(ConfigError, match="none of the 3 answers is judged"):
        rejection(findings, judged(findings, None, None, None))
