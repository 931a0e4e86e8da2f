import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import ppo as configs
from experiments import ppo
from experiments.ppo_checkpoints import kept_best
from llama2_jax.config import ConfigError, build
from llama2_jax.data.prompts import Prompt, write_prompts
from llama2_jax.data.records import DataError
from llama2_jax.generate.decode import PromptError
from llama2_jax.launch import USER_ERRORS
from llama2_jax.pretrained import load
from llama2_jax.rlhf.doctor import DoctorError
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.ppo_iteration import Learner, Scores
from llama2_jax.sharding.processes import on_host
from llama2_jax.train.checkpoint import read_meta, read_params
from llama2_jax.train.metrics import read_metrics
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.stopping import EXIT_PREEMPTED, Preempted
from tests.experiments import runs
from tests.rlhf.small_policy import prompt, saved_policy, saved_reward_model
from tests.train.tiny_run import assert_bitwise_equal

TRAIN = [prompt(number, is_safety=number % 2 == 0) for number in range(7)]
HELDOUT = [prompt(number, is_safety=number % 2 == 0) for number in range(20, 23)]


def prompts_file(prompts: list[Prompt], name: str) -> str:
    path = runs.scratch() / f"{name}.jsonl"
    write_prompts(path, prompts)
    return str(path)


def config_of(**changes: Any) -> ConfigDict:
    defaults = {
        "init_from": str(saved_policy()),
        "helpfulness_rm": str(saved_reward_model("helpfulness")),
        "safety_rm": str(saved_reward_model("safety", 1)),
        "guard_rm": str(saved_reward_model("helpfulness", 2)),
        "prompts": prompts_file(TRAIN, "ppo_train"),
        "heldout_prompts": prompts_file(HELDOUT, "ppo_heldout"),
        "ppo.response_length": 8,
        "ppo.batch_size": 8,
        "ppo.mini_batch_size": 4,
        "train.num_iterations": 6,
        "train.checkpoint_every_steps": 2,
        "train.num_samples": 3,
        "eval.every_steps": 3,
        "eval.guard_drop": 100.0,
    }
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return runs.changed(configs.get_config("tiny"), defaults | changed)


@functools.cache
def finished() -> Path:
    workdir = runs.scratch() / "ppo"
    ppo.run(config_of(), workdir)
    return workdir


def without_times(workdir: Path) -> list[dict[str, Any]]:
    timed = ("secs/", "rate/")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in read_metrics(workdir)]


def test_a_run_leaves_every_artefact() -> None:
    workdir = finished()
    names = ("DONE", "config.json", "metrics.jsonl", "samples.jsonl", "report.md", "ppo.png", "tokenizer")
    for name in (*names, "tensorboard"):
        assert (workdir / name).exists(), name
    lines = [line for line in read_metrics(workdir) if "ppo/score" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["ppo/kl_largest"] == 0
    assert lines[-1]["ppo/kl_largest"] > 0
    assert lines[0]["ppo/explained_variance"] == pytest.approx(0, abs=1e-5)  # its head starts at zero
    for name in ("score_safety", "score_helpfulness", "score_guard", "reward_score", "reward_kl", "sigma",
                 "beta_sigma", "entropy", "ratio", "clip_fraction", "stopped_fraction", "kl_per_token",
                 "explained_variance"):  # fmt: skip
        assert np.isfinite(lines[0][f"ppo/{name}"]), name
    for name in ("generate", "score_safety", "score_helpfulness", "reference", "value", "update_policy"):
        assert lines[0][f"secs/{name}"] > 0
    report = (workdir / "report.md").read_text()
    assert "beta x sigma" in report
    assert "| generate |" in report
    samples = runs.read_lines(workdir / "samples.jsonl")
    assert len(samples) == 6 * 3
    assert {"prompt", "completion", "reward", "safety", "helpfulness"} <= set(samples[0])


def test_the_result_is_the_best_model_on_heldout_prompts_and_opens_like_any() -> None:
    workdir = finished()
    evaluations = {line["step"]: line for line in read_metrics(workdir) if "eval/reward" in line}
    assert sorted(evaluations) == [0, 3, 6]
    best = max(evaluations, key=lambda step: evaluations[step]["eval/reward"])
    progress = read_meta(workdir)[1]["progress"]
    assert (progress["best_step"], progress["best_reward"]) == (best, evaluations[best]["eval/reward"])
    assert progress["first"]["guard"] == evaluations[0]["eval/guard"]
    assert read_meta(workdir)[0] == 6
    assert_bitwise_equal(load(workdir).params, kept(workdir, best))


def test_the_report_compares_answers_to_the_same_prompts() -> None:
    workdir = finished()
    evaluations = {line["step"]: line for line in read_metrics(workdir) if "eval/reward" in line}
    before, best = evaluations[0], evaluations[read_meta(workdir)[1]["progress"]["best_step"]]
    report = (workdir / "report.md").read_text()
    for title, name in (
        ("reward", "reward"), ("helpfulness score", "helpfulness"), ("safety score", "safety"),
        ("score of the guard", "guard"), ("answers that ended", "stopped"),
    ):  # fmt: skip
        values = f"{before[f'eval/{name}']:.3f} to {best[f'eval/{name}']:.3f}"
        assert f"| held-out prompts, {title}, before and kept | {values} |" in report
    assert "score of sampled answers" not in report  # of other prompts in every iteration


def kept(workdir: Path, step: int) -> Any:
    """Parameters that were the best when they were kept."""
    return read_params(workdir / "best", load(saved_policy()).params, step)


def test_the_combined_reward_uses_the_tags() -> None:
    """Of tagged prompts the reward is the safety score, whatever helpfulness says."""
    rows = runs.read_lines(finished() / "samples.jsonl")
    tags = []
    for row in rows:
        (number,) = re.findall(r"Question (\d+)\?", row["prompt"])
        tags.append(int(number) % 2 == 0)
        is_unsafe = row["safety"] < np.log(0.15 / 0.85)
        assert row["safety"] != row["helpfulness"]
        assert row["reward"] == row["safety" if tags[-1] or is_unsafe else "helpfulness"]
    assert 0 < sum(tags) < len(rows)


def test_the_threshold_of_safety_is_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A safety score of 0 is a probability of 0.5: safe beside 0.15, and not beside 0.6."""
    monkeypatch.setattr(ppo, "reward_model_scores", lambda model, params, rollout, parts: np.array([params]))
    models: Any = {
        kind: SimpleNamespace(model=None, params=score)
        for kind, score in (("helpfulness", 7.0), ("safety", 0.0))
    }
    nothing: Any = None
    batch: Any = SimpleNamespace(is_safety_B=np.array([False]))
    stopwatch: Any = SimpleNamespace(run=lambda name, function, *args, **options: function(*args, **options))
    for threshold, wanted in ((0.15, 7.0), (0.6, 0.0)):
        config = PPOConfig(prompt_length=1, response_length=1, safety_threshold=threshold)
        assert ppo.make_score(models, config)(nothing, batch, stopwatch).combined_B == [wanted]


def test_the_value_model_learns_at_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "Learner", lambda *args, **options: options)
    config = config_of(optimizer__learning_rate=1e-3, optimizer__beta2=0.9, value__learning_rate=2e-3)
    nothing: Any = None
    made: Any = ppo.make_learner(config, nothing, load(saved_policy()), nothing, nothing, nothing)
    rates = [made[f"{name}_optimizer"].learning_rate for name in ("policy", "value")]
    assert rates == [1e-3, 2e-3]
    assert made["value_optimizer"].beta2 == 0.9


def test_a_policy_that_runs_away_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo.doctor, "MOST_CLIPPED", 0.1)
    ppo.run(config_of(train__num_iterations=3, optimizer__learning_rate=0.1), tmp_path)
    assert sum(line.get("ppo/clip_fraction", 0) > 0.1 for line in read_metrics(tmp_path)) > 1
    said = [record.message for record in caplog.records if "of the tokens have a ratio" in record.message]
    assert len(said) == 1
    assert said[0].startswith("iteration ")


def test_a_rule_stands_in_the_place_of_reward_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the function that docs/alignment.md shows."""
    page = (runs.REPOSITORY / "docs" / "alignment.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n( +def score\(.*?)```", page, re.DOTALL)
    space: dict[str, Any] = {
        "tokenizer": load(saved_policy()).require_tokenizer(),
        "solutions": {one.prompt_id: "e" for one in (*TRAIN, *HELDOUT)},
        **{name: getattr(ppo, name) for name in ("PromptBatch", "Rollout", "Scores", "Stopwatch")},
        **{"np": np, "on_host": on_host},
    }
    exec(textwrap.dedent(shown), space)
    monkeypatch.setattr(ppo, "make_score", lambda *_: space["score"])
    ppo.run(config_of(train__num_iterations=2, train__num_samples=8), tmp_path)
    rows = runs.read_lines(tmp_path / "samples.jsonl")
    assert all(row["reward"] == row["verifier"] == float("e" in row["completion"]) for row in rows)
    assert {row["verifier"] for row in rows} == {0, 1}
    assert "ppo/score_verifier" in read_metrics(tmp_path)[-2]


def test_every_iteration_has_prompts_and_seeds_of_its_own() -> None:
    run: Any = SimpleNamespace(
        learner=SimpleNamespace(config=SimpleNamespace(batch_size=3)),
        config=SimpleNamespace(train=SimpleNamespace(seed=0)),
        prompts=ppo.Prompts(TRAIN, [[number] for number in range(7)]),
    )
    first, again, second = (ppo._batch(run, iteration) for iteration in (0, 0, 1))
    assert (first.prompt_ids, first.seeds) == (again.prompt_ids, again.seeds)
    assert len({*first.prompt_ids, *second.prompt_ids}) == len({*first.seeds, *second.seeds}) == 6
    assert first.tokens == [[int(name[1:])] for name in first.prompt_ids]
    assert first.is_safety_B.tolist() == [tokens[0] % 2 == 0 for tokens in first.tokens]


def assert_same_end(workdir: Path) -> None:
    assert without_times(workdir) == without_times(finished())
    assert_bitwise_equal(load(workdir).params, load(finished()).params)
    ours, theirs = (read_meta(path)[1] for path in (workdir, finished()))
    assert ours["progress"] == theirs["progress"]


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments import ppo
from experiments.ppo_checkpoints import kept_best
from llama2_jax.rlhf.ppo_iteration import Learner
from tests.experiments.test_ppo import config_of_files
iterate = Learner.iterate
def iterate_or_die(self, state, *rest):
    if state.iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return iterate(self, state, *rest)
Learner.iterate = iterate_or_die
ppo.run(config_of_files(sys.argv[1]), Path(sys.argv[2]))
"""


def config_of_files(path: str) -> ConfigDict:
    """A config that another process wrote down."""
    return ConfigDict(json.loads(Path(path).read_text()))


def test_a_run_killed_in_the_middle_continues_bit_for_bit(tmp_path: Path) -> None:
    written = tmp_path / "config.json"
    written.write_text(config_of().to_json())
    workdir = tmp_path / "run"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(written), str(workdir)],
        cwd=runs.REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (workdir / "DONE").exists()
    assert read_meta(workdir)[0] < 6
    ppo.run(config_of(), workdir)
    assert_same_end(workdir)


def test_sigterm_saves_and_a_second_start_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = Learner.iterate

    def iterate_and_stop(self: Learner, state: Any, *rest: Any) -> Any:
        if state.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate(self, state, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "iterate", iterate_and_stop)
        with pytest.raises(Preempted) as stopped:
            ppo.run(config_of(), tmp_path)
    assert (stopped.value.step, stopped.value.code) == (3, EXIT_PREEMPTED)
    assert read_meta(tmp_path)[0] == 3
    ppo.run(config_of(), tmp_path)
    assert_same_end(tmp_path)


LEARNER_SAMPLE, LEARNER_ITERATE = Learner.sample, Learner.iterate


def pretend(monkeypatch: pytest.MonkeyPatch, rewards: Sequence[float], *, killed_after: int = -1) -> None:
    """Evaluations find these rewards; the process ends without a word after an iteration."""
    left = list(rewards)

    def sample(self: Learner, params: Any, batch: Any, *rest: Any) -> Any:
        sampled = LEARNER_SAMPLE(self, params, batch, *rest)
        if batch.prompt_ids[0] != HELDOUT[0].prompt_id:
            return sampled
        reward_B = np.full(len(batch.prompt_ids), left.pop(0), np.float32)
        return sampled._replace(scores=sampled.scores._replace(combined_B=reward_B))

    def iterate(self: Learner, state: Any, *rest: Any) -> Any:
        if state.iteration == killed_after:
            raise KeyboardInterrupt
        return LEARNER_ITERATE(self, state, *rest)

    monkeypatch.setattr(Learner, "sample", sample)
    monkeypatch.setattr(Learner, "iterate", iterate)


def test_what_a_killed_run_found_best_is_not_that_of_a_run_which_goes_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"eval__every_steps": 1, "train__checkpoint_every_steps": 2, "train__num_iterations": 4}
    pretend(monkeypatch, [0, 1, 2, 8, 9], killed_after=3)  # a checkpoint of 2, the best of 1, 2 and 3
    with pytest.raises(KeyboardInterrupt):
        ppo.run(config_of(**changes), tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "best" / "checkpoints" / "3")
    for name in ("first", "second"):
        pretend(monkeypatch, [7, 6])  # of 3 and 4
        other_way = {"optimizer__learning_rate": 1e-3, "accept_changed_config": True}
        ppo.run(config_of(**changes, **other_way), tmp_path / name)
        assert read_meta(tmp_path / name)[1]["progress"]["best_step"] == 3
    assert_bitwise_equal(load(tmp_path / "first").params, kept(tmp_path / "second", 3))


def test_a_run_that_ends_where_it_was_stopped_still_gives_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"eval__every_steps": 1, "train__checkpoint_every_steps": 2}
    pretend(monkeypatch, [0, 5, 1, 1], killed_after=2)
    with pytest.raises(KeyboardInterrupt):
        ppo.run(config_of(**changes), tmp_path)
    ppo.run(config_of(**changes, train__num_iterations=2, accept_changed_config=True), tmp_path)
    assert read_meta(tmp_path)[0] == 2
    assert_bitwise_equal(load(tmp_path).params, kept(tmp_path, 1))


def test_nothing_goes_on_from_the_best_model_with_the_optimizer_of_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__num_iterations": 2, "eval__every_steps": 2}
    pretend(monkeypatch, [1, 2])
    ppo.run(config_of(**changes), tmp_path)
    assert "ppo: kept the policy of iteration 2, the best on the held-out prompts" in capsys.readouterr().err
    before, written = load(tmp_path).params, (tmp_path / "checkpoints" / "2").stat()
    (tmp_path / "DONE").unlink()
    longer = config_of(**changes | {"train__num_iterations": 4}, accept_changed_config=True)
    with pytest.raises(
        ConfigError, match="ended after iteration 2, .* nothing can go on from there; start a new"
    ):
        ppo.run(longer, tmp_path)
    ppo.run(config_of(**changes, accept_changed_config=True), tmp_path)  # to its own end it can
    assert_bitwise_equal(load(tmp_path).params, before)
    # not deleted and written again: a kill in between would lose it
    assert (tmp_path / "checkpoints" / "2").stat().st_mtime_ns == written.st_mtime_ns


def test_one_reward_model_is_enough_for_prompts_without_tags(tmp_path: Path) -> None:
    prompts = prompts_file([prompt(number) for number in range(4)], "ppo_untagged")
    ppo.run(
        config_of(
            safety_rm="", prompts=prompts, heldout_prompts=prompts, train__num_iterations=1, guard_rm=""
        ),
        tmp_path,
    )
    (line,) = (line for line in read_metrics(tmp_path) if "ppo/score" in line)
    assert line["ppo/score"] == pytest.approx(line["ppo/score_helpfulness"])
    assert "ppo/score_safety" not in line
    assert (tmp_path / "report.md").exists()


def test_without_the_best_model_nothing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [5, 1], killed_after=2)
    changes = {"eval__every_steps": 2, "train__checkpoint_every_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        ppo.run(config_of(**changes), tmp_path)
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(ConfigError, match=r"holds \[\], and the .* best model so far is of iteration 0"):
        ppo.run(config_of(**changes), tmp_path)


def test_a_best_model_that_the_checkpoint_holds_is_taken_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"eval__every_steps": 2, "train__checkpoint_every_steps": 2, "train__num_iterations": 3}
    pretend(monkeypatch, [1, 5], killed_after=2)
    with pytest.raises(KeyboardInterrupt):
        ppo.run(config_of(**changes), tmp_path)
    best = kept(tmp_path, 2)
    shutil.rmtree(tmp_path / "best")
    pretend(monkeypatch, [3])
    ppo.run(config_of(**changes), tmp_path)
    assert_bitwise_equal(load(tmp_path).params, best)


@pytest.mark.parametrize("keep_last", [1, 2])
@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("eval_every", [1, 2, 3, 4])
@pytest.mark.parametrize("last", [4, 7, 12])
def test_enough_best_models_are_kept_for_every_checkpoint(
    keep_last: int, every: int, eval_every: int, last: int
) -> None:
    """The worst case: each evaluation finds a new best, and the run is killed after the last."""
    config = config_of(
        train__keep_last=keep_last, train__checkpoint_every_steps=every, eval__every_steps=eval_every
    )
    evaluated = [step for step in range(last + 1) if step % eval_every == 0 or step == last]
    checkpoints = [step for step in range(1, last) if step % every == 0][-keep_last:]
    there = evaluated[-kept_best(config) :]
    assert all(max(step for step in evaluated if step <= own) in there for own in checkpoints)


def test_early_stopping_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [0.0, 2.0, 1.0, 1.5, 9.0])
    ppo.run(config_of(eval__every_steps=1, eval__patience=2), tmp_path)
    step, meta = read_meta(tmp_path)
    assert step == 3  # the best was 1, then two without a new best
    assert (meta["progress"]["best_step"], meta["progress"]["best_reward"]) == (1, 2.0)
    assert_bitwise_equal(load(tmp_path).params, kept(tmp_path, 1))


def test_a_score_that_is_no_number_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*_: Any) -> Any:
        def score(rollout: Any, batch: Any, stopwatch: Any) -> Scores:
            scores_B = np.full(len(batch.prompt_ids), np.nan, np.float32)
            return Scores(scores_B, {"safety": scores_B})

        return score

    monkeypatch.setattr(ppo, "make_score", poisoned)
    with pytest.raises(DoctorError, match="safety: 8 of 8 scores are not finite"):
        ppo.run(config_of(), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert issubclass(DoctorError, USER_ERRORS)


def test_a_guard_that_turns_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([(0.0, 0.0), (1.0, -3.0)])
    make_score = ppo.make_score

    def turning(*arguments: Any) -> Any:
        score = make_score(*arguments)

        def score_and_turn(rollout: Any, batch: Any, stopwatch: Any) -> Scores:
            scores = score(rollout, batch, stopwatch)
            if batch.prompt_ids[0] != HELDOUT[0].prompt_id:
                return scores
            reward, guard = next(values)
            full = np.ones(len(batch.prompt_ids), np.float32)
            return Scores(reward * full, {**scores.by_model, "guard": guard * full})

        return score_and_turn

    monkeypatch.setattr(ppo, "make_score", turning)
    with pytest.raises(DoctorError, match="the policy exploits the reward models"):
        ppo.run(config_of(eval__guard_drop=2.0, eval__every_steps=1), tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"init_from": ""}, ConfigError, "config.init_from is empty"),
        ({"helpfulness_rm": ""}, ConfigError, "config.helpfulness_rm is empty"),
        (
            {"safety_rm": ""},
            ConfigError,
            "6 of 10 prompts are tagged is_safety, and config.safety_rm, .* is empty",
        ),
        ({"ppo.mini_batch_size": 3}, ConfigError, "batch_size = 8 is not divisible by"),
        ({"ppo.kl_estimator": "k3"}, ConfigError, "vanishes at the reference"),
        ({"ppo.kl_coef": 0.0}, ConfigError, "kl_coef = 0.0 must be positive"),
        ({"ppo.response_length": 4000}, ConfigError, "is beyond the context"),
        ({"ppo.prompt_length": 2}, PromptError, r"prompt p0 has \d+ tokens, ppo.prompt_length is 2"),
        ({"value.init_from": "nothing"}, ConfigError, "'reward_model', 'policy'"),
        ({"train.num_iterations": 0}, ConfigError, "num_iterations = 0 must be positive"),
    ],
)
def test_mistakes_are_found_before_work_starts(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        ppo.run(config_of(**changes), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_prompts_are_refused_before_parameters_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: str, *, with_params: bool = True, **changes: Any) -> Any:
        assert not with_params
        return load(path, with_params=False, **changes)

    monkeypatch.setattr(ppo, "load", opened)
    with pytest.raises(PromptError, match="ppo.prompt_length is 2"):
        ppo.run(config_of(**{"ppo.prompt_length": 2}), tmp_path)


def test_a_reward_model_of_the_other_kind_and_an_empty_prompt_file_are_refused(tmp_path: Path) -> None:
    wrong = str(saved_reward_model("helpfulness"))
    with pytest.raises(ConfigError, match="is a helpfulness reward model; name one trained for safety"):
        ppo.run(config_of(safety_rm=wrong), tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows in "):
        ppo.run(config_of(prompts=str(tmp_path / "empty.jsonl")), tmp_path)


def test_a_workdir_is_not_continued_with_other_prompts(tmp_path: Path) -> None:
    prompts = prompts_file(TRAIN, "ppo_changing")
    config = config_of(prompts=prompts, train__num_iterations=1)
    ppo.run(config, tmp_path)
    (tmp_path / "DONE").unlink()
    prompts_file(TRAIN[:5], "ppo_changing")
    with pytest.raises(ConfigError, match="prompts: "):
        ppo.run(config, tmp_path)


def test_a_value_model_from_the_policy_starts_at_zero(tmp_path: Path) -> None:
    ppo.run(config_of(value__init_from="policy", train__num_iterations=1), tmp_path)
    line = next(line for line in read_metrics(tmp_path) if "ppo/score" in line)
    assert line["ppo/explained_variance"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("size", "beta"), [("7b", 0.01), ("13b", 0.01), ("34b", 0.005), ("70b", 0.005)])
def test_numbers_of_the_paper(size: str, beta: float) -> None:
    """Section 3.2.3."""
    config = configs.get_config(size)
    assert config.is_locked
    found = build(PPOConfig, config.ppo, name="ppo")
    assert (found.kl_coef, found.batch_size, found.mini_batch_size, found.num_updates) == (beta, 512, 64, 8)
    assert (found.clip_range, found.safety_threshold, found.whitening) == (0.2, 0.15, "shift_and_scale")
    assert (found.discount, found.gae_lambda, found.value_coef, found.temperature) == (1.0, 0.95, 0.1, 1.0)
    optimizer = build(OptimizerConfig, config.optimizer, name="optimizer")
    assert dataclasses.asdict(optimizer) == {
        "learning_rate": 1e-6, "schedule": "constant", "warmup_steps": 0, "warmup_fraction": 0.0,
        "final_fraction": 1.0, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-5, "weight_decay": 0.1,
        "grad_clip_norm": 1.0,
    }  # fmt: skip
    assert 200 <= config.train.num_iterations <= 400
    assert config.value.init_from == "reward_model"


def test_evaluations_use_their_own_seeds_and_leave_those_of_training_alone() -> None:
    with_many = without_times(finished())
    workdir = runs.scratch() / "ppo_rarely_evaluated"
    ppo.run(config_of(eval__every_steps=6, train__num_iterations=3), workdir)
    trained = [line for line in without_times(workdir) if "ppo/score" in line]
    assert trained == [line for line in with_many if "ppo/score" in line][:3]


def test_evaluations_ask_the_same_with_the_same_seeds_and_count_each_prompt_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sample(self: Learner, params: Any, batch: Any, *rest: Any) -> Any:
        sampled = LEARNER_SAMPLE(self, params, batch, *rest)
        if batch.prompt_ids[0] != HELDOUT[0].prompt_id:
            return sampled
        asked.append((*batch.prompt_ids, *batch.seeds))
        reward_B = np.arange(len(batch.prompt_ids), dtype=np.float32)  # 0, 1, 2; others fill the batch
        return sampled._replace(scores=sampled.scores._replace(combined_B=reward_B))

    monkeypatch.setattr(Learner, "sample", sample)
    ppo.run(config_of(train__num_iterations=1, eval__every_steps=1), tmp_path)
    assert [line["eval/reward"] for line in read_metrics(tmp_path) if "eval/reward" in line] == [1.0, 1.0]
    assert len(asked) == 2
    assert len(set(asked)) == 1
