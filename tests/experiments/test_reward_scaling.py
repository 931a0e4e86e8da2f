"""Nested amounts and what they bring, by hand; a small run that is stopped and continued; mistakes."""

import functools
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.reward_scaling import get_config
from experiments import reward_model, reward_scaling
from experiments.reward_scaling import learning_rates, nested_amounts
from experiments.reward_scaling_report import PAPER, OnHeldout, growth, per_doubling
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, Message
from llama2_jax.data.preferences import RATINGS, Preference, read_preferences, write_preferences
from llama2_jax.interop.imported import FormatError
from llama2_jax.train.checkpoint import read_meta
from llama2_jax.train.stopping import Preempted
from tests.experiments import runs
from tests.rlhf.small_policy import saved_policy


def pairs(count: int, *, track: str = "helpfulness", batches: int = 3, seed: int = 0) -> list[Preference]:
    draw = random.Random(seed)
    return [
        Preference(
            (Message("user", f"{track} {seed} {number}"),), f"{draw.choice(runs.QUALITIES)} zebra",
            f"{draw.choice(runs.QUALITIES)} the", track, rating=RATINGS[number % 4],
            batch=1 + number % batches,
        )
        for number in range(count)
    ]  # fmt: skip


def config_of(**changes: Any) -> ConfigDict:
    folder = runs.scratch() / "reward_scaling_data"
    folder.mkdir(exist_ok=True)
    long = pairs(1, seed=2)[0]._replace(chosen="a letter. " * 30)
    write_preferences(folder / "all.jsonl", [*pairs(36), *pairs(6, track="safety")])
    write_preferences(folder / "heldout.jsonl", [*pairs(12, seed=1), long, *pairs(2, track="safety", seed=1)])
    defaults = {
        "models": (f"A={saved_policy()}", f"B={saved_policy(1)}"),
        "learning_rates": ("B=2e-3",),
        "data.preferences": str(folder / "all.jsonl"),
        "data.heldout": str(folder / "heldout.jsonl"),
        "data.batches": (1, 3),
        "reward_model.mesh.preset": "single",
        "reward_model.model.compute_dtype": "float32",
        "reward_model.data.sequence_length": 64,
        "reward_model.data.main_fraction": 1.0,
        "reward_model.data.on_bad_line": "skip",
        "reward_model.data.batch_size": 4,
        "reward_model.optimizer.learning_rate": 1e-3,
        "reward_model.train.checkpoint_every_steps": 2,
        "reward_model.eval.batch_size": 8,
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return runs.changed(get_config("paper"), defaults | changes)


@functools.cache
def finished() -> Path:
    """Stopped in the training of the second reward model, then continued."""
    workdir = runs.scratch() / "reward_scaling"
    batch = reward_model.PairLoader.batch

    def stopping(self: Any, step: int) -> Any:
        if step == 6:  # the first amount has three
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reward_model.PairLoader, "batch", stopping)
        with pytest.raises(Preempted):
            reward_scaling.run(config_of(), workdir)
    assert not (workdir / "report.md").exists()
    reward_scaling.run(config_of(), workdir)
    return workdir


def test_every_model_sees_the_same_nested_amounts() -> None:
    amounts = json.loads((finished() / "amounts.json").read_text())
    assert amounts == {"amounts": {"01": {"all": 14, "own": 12}, "03": {"all": 42, "own": 36}}, "heldout": 13}
    small, large = (
        set(read_preferences([f"{finished()}/amounts/{name}.jsonl"], template=LLAMA2))
        for name in ("01", "03")
    )
    assert small < large
    hashes = {}
    for model, path in (("A", saved_policy()), ("B", saved_policy(1))):
        for name, updates in (("01", 3), ("03", 9)):  # one epoch, four pairs an update
            folder = finished() / "rm" / model / name
            step, meta = read_meta(folder)
            assert step == updates
            hashes[model, name] = meta["data"]
            assert json.loads((folder / "config.json").read_text())["init_from"] == str(path)
    assert hashes["A", "03"] == hashes["B", "03"] != hashes["A", "01"]
    rates = [
        json.loads((finished() / f"rm/{name}/01/config.json").read_text())["optimizer"]["learning_rate"]
        for name in "AB"
    ]
    assert rates == [1e-3, 2e-3]


def test_the_report_has_figure_6_and_the_numbers_of_the_reward_models() -> None:
    report = (finished() / "report.md").read_text()
    results = json.loads((finished() / "results.json").read_text())
    for model in "AB":
        own = json.loads((finished() / f"rm/{model}/03/results.json").read_text())
        assert results["reports"][model]["03"]["accuracy"] == own["accuracy"]
    assert (results["heldout"], results["left_out"]) == (12, 1)
    assert results["reports"]["A"]["03"]["by_rating"]["significantly_better"]["size"] == 3
    for text in ("Significantly better, n = 3", "| 03 | 36 |", "| B over A |", "| GPT-4 | 58.6 % | 74.3 % |"):
        assert text in report
    assert (finished() / "accuracy_by_data.png").stat().st_size > 10_000


def test_a_stopped_run_trains_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [row["stage"] for row in runs.read_lines(finished() / "stages.jsonl")]
    assert stages == ["rm/A/01", "rm/A/03", "rm/B/01", "rm/B/03"]
    (finished() / "DONE").unlink()

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(reward_model, "run", never)
    monkeypatch.setattr(reward_scaling, "write_amounts", never)
    reward_scaling.run(config_of(), finished())
    assert (finished() / "DONE").exists()


def test_amounts_by_batch_and_by_share() -> None:
    given = pairs(8, batches=4)
    by_batch = nested_amounts(config_of(data__batches=()), given)
    assert {name: len(own) for name, own in by_batch.items()} == {"01": 2, "02": 4, "03": 6, "04": 8}
    assert by_batch["02"] == [given[0], given[1], given[4], given[5]]
    by_share = nested_amounts(config_of(data__batches=(), data__shares=(0.25, 1.0)), given)
    assert {name: len(own) for name, own in by_share.items()} == {"25%": 2, "100%": 8}
    assert by_share["100%"] == given
    other = nested_amounts(config_of(data__batches=(), data__shares=(0.25, 1.0), data__seed=1), given)
    assert other["25%"] != by_share["25%"]


def test_each_model_is_trained_at_its_own_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {}

    def run_stage(workdir: Path, folder: str, program: Any, stage: ConfigDict) -> None:
        rates[folder] = stage.optimizer.learning_rate

    monkeypatch.setattr(reward_scaling, "run_stage", run_stage)
    config = config_of(models=("A=a", "B=b", "C=c"), learning_rates=("A=3e-3", "B=2e-3"))
    for name in "ABC":
        reward_scaling.train(config, tmp_path, name, name, "01")
    assert rates == {"rm/A/01": 3e-3, "rm/B/01": 2e-3, "rm/C/01": 1e-3}


def test_growth_by_hand() -> None:
    # two comparisons of one prompt, one of another; amounts of 10, 20 and 40
    asked = [given._replace(rating=RATINGS[0] if i < 2 else "unsure") for i, given in enumerate(pairs(3))]
    asked[1] = asked[1]._replace(messages=asked[0].messages)
    curves = {
        "A": {"x": np.array([0.0, 0, 0]), "y": np.array([0.0, 0, 1]), "z": np.array([1.0, 0.5, 1])},
        "B": {"x": np.array([1.0, 0, 0]), "y": np.array([1.0, 1, 0]), "z": np.array([1.0, 1, 1])},
    }
    found = growth(OnHeldout(asked, {}, curves, 0), [10, 20, 40])
    # slope over log2: (last - first) / 2 with three equal steps
    assert per_doubling(np.array(list(curves["A"].values())), [10, 20, 40]) == pytest.approx([0.5, 0.25, 0.5])
    assert found["all"]["per_doubling"]["A"].value == pytest.approx(1.25 / 3)
    assert found["all"]["last_step"]["A"].value == pytest.approx(0.5)  # (1 + 0.5 + 0) / 3
    assert found["all"]["size"]["B over A"].value == pytest.approx(0.5 / 3)
    # sums of the prompts' differences 0.5 of 2 and 0 of 1: deviations 1/6 and -1/6
    half = 1.959964 * (2 * (2 / 36)) ** 0.5 / 3
    assert found["all"]["size"]["B over A"].high == pytest.approx(0.5 / 3 + half)
    assert "significantly_better" not in found  # of one prompt alone


def test_the_last_step_begins_at_about_half_of_the_data() -> None:
    asked = pairs(2)
    curves = {"A": {str(i): np.array([float(i == 1), 0.0]) for i in range(4)}}
    found = growth(OnHeldout(asked, {}, curves, 0), [10, 55, 70, 100])
    assert found["all"]["last_step"]["A"].value == -0.5  # from 55 on


def test_paper_variant_holds_the_numbers_of_the_paper() -> None:
    config = get_config("paper")
    assert (config.reward_model.optimizer.learning_rate, config.reward_model.data.batch_size) == (1e-5, 512)
    assert learning_rates(config) == {"70B": 5e-6}
    assert PAPER["7B"] == (0.610, 0.738)


def test_mistakes_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    for changes, message in (
        ({"models": ()}, "config.models is empty"),
        ({"data__preferences": ""}, "config.data.preferences is empty"),
        ({"data__batches": (3, 1)}, "must rise"),
        ({"data__shares": (0.5,)}, "clear one"),
        ({"data__shares": (0.0, 1.0), "data__batches": ()}, "of 0 nothing is learned"),
        ({"learning_rates": ("C=1e-5",)}, "names 'C'; config.models has A, B"),
        ({"learning_rates": ("B=fast",)}, "could not convert string to float"),
    ):
        with pytest.raises(ConfigError, match=message):
            reward_scaling.run(config_of(**changes), tmp_path / "run")
    with pytest.raises(FormatError, match="does not exist"):
        reward_scaling.run(config_of(models=("A=nowhere",), learning_rates=()), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"config.data.batches has \[9\]; the data has \[1, 2, 3\]"):
        reward_scaling.run(config_of(data__batches=(1, 9)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"all 4 comparisons are of batch 1; set config.data.shares"):
        nested_amounts(config_of(data__batches=()), pairs(4, batches=1))
    with pytest.raises(ConfigError, match="amount 01 has 0 comparison.* of the helpfulness track"):
        nested_amounts(config_of(), pairs(6, track="safety"))
    other = [pair._replace(track="safety") for pair in pairs(1)]
    with pytest.raises(ConfigError, match="amount 03 has 2 .*, the amount before it 2; leave out one"):
        nested_amounts(config_of(), [*pairs(2, batches=1), other[0]._replace(batch=3)])
    path = str(tmp_path / "seen.jsonl")
    write_preferences(path, [*pairs(3, seed=1), pairs(1)[0]])
    with pytest.raises(ConfigError, match="1 of 4 held-out comparisons are of prompts that are trained on"):
        reward_scaling.run(config_of(data__heldout=path), tmp_path / "run")
    assert not (tmp_path / "run" / "rm").exists()
