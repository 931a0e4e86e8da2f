import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import rejection_sampling as configs
from experiments import rejection_sampling, sft
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import encode_prompt
from llama2_jax.data.prompts import Prompt, write_prompts
from llama2_jax.data.records import DataError
from llama2_jax.rlhf import archive
from llama2_jax.rlhf.archive import Sample, read_archives
from llama2_jax.rlhf.reward_checkpoint import load_reward_model
from llama2_jax.rlhf.reward_model import score_rows
from tests.experiments import runs
from tests.rlhf.small_policy import prompt, saved_policy, saved_reward_model, stacked_policy

PROMPTS = [prompt(number, is_safety=number % 2 == 0) for number in range(6)]


def prompts_file(prompts: list[Prompt], name: str) -> Path:
    path = runs.scratch() / f"{name}.jsonl"
    write_prompts(path, prompts)
    return path


def config_of(**changes: Any) -> ConfigDict:
    defaults = {
        "init_from": str(saved_policy()),
        "helpfulness_rm": str(saved_reward_model("helpfulness")),
        "safety_rm": str(saved_reward_model("safety", 1)),
        "prompts": str(prompts_file(PROMPTS, "six_prompts")),
        "mesh.preset": "single",
        "samples_per_prompt": 4,
        "sampling.max_new_tokens": 8,
        "batch_size": 8,
        "search.num_prompts": 2,
        "search.samples_per_prompt": 4,
        "reward.batch_size": 8,
        "pick.unfinished": "keep",
    }
    config = configs.get_config("tiny")
    return runs.changed(
        config, defaults | {name.replace("__", "."): value for name, value in changes.items()}
    )


@functools.cache
def first_round() -> Path:
    workdir = runs.scratch() / "rejection_sampling_1"
    rejection_sampling.run(config_of(search__temperatures=(0.7, 1.3)), workdir)
    return workdir


@functools.cache
def second_round() -> Path:
    """Of a newer policy, with a newer helpfulness reward model, and partly other prompts."""
    workdir = runs.scratch() / "rejection_sampling_2"
    config = config_of(
        round=2,
        init_from=str(saved_policy(1)),
        helpfulness_rm=str(saved_reward_model("helpfulness", 2)),
        archives=(str(first_round() / "archive.jsonl"),),
        prompts=str(prompts_file([*PROMPTS[4:], prompt(6)], "other_prompts")),
        sampling__temperature=1.1,
    )
    rejection_sampling.run(config, workdir)
    return workdir


def results(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text())


def reward_of(rows: list[list[int]], helpfulness: Path, safety: Path, tags: list[bool]) -> np.ndarray:
    """Combined raw scores, from the reward models alone."""
    models = [load_reward_model(path) for path in (helpfulness, safety)]
    h, s = (score_rows(model, rows, batch_size=1).astype(float) for model in models)
    return np.where(np.array(tags) | (1 / (1 + np.exp(-s)) < 0.15), s, h)


def test_run_leaves_every_artefact() -> None:
    workdir = first_round()
    for name in ("DONE", "config.json", "archive.jsonl", "dialogues.jsonl", "results.json", "report.md"):
        assert (workdir / name).exists(), name
    for picture in ("best_of_n.png", "temperatures.png"):
        assert (workdir / picture).stat().st_size > 10_000
        assert f"]({picture})" in (workdir / "report.md").read_text()


def test_search_draws_each_temperature_and_the_best_one_is_used() -> None:
    found, samples = results(first_round()), read_archives([first_round() / "archive.jsonl"])
    assert set(found["temperature_curves"]) == {"0.7", "1.3"}
    best = max(found["temperature_curves"].items(), key=lambda item: item[1][-1])[0]
    assert f"{found['temperature']:g}" == best
    (other,) = {0.7, 1.3} - {found["temperature"]}
    counts = {t: sum(sample.temperature == t for sample in samples) for t in (0.7, 1.3)}
    assert counts == {found["temperature"]: 6 * 4, other: 2 * 4}


def test_the_temperature_is_the_best_for_as_many_samples_as_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        rejection_sampling, "best_temperature", lambda curves, n: asked.append(n) or min(curves)
    )
    config = config_of(samples_per_prompt=2, search__temperatures=(0.7,), num_prompts=2)
    rejection_sampling.run(config, tmp_path)
    assert config.search.samples_per_prompt == 4
    assert asked == [2]


@pytest.mark.parametrize(
    ("skip", "count", "expected"),
    [(0, 0, PROMPTS), (0, 2, PROMPTS[:2]), (4, 0, PROMPTS[4:]), (1, 5, PROMPTS[1:])],
)
def test_prompts_are_a_part_of_the_file(skip: int, count: int, expected: list[Prompt]) -> None:
    config = config_of(skip_prompts=skip, num_prompts=count)
    assert rejection_sampling.choose_prompts(config) == expected


@pytest.mark.parametrize(("skip", "count"), [(6, 0), (0, 7), (4, 3)])
def test_too_few_prompts_are_refused(skip: int, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"has 6 prompts.*skip_prompts = {skip}.*num_prompts = {count}"):
        rejection_sampling.choose_prompts(config_of(skip_prompts=skip, num_prompts=count))


def test_dialogues_are_the_argmax_under_the_reward_models() -> None:
    samples = read_archives([first_round() / "archive.jsonl"])
    policy = stacked_policy()
    rows = [
        encode_prompt(s.prompt.messages, policy.require_tokenizer(), policy.template) + list(s.tokens)
        for s in samples
    ]
    tags = [s.prompt.is_safety for s in samples]
    rewards = reward_of(rows, saved_reward_model("helpfulness"), saved_reward_model("safety", 1), tags)
    np.testing.assert_allclose([s.scores["combined"] for s in samples], rewards, atol=1e-4)
    assert rewards.std() > 0.3
    dialogues = runs.read_lines(first_round() / "dialogues.jsonl")
    expected = {}
    for index in np.argsort(rewards):
        if samples[index].text.strip():
            expected[samples[index].prompt.prompt_id] = samples[index].text.strip()
    assert [d["messages"][-1]["content"] for d in dialogues] == [expected[p.prompt_id] for p in PROMPTS]
    assert [d["messages"][0]["content"] for d in dialogues] == [p.messages[0].content for p in PROMPTS]
    assert all(d["train_on"] == "last" for d in dialogues)


def test_space_around_a_picked_answer_is_not_learned() -> None:
    sample = read_archives([first_round() / "archive.jsonl"])[0]._replace(text=" It is so.\n")
    assert rejection_sampling.training_row(sample)["messages"][-1]["content"] == "It is so."


def test_later_round_rescores_the_earlier_one_and_picks_from_both() -> None:
    """Scores of two versions of the reward models cannot be compared."""
    samples = read_archives([second_round() / "archive.jsonl"])
    before = read_archives([first_round() / "archive.jsonl"])
    assert {s.round for s in samples} == {1, 2}
    assert len(samples) == len(before) + 3 * 4
    assert len({tuple(s.rm_versions.items()) for s in samples}) == 1
    old = {s.key: s for s in before}
    for s in samples:
        if s.round == 1:
            assert s.tokens == old[s.key].tokens
            assert s.scores["safety"] == old[s.key].scores["safety"]
            assert s.scores["helpfulness"] != old[s.key].scores["helpfulness"]
    dialogues = runs.read_lines(second_round() / "dialogues.jsonl")
    assert len(dialogues) == 7  # six prompts of the first round, one that is new
    found = results(second_round())
    assert sum(found["picks_by_round"].values()) == 7
    best: dict[str, archive.Sample] = {}
    for s in samples:  # by round
        if s.text.strip() and (
            s.prompt.prompt_id not in best
            or s.scores["combined"] > best[s.prompt.prompt_id].scores["combined"]
        ):
            best[s.prompt.prompt_id] = s
    rounds = [s.round for s in best.values()]
    assert found["picks_by_round"] == {str(r): rounds.count(r) for r in sorted(set(rounds))}
    assert (second_round() / "rounds.png").exists()


def test_last_round_alone(tmp_path: Path) -> None:
    config = config_of(
        round=2,
        init_from=str(saved_policy(1)),
        archives=(str(first_round() / "archive.jsonl"),),
        pick__rounds="last",
        prompts=str(prompts_file(PROMPTS[:2], "two_prompts")),
        search__temperatures=(),
        reward__threshold=0.99,
    )
    rejection_sampling.run(config, tmp_path / "run")
    found = results(tmp_path / "run")
    assert found["picks_by_round"] == {"2": 2}
    # round 1: 4 samples of 6 prompts and, of 2 of them, 4 more at the other temperature; round 2: 4 of 2
    assert found["samples"] == 40
    assert (found["candidates"], found["candidate_prompts"]) == (8, 2)
    assert found["fewest_and_most_of_a_prompt"] == [4, 4]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| of them to pick from | 8, for 2 prompts |" in report
    assert "| for one prompt, the best of which is picked | 4 to 4 |" in report
    drawn = [s for s in read_archives([tmp_path / "run" / "archive.jsonl"]) if s.round == 2]
    assert len(drawn) == 8
    assert all(s.scores["combined"] == s.scores["safety"] for s in drawn)  # none is as safe as 0.99
    config = runs.changed(config, {"pick.unfinished": "exclude", "sampling.max_new_tokens": 1})
    with pytest.raises(ConfigError, match=r"no dialogue can be made of 8 samples \({'unfinished': 8}\)"):
        rejection_sampling.run(config, tmp_path / "unfinished")  # and not of those of the round before


def test_the_score_by_round_is_that_of_the_temperature_it_was_sampled_at() -> None:
    """Where a search tried all prompts, counts do not tell which that was."""
    samples = [
        *drawn(1, 0.7, [0, 0, 0, 0]), *drawn(1, 1.0, [1, 0, 1, 0]), *drawn(1, 1.3, [9, 9]),  # on one prompt
        *drawn(2, 0.7, [0, 2, 0, 2]), *drawn(2, 1.0, [1, 1, 1, 1]),
    ]  # fmt: skip
    found = rejection_sampling.by_round(samples, {2: 1.0})
    one = 1 / (1 + np.exp(-1))
    assert [found[number]["max"] for number in (1, 2)] == pytest.approx([one, one])
    assert found[1]["median"] == pytest.approx((one + 0.5) / 2)


def test_the_score_by_round_is_of_prompts_for_helpfulness() -> None:
    """The second round is as good as the first: what it has more of is prompts for safety (Figure 26)."""
    first = drawn(1, 1.0, [0, 0]) + drawn(1, 1.0, [9, 9], is_safety=True)
    second = drawn(2, 1.0, [0, 0]) + drawn(2, 1.0, [9, 9, 9, 9], is_safety=True)
    found = rejection_sampling.by_round(first + second, {})
    assert found == {number: {"max": 0.5, "median": 0.5, "num_samples": 2} for number in (1, 2)}
    assert rejection_sampling.by_round(drawn(1, 1.0, [9, 9], is_safety=True), {}) == {}


def drawn(
    round: int, temperature: float, scores: Sequence[float], *, is_safety: bool = False
) -> list[Sample]:
    """Two samples to each prompt; for safety only their combined score is the one given."""
    prompts = [one for one in PROMPTS if one.is_safety == is_safety]
    return [
        Sample(prompts[i // 2], round, "m", temperature, i % 2, (), "", True, "",
               {"combined": score, "helpfulness": -score if is_safety else score}, {})
        for i, score in enumerate(scores)
    ]  # fmt: skip


def test_numbers_of_the_report() -> None:
    found = results(second_round())
    assert found["max_by_n"] == sorted(found["max_by_n"])
    assert found["max_by_n"][0] == pytest.approx(found["mean_reward"])
    assert found["median_by_n"][0] == pytest.approx(found["mean_reward"])
    drawn = [s for s in read_archives([second_round() / "archive.jsonl"]) if s.round == 2]
    rewards = 1 / (1 + np.exp([-s.scores["combined"] for s in drawn]))
    assert found["mean_reward"] == pytest.approx(rewards.mean())
    assert found["max_by_n"][-1] == pytest.approx(rewards.reshape(3, 4).max(axis=1).mean())
    assert found["kl_bound"] == pytest.approx(np.log(4) - 0.75)
    report = (second_round() / "report.md").read_text()
    assert f"| dialogues to train on | {found['dialogues']} |" in report
    assert f"{found['max_by_n'][-1]:.3f}" in report


def test_killed_run_continues_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BATCHES_PER_WRITE", 1)
    config = config_of(sampling__temperature=1.3)
    rejection_sampling.run(config, tmp_path / "whole")
    append, rows = archive.append_samples, []

    def dying(path: Path, samples: list) -> None:
        append(path, samples)
        rows.append(len(samples))
        if len(rows) in (2, 6):  # while drawing, then while scoring
            raise KeyboardInterrupt

    monkeypatch.setattr(archive, "append_samples", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            rejection_sampling.run(config, tmp_path / "killed")
        assert not (tmp_path / "killed" / "DONE").exists()
    rejection_sampling.run(config, tmp_path / "killed")
    assert sum(rows) == 24 * 2  # each sample drawn once and scored once
    for name in ("dialogues.jsonl", "results.json", "report.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_one_reward_model_is_enough_for_prompts_without_tags(tmp_path: Path) -> None:
    untagged = prompts_file([prompt(1), prompt(3)], "untagged_prompts")
    rejection_sampling.run(config_of(safety_rm="", prompts=str(untagged), seed=5), tmp_path / "run")
    rows = [row for row in runs.read_lines(tmp_path / "run" / "archive.jsonl") if row["scores"]]
    assert len(rows) == 8
    assert {row["seed"] for row in rows} == {5, 6, 7, 8}
    for row in rows:
        assert row["scores"] == dict.fromkeys(("helpfulness", "combined"), row["scores"]["helpfulness"])
        assert list(row["rm_versions"]) == ["helpfulness"]
    assert len(runs.read_lines(tmp_path / "run" / "dialogues.jsonl")) == 2
    archives = (str(first_round() / "archive.jsonl"),)  # prompts of earlier rounds are scored too
    earlier = {"round": 2, "prompts": str(untagged), "archives": archives}
    for name, changes in {"own": {}, "earlier": earlier}.items():
        with pytest.raises(
            ConfigError, match="prompts are tagged is_safety, and config.safety_rm, .* is empty"
        ):
            rejection_sampling.run(config_of(safety_rm="", **changes), tmp_path / name)


def test_done_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = (first_round() / "archive.jsonl").read_bytes()
    rejection_sampling.run(config_of(search__temperatures=(0.7, 1.3)), first_round())
    assert "is done" in capsys.readouterr().out
    assert (first_round() / "archive.jsonl").read_bytes() == before


def test_only_unfinished_answers_are_an_error_that_keeps_them(tmp_path: Path) -> None:
    config = config_of(pick__unfinished="exclude", sampling__max_new_tokens=1)
    with pytest.raises(ConfigError, match=r"no dialogue can be made of 24 samples \({'unfinished': 24}\)"):
        rejection_sampling.run(config, tmp_path)
    assert len(read_archives([tmp_path / "archive.jsonl"])) == 24


def test_small_model_learns_from_the_picks_of_another(tmp_path: Path) -> None:
    """RS-4: the same fine-tuning with another init_from."""
    dialogues = str(first_round() / "dialogues.jsonl")
    config = runs.sft_config(
        saved_policy(2),
        data__dialogues=dialogues,
        data__heldout="",
        data__epochs=1.0,
        eval__sample_prompts=(),
    )
    sft.run(config, tmp_path)
    assert (tmp_path / "DONE").exists()
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["train/loss"] == pytest.approx(
        np.log(runs.VOCABULARY), abs=0.5
    )  # it has learned nothing yet


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "config.init_from is empty"),
        ({"round": 0}, "config.round = 0 must be positive"),
        ({"samples_per_prompt": 0}, "config.samples_per_prompt = 0"),
        ({"pick__unfinished": "drop"}, "choose one of 'exclude', 'keep'"),
        (
            {"search__samples_per_prompt": 3, "search__temperatures": (0.7,)},
            r"search.samples_per_prompt = 3 is less than\s+config.samples_per_prompt = 4",
        ),
        ({"pick__rounds": "none"}, "choose one of 'all', 'last'"),
    ],
)
def test_bad_config_is_refused_before_anything_is_read(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rejection_sampling.run(config_of(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_empty_prompts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"no rows in .*empty\.jsonl;"):
        rejection_sampling.run(config_of(prompts=str(tmp_path / "empty.jsonl")), tmp_path / "run")


def test_reward_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    other = saved_reward_model("safety", 3, template="chatml")
    with pytest.raises(ConfigError, match="was trained with template 'chatml'"):
        rejection_sampling.run(config_of(safety_rm=str(other)), tmp_path)
    with pytest.raises(ConfigError, match="is a helpfulness reward model; name one trained for safety"):
        rejection_sampling.run(config_of(safety_rm=str(saved_reward_model("helpfulness"))), tmp_path)
    short = saved_reward_model("safety", max_context=16)
    with pytest.raises(ConfigError, match=r"scores up to 16 tokens; the longest prompt has \d+, and"):
        rejection_sampling.run(config_of(safety_rm=str(short)), tmp_path)
    assert not (tmp_path / "archive.jsonl").exists()


def test_id_of_another_prompt_is_refused(tmp_path: Path) -> None:
    path = prompts_file([prompt(1, "Something else?")], "clash")
    config = config_of(prompts=str(path), archives=(str(first_round() / "archive.jsonl"),))
    with pytest.raises(DataError, match="'p1' of config.prompts is another prompt in the archives"):
        rejection_sampling.run(config, tmp_path)


def test_samples_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        rejection_sampling.run(config_of(pick__unfinished="exclude", sampling__max_new_tokens=1), tmp_path)
    with pytest.raises(ConfigError, match=r"were drawn with sampling.max_new_tokens = 1, the config says 8"):
        rejection_sampling.run(config_of(), tmp_path)
