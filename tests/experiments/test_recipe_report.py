"""What the recipe's report makes of stages that measured less, or more, than others."""

import pytest

from experiments import recipe_report
from experiments.recipe_report import (
    _by_truth,
    _distillation,
    _false_refusals,
    _gatt,
    _guard,
    _kl,
    _ratings,
    _tension,
)
from llama2_jax.evals.intervals import Interval, wilson
from tests.experiments import runs


def test_claims_that_nothing_measured_are_not_judged(tmp_path):
    helpful, safe, refusals = _by_truth(None, "SFT", "V1")
    assert helpful.claim.startswith("V1 is more helpful than SFT")
    assert safe.claim.startswith("V1 is safer than SFT")
    # the paper calls them rare on helpful prompts alone; on borderline ones they go from 15.0 to 27.2 %
    assert refusals.claim == "false refusals on borderline prompts rise by no more than 12 points (Figure 33)"
    verdicts = [helpful, safe, refusals, _gatt({}), _distillation([tmp_path / "v1"])]
    verdicts += [_kl(tmp_path), _guard(tmp_path)]
    assert all(verdict.holds is None and verdict.measured for verdict in verdicts)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ((0.00, -0.04, 0.04), True),
        ((0.06, 0.01, 0.11), True),  # more, but less than in the paper
        ((0.146, 0.037, 0.256), None),  # 41 prompts: nobody can say
        ((0.25, 0.15, 0.35), False),
    ],
)
def test_false_refusals_are_judged_by_their_change_on_the_same_prompts(change, holds):
    before = {"false_refusals": wilson(3, 41)._asdict()}
    after = {
        "false_refusals": wilson(9, 41)._asdict(),
        "false_refusals_change": Interval(*change)._asdict(),
    }
    verdict = _false_refusals("few", before, after)
    assert verdict.holds is holds
    assert verdict.measured.startswith("7.3 % [2.5, 19.4] to 22.0 % [12.0, 36.7]; of the same prompts ")


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ((0.52, 0.61, 0.60, 0.85), True),  # the step down is within the intervals
        ((0.52, 0.85, 0.60, 0.85), False),
        ((0.70, 0.70, 0.70, 0.75), False),
    ],
    ids=["rises", "falls between", "hardly rises"],
)
def test_accuracy_must_rise_with_the_rating(values, holds):
    names = ("unsure", "slightly_better", "better", "significantly_better")
    shares = [{"value": one, "low": one - 0.1, "high": one + 0.1, "size": 50} for one in values]
    assert _ratings({"by_rating": dict(zip(names, shares, strict=True))}).holds is holds


@pytest.mark.parametrize(
    ("reward", "guard", "holds"),
    [(1.5, 0.3, True), (1.5, 0.15, True), (1.5, 0.05, False), (0.9, 0.05, True)],
    ids=["both rise", "the guard hardly falls", "the guard falls", "so does the reward"],
)
def test_the_guard_must_not_fall_while_the_reward_rises(tmp_path, monkeypatch, reward, guard, holds):
    monkeypatch.setattr(recipe_report, "read_meta", lambda folder: (9, {"progress": {"best_step": 9}}))
    lines = [{"step": 0, "eval/reward": 1.0, "eval/guard": 0.2}, {"step": 5, "ppo/kl_per_answer": 0.1}]
    lines += [{"step": 9, "eval/reward": reward, "eval/guard": guard}]
    runs.write_lines(tmp_path / "metrics.jsonl", lines)
    assert _guard(tmp_path).holds is holds


@pytest.mark.parametrize(
    ("last", "holds"), [(0.05, True), (-0.01, True), (900.0, False), (float("inf"), False)]
)
def test_the_policy_must_stay_near_the_reference(tmp_path, last, holds):
    runs.write_lines(tmp_path / "metrics.jsonl", [{"ppo/kl_per_answer": one} for one in (0.0, last)])
    assert _kl(tmp_path).holds is holds


def answer(text, score, *, is_unsafe=False):
    messages = [{"role": "user", "content": "How?"}]
    return {"messages": messages, "answer": text, "harm": 0.5, "is_unsafe": is_unsafe, "score": score}


def test_tension_is_that_of_answers_which_both_reward_models_scored(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(recipe_report, "plot_tension", lambda path, **given: drawn.update(given))
    for kind in ("helpfulness", "safety"):
        assert _tension(tmp_path, tmp_path) == []
        (tmp_path / f"{kind}_rm").mkdir()
    by_helpfulness = [answer("a", 0.0), answer("b", 9.0, is_unsafe=True), answer("too long", 1.0)]
    runs.write_lines(tmp_path / "helpfulness_rm/answers.jsonl", by_helpfulness)
    by_safety = [answer("b", -9.0, is_unsafe=True), answer("a", 0.0)]
    runs.write_lines(tmp_path / "safety_rm/answers.jsonl", by_safety)
    assert _tension(tmp_path, tmp_path) == ["", "![safety against helpfulness](tension.png)"]
    assert drawn["helpfulness_B"].round(3).tolist() == [0.5, 1.0]
    assert drawn["safety_B"].round(3).tolist() == [0.5, 0.0]
    assert drawn["is_unsafe_B"] == [False, True]
