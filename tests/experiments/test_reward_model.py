"""Train tiny reward models end to end on preferences with a planted rule."""

import functools
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import reward_model as configs
from experiments import reward_model
from experiments.reward_model import mixture
from llama2_jax.config import ConfigError, to_plain
from llama2_jax.data.chat import Message
from llama2_jax.data.preference_batches import EncodedPair, EncodedPairs
from llama2_jax.data.preferences import TRACKS, Preference, write_preferences
from llama2_jax.data.rated_answers import RatedAnswer
from llama2_jax.data.records import DataError
from llama2_jax.losses.preference import MARGINS
from llama2_jax.pretrained import load
from llama2_jax.rlhf.reward_checkpoint import load_reward_model
from llama2_jax.rlhf.reward_model import score_dialogues
from llama2_jax.train.checkpoint import read_meta
from llama2_jax.train.metrics import read_metrics
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.stopping import Preempted
from tests.experiments import runs
from tests.model import tiny
from tests.train.tiny_run import assert_bitwise_equal, partitioner

GOOD, BAD = "zebra", "the"
RATINGS = ("significantly_better", "better", "slightly_better", "unsure")
BINS = ("chosen_safe", "both_safe", "both_unsafe")


def pairs(count: int, *, seed: int, track: str = "helpfulness", **fields: Any) -> list[Preference]:
    """The chosen answer ends with ``GOOD``, the rejected one with ``BAD``."""
    draw = random.Random(seed)
    return [
        Preference(
            (Message("user", f"{draw.choice(runs.NOUNS)} {draw.randint(0, 10**6)}"),),
            f"{draw.choice(runs.QUALITIES)} {GOOD}",
            f"{draw.choice(runs.QUALITIES)} {BAD}",
            track,
            **{"rating": RATINGS[i % 4], "safety": BINS[i % 3], "source": "test", **fields},
        )
        for i in range(count)
    ]


@functools.cache
def file(count: int = 96, seed: int = 0, track: str = "helpfulness") -> Path:
    path = runs.scratch() / f"preferences_{count}_{seed}_{track}.jsonl"
    write_preferences(path, pairs(count, seed=seed, track=track))
    return path


def config(kind: str = "helpfulness", **changes: Any) -> ConfigDict:
    """The tiny variant from the fine-tuned workdir: 12 updates of 8 pairs."""
    defaults = {
        "init_from": str(runs.fine_tuned_workdir()),
        "mesh.preset": "single",
        "data.preferences": str(file()),
        "data.heldout": str(file(24, 1)),
        "data.sequence_length": 64,
        "data.batch_size": 8,
        "optimizer.learning_rate": 3e-3,
        "optimizer.warmup_steps": 2,
        "train.checkpoint_every_steps": 5,
        "train.peak_flops": 1e12,
        "eval.batch_size": 16,
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return runs.changed(configs.get_config(f"{kind},size=tiny"), defaults | changes)


@functools.cache
def answers() -> Path:
    """Harmless ones end with ``GOOD``; the last is longer than what is trained on."""
    rated = [
        RatedAnswer((Message("user", f"river {number}"),), text, harm, harm > 0.5)
        for number in range(4)
        for text, harm in ((f"quiet {GOOD}", 0.0), (f"quiet {BAD}", 1.0))
    ]
    rated.append(RatedAnswer((Message("user", "river"),), " ".join([BAD] * 80), 0.5, False))
    return runs.write_lines(runs.scratch() / "answers.jsonl", [to_plain(one) for one in rated])


@functools.cache
def finished() -> Path:
    workdir = runs.scratch() / "helpfulness_rm"
    reward_model.run(config(data__answers=str(answers())), workdir)
    return workdir


def test_the_rule_is_learned_on_new_prompts_in_one_epoch() -> None:
    lines = read_metrics(finished())
    before, after = [line for line in lines if "eval/heldout/accuracy" in line]
    assert (before["step"], after["step"]) == (0, 12)
    assert after["eval/heldout/accuracy"] > 0.95
    assert after["eval/heldout/score_difference"] > 0.5 + before["eval/heldout/score_difference"]
    assert sum(line["train/pairs"] for line in lines if "train/pairs" in line) == 96  # every pair once


def test_the_first_loss_is_that_of_the_new_head_and_the_margins() -> None:
    first = next(line for line in read_metrics(finished()) if "train/loss" in line)
    assert first["train/loss"] == pytest.approx(first["train/ranking_loss"])  # no safety loss: RM-6
    # scores of a new head differ by about 1; margins of 0, 1, 2 and 3 make the mean loss about 1.8
    assert 1.0 < first["train/loss"] < 3.5


def test_the_report_says_what_was_trained_and_how_well() -> None:
    report = (finished() / "report.md").read_text(encoding="utf-8")
    for text in (
        "| pairs trained on | 96 |",
        "| updates | 12 |",
        "- pairs with equal scores, which count as half right | 0.0 % (",
        "- rated significantly better |",
        "- both unsafe |",
        "recall of unsafe responses at score 0.5",
        "precision of unsafe responses at score 0.15",
        load_reward_model(finished()).version,
    ):
        assert text in report
    assert (finished() / "scores.png").stat().st_size > 5000
    assert (finished() / "accuracy.png").stat().st_size > 5000
    assert (finished() / "DONE").exists()


def test_scores_are_compared_with_those_of_people() -> None:
    scored = runs.read_lines(finished() / "answers.jsonl")
    assert [row["harm"] for row in scored] == [0.0, 1.0] * 4
    dialogue = [Message("user", "river 0"), Message("assistant", f"quiet {GOOD}")]
    (score,) = score_dialogues(load_reward_model(finished()), [dialogue], batch_size=1)
    assert scored[0]["score"] == pytest.approx(float(score), abs=1e-5)
    report = (finished() / "report.md").read_text(encoding="utf-8")
    assert "8 answers of at most 64 tokens; rank correlation of the" in report
    assert "people see: -0.8" in report  # perfect but for the ties: each side has two values or eight
    assert "](calibration.png)" in report
    assert (finished() / "calibration.png").stat().st_size > 5000


def test_the_checkpoint_scores_texts_and_says_what_it_is_for() -> None:
    found = load_reward_model(finished())
    assert (found.kind, found.template.name) == ("helpfulness", "llama2")
    question = Message("user", "river 12")
    answers = [[question, Message("assistant", f"quiet {word}")] for word in (GOOD, BAD)]
    good, bad = score_dialogues(found, answers, batch_size=2)
    assert good > bad
    _, meta = read_meta(finished())
    assert (meta["kind"], meta["reward"], meta["margin"]) == ("reward_model", "helpfulness", "large")


def test_it_is_no_chat_model_and_a_chat_model_is_none() -> None:
    with pytest.raises(ConfigError, match="is a reward model"):
        load(finished())
    with pytest.raises(ConfigError, match="is no reward model"):
        load_reward_model(runs.fine_tuned_workdir())


def stopped(settings: ConfigDict, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that SIGTERM reaches at its sixth batch."""
    batch = reward_model.PairLoader.batch

    def stopping(self: Any, step: int) -> Any:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(reward_model.PairLoader, "batch", stopping)
        with pytest.raises(Preempted):
            reward_model.run(settings, workdir)


def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(config(), tmp_path, monkeypatch)
    reward_model.run(config(), tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()
    assert_bitwise_equal(load_reward_model(tmp_path).params, load_reward_model(finished()).params)


def test_a_run_continues_on_a_mesh_that_its_batch_does_not_divide_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(config(data__batch_size=6), tmp_path, monkeypatch)
    mesh = {"mesh__preset": "fsdp", "mesh__fsdp": 8}
    with pytest.raises(ConfigError, match="made with 6 rows or pairs per update, the config has 8"):
        reward_model.run(config(data__batch_size=8, accept_changed_config=True, **mesh), tmp_path)
    reward_model.run(config(data__batch_size=6, **mesh), tmp_path)
    assert (tmp_path / "DONE").exists()


def test_the_safety_model_learns_which_responses_are_unsafe(tmp_path: Path) -> None:
    data = tmp_path / "safety.jsonl"
    write_preferences(data, pairs(96, seed=2, track="safety", safety="chosen_safe"))
    heldout = tmp_path / "heldout.jsonl"
    write_preferences(heldout, pairs(24, seed=3, track="safety", safety="chosen_safe"))
    reward_model.run(
        config("safety", data__preferences=str(data), data__heldout=str(heldout)), tmp_path / "run"
    )
    last = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line][-1]
    assert last["train/safety_accuracy"] > 0.9
    assert last["train/loss"] == pytest.approx(last["train/ranking_loss"] + last["train/safety_loss"])


def tracks(found: list[Preference]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for pair in found:
        counts[pair.source, pair.track] = counts.get((pair.source, pair.track), 0) + 1
    return counts


def test_mixtures_of_the_paper() -> None:
    own = pairs(30, seed=0, source="own") + pairs(60, seed=1, track="safety", source="own")
    public = pairs(50, seed=2, source="public") + pairs(30, seed=3, track="safety", source="public")
    helpful = tracks(mixture("helpfulness", own, public, main_fraction=0.5, seed=0))
    assert helpful["own", "helpfulness"] == 30
    assert sum(helpful.values()) == 60  # an equal part of the rest
    assert set(helpful) == {(source, track) for source in ("own", "public") for track in TRACKS}  # RM-7, D29
    safe = tracks(mixture("safety", own, public, main_fraction=0.9, seed=0))
    assert (safe["own", "safety"], safe["public", "safety"]) == (60, 30)
    assert sum(safe.values()) == 100  # 90 to 10
    assert {source for source, track in safe if track == "helpfulness"} == {"own", "public"}  # RM-8, D30
    assert sum(tracks(mixture("guard", own, public, main_fraction=0.5, seed=0)).values()) == 170
    with pytest.raises(ConfigError, match="none of 30 pair"):
        mixture("safety", own[:30], [], main_fraction=0.9, seed=0)


def test_without_a_heldout_file_prompts_are_held_out(tmp_path: Path) -> None:
    changed = config(data__heldout="", data__heldout_fraction=0.25)
    found = reward_model.read(changed, load(runs.fine_tuned_workdir()))
    assert len(found.train) + len(found.heldout) == 96
    assert 12 < len(found.heldout) < 40
    assert not {pair.messages for pair in found.train} & {pair.messages for pair in found.heldout}


def test_accuracy_is_of_held_out_pairs_of_the_own_track(tmp_path: Path) -> None:
    both = [*pairs(6, seed=1), *pairs(9, seed=2, track="safety")]
    write_preferences(tmp_path / "heldout.jsonl", both)
    chat = load(runs.fine_tuned_workdir())
    for kind, count in (("helpfulness", 6), ("guard", 15)):
        found = reward_model.read(config(kind, data__heldout=str(tmp_path / "heldout.jsonl")), chat)
        assert found.heldout == both[:count]


def test_the_new_head_depends_on_the_seed_of_the_config() -> None:
    chat = load(runs.fine_tuned_workdir())
    heads = [
        np.asarray(reward_model.initial_params(config(train__seed=seed), chat.params)["w_score_D"])
        for seed in (1, 2)
    ]
    assert not np.array_equal(*heads)


@pytest.mark.parametrize("margin", MARGINS)
def test_margins_and_the_rows_of_an_update_are_those_of_the_config(margin: str) -> None:
    one = EncodedPairs([EncodedPair([1, 2], [1, 3], 3, (-1, -1))], [0], 0, 0)
    settings = config(loss__margin=margin, train__accumulation_steps=3)
    loader = reward_model.make_pair_loader(settings, tiny.CONFIG, partitioner(), one)
    assert loader.margins == MARGINS[margin]
    assert loader.num_rows == 3  # of one pair: the rest is empty


def test_margins_without_ratings_are_refused_unless_the_source_is_named(tmp_path: Path) -> None:
    data = tmp_path / "unrated.jsonl"
    write_preferences(data, pairs(16, seed=0, rating=None, source="public"))
    with pytest.raises(DataError, match=r"16 of 16 pair\(s\) have none \(public: 16\)"):
        reward_model.run(config(data__preferences=str(data)), tmp_path / "run")
    chat = load(runs.fine_tuned_workdir())
    for changes in ({"data__unrated_sources": ("public",)}, {"loss__margin": "none"}):
        assert len(reward_model.read(config(data__preferences=str(data), **changes), chat).train) == 16


def test_a_chosen_answer_that_is_unsafe_beside_a_safe_one_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [to_plain(pair) for pair in pairs(8, seed=0)]
    rows[3]["safety"] = "rejected_safe"
    data = runs.write_lines(tmp_path / "data.jsonl", rows)
    found = reward_model.read(config(data__preferences=str(data)), load(runs.fine_tuned_workdir()))
    assert len(found.train) == 7
    assert found.left_out == {"rejected_safe": 1}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"init_from": ""}, ConfigError, "config.init_from is empty"),
        ({"data__preferences": ""}, ConfigError, "config.data.preferences is empty"),
        (
            {"loss__margin": "huge"},
            ConfigError,
            "config.loss.margin is 'huge'; choose one of 'none', 'small'",
        ),
        ({"loss__safety_weight": -1.0}, ConfigError, "loss.safety_weight = -1.0 must not be negative"),
        ({"data__epochs": 0.0}, ConfigError, "data.epochs = 0.0 must be positive"),
        ({"data__sequence_length": 4096}, ConfigError, "beyond the model's context"),
        ({"data__sequence_length": 8}, DataError, "tokens, more than 8; raise config.data.sequence_length"),
        ({"data__heldout": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"eval__batch_size": 0}, ConfigError, "eval.batch_size"),
        ({"data__answers": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
    ],
)
def test_mistakes_are_found_before_training(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        reward_model.run(config(**changes), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_numbers_of_the_paper() -> None:
    """Section 3.2.2, "Training Details"; Table 27."""
    for size in ("7b", "13b", "34b", "70b"):
        for kind in configs.KINDS:
            found = configs.get_config(f"{kind},size={size}")
            assert found.optimizer.learning_rate == (5e-6 if size == "70b" else 1e-5)
            assert (found.data.batch_size, found.data.epochs) == (512, 1.0)
            assert (found.optimizer.warmup_fraction, found.optimizer.warmup_steps) == (0.03, 5)
            assert (found.optimizer.schedule, found.optimizer.final_fraction) == ("cosine", 0.1)
            assert found.loss.margin in MARGINS
            OptimizerConfig(**found.optimizer)
    assert configs.get_config("helpfulness").loss.margin == "large"
    assert configs.get_config("safety").loss.margin == "none"
    assert np.isclose(configs.get_config("safety").loss.safety_weight, 1.0)
    assert configs.get_config("helpfulness").loss.safety_weight == 0.0
