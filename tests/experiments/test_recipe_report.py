"""What the recipe's report makes of stages that measured less, or more, than others."""

from experiments import recipe_report
from experiments.recipe_report import _by_truth, _distillation, _gatt, _kl, _tension
from tests.experiments import runs


def test_claims_that_nothing_measured_are_not_judged(tmp_path):
    helpful, safe, refusals = _by_truth(None, "SFT", "V1")
    assert helpful.claim.startswith("V1 is more helpful than SFT")
    assert safe.claim.startswith("V1 is safer than SFT")
    verdicts = [helpful, safe, refusals, _gatt({}), _distillation(tmp_path, [tmp_path / "v1"]), _kl(tmp_path)]
    assert all(verdict.holds is None and verdict.measured for verdict in verdicts)


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
