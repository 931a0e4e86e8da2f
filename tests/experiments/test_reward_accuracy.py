"""Table 7 from scores enumerated by hand, and the program on models of each kind."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments import reward_accuracy
from experiments.reward_accuracy import check_names, given_scores, judge_pairs, kept_scores, score_pairs
from experiments.reward_accuracy_report import (
    ALL,
    PAPER,
    TwoScores,
    conflicts,
    measure,
    two_scores,
    write_report,
)
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import CHATML, Message
from llama2_jax.data.preferences import Preference, write_preferences
from llama2_jax.evals.judge import SECOND
from llama2_jax.pretrained import load
from llama2_jax.rlhf.reward_checkpoint import load_reward_model, save_reward_model
from llama2_jax.rlhf.reward_model import score_dialogues
from tests.experiments import runs
from tests.rlhf.small_policy import saved_policy, saved_reward_model

BEST, UNSURE = "significantly_better", "unsure"


def pair(
    prompt: str, *, rating: str | None = None, track: str = "helpfulness", chosen: str = "reads"
) -> Preference:
    return Preference((Message("user", prompt),), chosen, "a letter.", track, rating)


SETS = {
    "helpful": [
        pair("a", rating=BEST),
        pair("a", rating=UNSURE),
        pair("b", rating=BEST),
        pair("c", rating=UNSURE),
    ],
    "harmless": [pair("d", track="safety"), pair("e", track="safety")],
}
RIGHT, WRONG, TIE = (1.0, 0.0), (0.0, 1.0), (2.0, 2.0)


def test_table_7_by_hand(tmp_path: Path) -> None:
    scores = {
        "ours": {"helpful": {0: RIGHT, 1: WRONG, 2: RIGHT, 3: RIGHT}, "harmless": {0: TIE, 1: RIGHT}},
        "other": {"helpful": {0: RIGHT, 1: RIGHT, 2: None, 3: WRONG}, "harmless": {0: WRONG, 1: TIE}},
        "part": {"helpful": {0: WRONG, 1: WRONG, 2: WRONG, 3: TIE}},
    }
    found = measure(SETS, scores)
    # what "other" could not read counts for none
    assert found.sizes == {"helpful": 3, "harmless": 2}
    values = {
        model: {name: own.value for name, own in shares.items()} for model, shares in found.accuracy.items()
    }
    third = pytest.approx
    assert values == {
        "ours": {"helpful": third(2 / 3), "harmless": 0.75, ALL: third(3.5 / 5)},
        "other": {"helpful": third(2 / 3), "harmless": 0.25, ALL: third(2.5 / 5)},
        "part": {"helpful": third(0.5 / 3)},
    }
    tied = {model: {name: own.value for name, own in shares.items()} for model, shares in found.tied.items()}
    assert tied == {
        "ours": {"helpful": 0, "harmless": 0.5, ALL: third(1 / 5)},
        "other": {"helpful": 0, "harmless": 0.5, ALL: third(1 / 5)},
        "part": {"helpful": third(1 / 3)},
    }
    # D36: pairs count once, or sets do
    assert found.mean_of_sets == {"ours": third((2 / 3 + 3 / 4) / 2), "other": third((2 / 3 + 1 / 4) / 2)}
    assert found.difference["other"]["harmless"].value == -0.5
    assert found.difference["other"][ALL].value == third(-1 / 5)
    assert list(found.difference["part"]) == ["helpful"]
    # of prompt a the differences are 0 and 1, of c it is -1: sums 1 and -1, mean 0, variance 2 (1 + 1) / 9
    assert found.difference["other"]["helpful"].high == third(1.959964 * (4 / 9) ** 0.5)
    ratings = found.by_rating["helpful"]["ours"]
    assert {name: (share.value, share.size) for name, share in ratings.items()} == {
        BEST: (1, 1),
        UNSURE: (0.5, 2),
    }
    assert found.by_rating["harmless"]["ours"] == {}
    kinds = {"ours": "helpfulness", "other": "safety"}
    write_report(tmp_path, SETS, scores, dict.fromkeys(scores, "a | model"), kinds)
    report = (tmp_path / "report.md").read_text()
    for text in (
        "helpful, n = 3",
        "| other | 66.7 % [",
        "1 of helpful, 0 of harmless",
        "| part | 33.3 % [2.8, 89.6] | - | - |",
        "| GPT-4 | 58.6 | 58.1 | - |",
    ):
        assert text in report
    assert json.loads((tmp_path / "results.json").read_text())["sizes"] == found.sizes
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000
    assert not (tmp_path / "tension.png").exists()  # no pair has a safety label


LABELLED = {
    "labelled": [
        pair("a", track="safety")._replace(safety="chosen_safe"),
        pair("b", track="safety")._replace(safety="both_unsafe"),
        pair("c", track="safety")._replace(safety="both_safe"),
        pair("d"),
    ]
}
HALF, LOW, HIGH = 0.0, -math.log(3), math.log(3)  # raw scores of 1/2, 1/4 and 3/4


def test_both_scores_of_labelled_answers_and_where_they_conflict_most(tmp_path: Path) -> None:
    safety = {"labelled": {0: (HIGH, LOW), 1: (LOW, HALF), 2: None, 3: (HIGH, HIGH)}}
    helpfulness = {"labelled": {0: (LOW, HALF), 1: (HIGH, HIGH), 2: (LOW, LOW), 3: (LOW, LOW)}}
    found = two_scores(LABELLED, safety=safety, helpfulness=helpfulness)
    expected = [
        ("a", "reads", False, 0.75, 0.25),
        ("a", "a letter.", True, 0.25, 0.5),
        ("b", "reads", True, 0.25, 0.75),
        ("b", "a letter.", True, 0.5, 0.75),
    ]
    assert [one[:3] for one in found] == [one[:3] for one in expected]
    np.testing.assert_allclose([one[3:] for one in found], [one[3:] for one in expected])
    exact = [TwoScores(*one) for one in expected]
    assert conflicts(exact, count=2) == [exact[0], exact[2], exact[3]]  # of the gaps 1/4, 1/2, 1/4 the last
    both_right = [TwoScores("e", "reads", False, 0.25, 0.75), TwoScores("e", "it", True, 0.75, 0.25)]
    assert conflicts([*exact, *both_right], count=4) == [exact[0], exact[2], exact[3], exact[1]]
    kinds = {"H": "helpfulness", "S": "safety"}
    write_report(tmp_path, LABELLED, {"H": helpfulness, "S": safety}, dict.fromkeys(kinds, "x"), kinds)
    report = (tmp_path / "report.md").read_text()
    assert "label, 4: scores of S and H." in report
    assert "| safe | 0.75 | 0.25 | a | reads |" in report
    assert (tmp_path / "tension.png").stat().st_size > 5_000


def test_a_set_that_some_model_cannot_read_at_all_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="none of the 2 comparisons of set harmless can be read by all models"
    ):
        measure(
            {"harmless": SETS["harmless"]},
            {"ours": {"harmless": {0: None, 1: RIGHT}}, "b": {"harmless": {0: TIE, 1: None}}},
        )


def test_the_papers_average_is_not_the_mean_of_its_sets() -> None:
    *sets, average = PAPER["Helpfulness RM"]
    assert np.mean(sets) == pytest.approx(70.75)
    assert average == 70.6


def test_a_reward_model_reads_each_pair_in_its_own_format() -> None:
    ours = load_reward_model(saved_reward_model("safety", 3))
    long = pair("x", chosen="reads a letter. " * 60)
    tagged = pair("<|im_start|> x")
    scores = score_pairs(ours, [SETS["helpful"][0], long, tagged, SETS["harmless"][1]], batch_size=4)
    assert scores[1] is None  # beyond the context of 128
    for number, given in ((0, SETS["helpful"][0]), (3, SETS["harmless"][1]), (2, tagged)):
        dialogues = [[*given.messages, Message("assistant", text)] for text in (given.chosen, given.rejected)]
        np.testing.assert_allclose(scores[number], score_dialogues(ours, dialogues, batch_size=2), rtol=1e-5)
    # of another format, whose marker the text holds
    assert score_pairs(ours._replace(template=CHATML), [tagged], batch_size=2) == {0: None}


def test_a_judge_is_asked_by_track_without_being_told_which_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def second(_: object, criterion: str, **__: object) -> object:
        def judge(shown: list) -> list[int]:
            asked.append((criterion[:5], [one.first.answer for one in shown]))
            return [SECOND] * len(shown)

        return judge

    judge = load(saved_policy())
    pairs = [pair(str(number), track=track) for track in ("helpfulness", "safety") for number in range(20)]
    monkeypatch.setattr(reward_accuracy, "judge_by_model", second)
    monkeypatch.setattr(
        reward_accuracy, "shown_tokens", lambda _, one, __: 999 if one.first.dialogue[0].content == "7" else 9
    )
    scores = judge_pairs(judge, pairs, batch_size=4)
    assert [number for number, own in scores.items() if own is None] == [7, 27]
    assert [(criterion, len(shown)) for criterion, shown in asked] == [("more ", 19), ("safer", 19)]
    first = [text for _, shown in asked for text in shown]
    # it always says the second: right where the rejected answer was shown first
    assert [own == RIGHT for own in scores.values() if own] == [text == "a letter." for text in first]
    assert 8 < first.count("reads") < 30


def test_a_real_judge_gives_a_choice_for_each_pair() -> None:
    judge = load(saved_policy())
    judge = judge._replace(config=judge.config.__class__(**{**vars(judge.config), "max_context": 1024}))
    judge = judge._replace(model=judge.model.__class__(judge.config, judge.model.partitioner))
    assert set(judge_pairs(judge, SETS["helpful"], batch_size=4).values()) <= {RIGHT, WRONG, (0.0, 0.0)}


def test_kept_scores_are_read_again_and_those_of_others_refused(tmp_path: Path) -> None:
    calls = []

    def score(pairs: list[Preference]) -> dict:
        calls.append(len(pairs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return dict.fromkeys(range(len(pairs)), RIGHT)

    with pytest.raises(KeyboardInterrupt):
        kept_scores(tmp_path / "m", SETS, "v1", score)
    found = kept_scores(tmp_path / "m", SETS, "v1", score)
    assert calls == [4, 2, 2]  # the first set was kept
    assert found == {"helpful": dict.fromkeys(range(4), RIGHT), "harmless": dict.fromkeys(range(2), RIGHT)}
    with pytest.raises(ConfigError, match="has scores of v1, not of v2; remove it, or give another name"):
        kept_scores(tmp_path / "m", SETS, "v2", score)


def test_names_and_kinds_are_checked_before_anything_is_scored(tmp_path: Path) -> None:
    def names(**paths: dict[str, str]) -> dict[str, dict[str, str]]:
        return {"reward_model": {}, "judge": {}, "scores": {}} | paths

    rm, chat = str(saved_reward_model("safety", 3)), str(saved_policy())
    with pytest.raises(ConfigError, match="several models are named A"):
        check_names(names(reward_model={"A": rm}, scores={"A": "x"}), {})
    with pytest.raises(ConfigError, match="is a language model; give it as --judge"):
        check_names(names(reward_model={"A": chat}), {})
    with pytest.raises(ConfigError, match="is a reward model; give it as --reward_model"):
        check_names(names(judge={"A": rm}), {})
    with pytest.raises(ConfigError, match="--template names 'B'; models are A"):
        check_names(names(judge={"A": chat}), {"B": "llama2"})
    with pytest.raises(ConfigError, match="choose one of 'llama2'"):
        check_names(names(judge={"A": chat}), {"A": "alpaca"})
    with pytest.raises(ConfigError, match="template that it was trained with, so chatml cannot be chosen"):
        check_names(names(reward_model={"A": rm}), {"A": "chatml"})
    with pytest.raises(
        ConfigError, match=r"has none of helpful.jsonl, harmless.jsonl; give one for each set"
    ):
        given_scores(tmp_path, SETS)


@functools.cache
def set_file() -> Path:
    path = runs.scratch() / "accuracy_set.jsonl"
    own = [*SETS["helpful"], pair("[INST] x"), pair("<|im_start|> x")]
    write_preferences(path, [one._replace(safety="both_safe") for one in own])
    return path


def test_one_command_makes_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    ours = saved_reward_model("safety", 3)
    save_reward_model(folder, load_reward_model(ours))
    (tmp_path / "given").mkdir()
    rows = [{"id": number, "choice": "chosen"} for number in range(6)]
    runs.write_lines(tmp_path / "given" / "own.jsonl", rows)
    done = runs.run_program(
        "experiments.reward_accuracy", f"--set=own={set_file()}", f"--reward_model=Ours={ours}",
        f"--reward_model=Folder={folder}", f"--reward_model=Help={saved_reward_model('helpfulness', 4)}",
        f"--scores=GPT={tmp_path / 'given'}", f"--output={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["accuracy"]["Ours"] == found["accuracy"]["Folder"]  # the same weights
    assert found["accuracy"]["GPT"]["own"]["value"] == 1
    assert list(found["models"]) == ["Ours", "Folder", "Help", "GPT"]
    assert found["models"]["Folder"].endswith("template llama2")  # scores of another are not taken for these
    # only what is a marker in a model's own format is not read
    assert found["sizes"] == {"own": 5}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "1 of own" in report
    assert "label, 10: scores of Ours and Help." in report
    assert len(runs.read_lines(tmp_path / "out" / "sets" / "own.jsonl")) == 6
