"""The whole recipe with every stage as short as it can be: what it leaves, and that it continues."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs.llama2_chat import SMOLLM2, WORLD, get_config
from experiments import llama2_chat
from experiments.stages import check_done_stage, stage_config
from llama2_jax import load
from llama2_jax.config import ConfigError, to_plain
from llama2_jax.data.chat import Message
from llama2_jax.data.preferences import TRACKS
from llama2_jax.data.prompts import read_prompts, write_prompts
from llama2_jax.data.records import DataError
from llama2_jax.interop.imported import FormatError
from llama2_jax.model.config import PAPER_SIZES
from tests.experiments import runs
from tests.notebooks.execution import numbers_after, run
from tools.prepare_demo_data import WorldSizes, prepare_world

STAGES = [
    "pretrain", "sft",
    "v1/preferences", "v1/helpfulness_rm", "v1/safety_rm", "v1/rejection_sampling", "v1/sft",
    "v2/preferences", "v2/helpfulness_rm", "v2/safety_rm", "v2/gatt", "v2/context_distillation",
    "v2/rejection_sampling", "v2/sft", "v2/guard_rm", "v2/ppo",
    "evaluation", "gatt_evaluation",
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """The smoke variant on the simulated world alone: nothing is fetched."""
    world = tmp_path_factory.mktemp("world")
    sizes = WorldSizes(600, 600, 300, 24, 60, 80, helpful_dialogues=1, safe_dialogues=1, scaling_prompts=1)
    prepare_world(world, sizes)
    config = get_config("smoke").unlock()
    _move(config, WORLD, str(world))
    del config.pretrain.data.sources["kjv"], config.pretrain.data.sources["chitchat"]
    config.pretrain.data.heldout = f"{world}/documents_heldout.jsonl"
    return config.lock()


@pytest.fixture(scope="module")
def workdir(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("recipe")
    llama2_chat.run(config, workdir)
    return workdir


def _move(config: ConfigDict, old: str, new: str) -> None:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _move(value, old, new)
        elif isinstance(value, str):
            config[key] = value.replace(old, new)


def finished(workdir: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (workdir / "stages.jsonl").read_text().splitlines()]


def test_every_stage_runs_once_in_the_order_of_figure_4(workdir: Path) -> None:
    assert finished(workdir) == STAGES
    assert all((workdir / stage / "DONE").exists() for stage in STAGES)


def test_a_workdir_with_a_comma_is_refused_at_the_start(tmp_path: Path, config: ConfigDict) -> None:
    with pytest.raises(ConfigError, match="rounds=5,ppo has a comma in it"):
        llama2_chat.run(config, tmp_path / "rounds=5,ppo")
    assert not (tmp_path / "rounds=5,ppo").exists()


def test_files_that_a_late_stage_wants_are_missed_before_the_first(
    tmp_path: Path, config: ConfigDict
) -> None:
    for name in ("gatt.prompts", "ppo.heldout_prompts"):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({name: ""})
        with pytest.raises(ConfigError, match=f"config.{name} is empty"):
            llama2_chat.run(changed, tmp_path / "run")
    changed.ppo.heldout_prompts = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match="nowhere.jsonl is no file"):
        llama2_chat.run(changed, tmp_path / "run")
    for name, reason in (
        ("sft.data.dialogues", "config.sft.data.dialogues: no file matches .*nowhere"),
        ("safety_rm.data.heldout", "config.safety_rm.data.heldout: no file matches .*nowhere"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({name: str(tmp_path / "nowhere*.jsonl")})
        with pytest.raises(ConfigError, match=reason):
            llama2_chat.run(changed, tmp_path / "run")
    prompts = read_prompts(config.rejection_sampling.prompts)
    few = {"new_prompts": True, "rejection_sampling.num_prompts": len(prompts), "rounds": 2}
    uncategorised = tmp_path / "prompts.jsonl"
    write_prompts(uncategorised, [prompts[0]._replace(is_safety=True, risk_category="")])
    for changes, reason in (
        (few, f"has {len(prompts)} prompts, too few for config.skip_prompts = {len(prompts)}"),
        (
            {"context_distillation.prompts": str(uncategorised), "distillation_round": 1},
            "risk_category of prompt '.*' is ''",
        ),
    ):
        late = config.copy_and_resolve_references()
        late.update_from_flattened_dict(changes)
        with pytest.raises(ConfigError, match=reason):
            llama2_chat.run(late, tmp_path / "run")
    bad_prompts = runs.write_lines(tmp_path / "bad.jsonl", [{"prompt_id": "1"}])
    late = config.copy_and_resolve_references()
    late.ppo.heldout_prompts = str(bad_prompts)
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1: "):
        llama2_chat.run(late, tmp_path / "run")
    late.ppo.heldout_prompts = config.ppo.heldout_prompts
    late.ppo.eval.every_steps = 0
    with pytest.raises(ConfigError, match=r"config\.ppo, for v2/ppo: eval\.every_steps = 0 must be positive"):
        llama2_chat.run(late, tmp_path / "run")
    changed.sft.data.dialogues = ""
    with pytest.raises(ConfigError, match="config.sft.data.dialogues is empty"):
        llama2_chat.run(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


LATE_PROMPTS = {
    "annotate.prompts": "config.annotate, for v1/preferences",
    "rejection_sampling.prompts": "config.rejection_sampling, for v1/rejection_sampling",
    "context_distillation.prompts": "config.context_distillation, for v2/context_distillation",
    "ppo.heldout_prompts": "config.ppo, for v2/ppo",
    "evaluate_chat.prompts": "config.evaluate_chat, for evaluation",
}


@pytest.mark.parametrize("name", LATE_PROMPTS)
def test_a_prompt_that_a_late_stage_would_refuse_is_refused_at_the_start(
    name: str, tmp_path: Path, config: ConfigDict, workdir: Path
) -> None:
    """Where the tokenizer is known by then."""
    section, field = name.split(".")
    prompts = read_prompts(config[section][field])
    at = next(number for number, prompt in enumerate(prompts) if prompt.is_safety)
    before = (Message("user", "x" * 2000), Message("assistant", "y"))
    prompts[at] = prompts[at]._replace(messages=(*before, *prompts[at].messages))
    write_prompts(tmp_path / "prompts.jsonl", [prompts.pop(at), *prompts])
    changes = {"chat_from": str(workdir / "sft"), name: str(tmp_path / "prompts.jsonl")}
    late = runs.changed(config.copy_and_resolve_references(), changes)
    with pytest.raises(ConfigError, match=rf"^{LATE_PROMPTS[name]}: prompt .* has \d+ tokens"):
        llama2_chat.run(late, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_messages_too_long_for_ghost_attention_are_refused_at_the_start(
    tmp_path: Path, config: ConfigDict, workdir: Path
) -> None:
    for section, stage in (("gatt", "v2/gatt"), ("evaluate_gatt", "gatt_evaluation")):
        changes = {"chat_from": str(workdir / "sft"), f"{section}.data.max_turn_tokens": 1}
        late = runs.changed(config.copy_and_resolve_references(), changes)
        with pytest.raises(ConfigError, match=rf"^config\.{section}, for {stage}: .*max_turn_tokens = 1 "):
            llama2_chat.run(late, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_are_refused_as_soon_as_there_is_a_tokenizer(
    tmp_path: Path, config: ConfigDict, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = r"config\.ppo, for v2/ppo: prompt .* has \d+ tokens, ppo\.prompt_length is 2"
    short = runs.changed(config.copy_and_resolve_references(), {"ppo.ppo.prompt_length": 2})
    trained = str(workdir / "pretrain" / "tokenizer")
    given = {"pretrain.data.tokenizer": trained, "pretrain.data.tokenizer_dialogues": ""}
    with pytest.raises(ConfigError, match=reason):
        llama2_chat.run(runs.changed(short.copy_and_resolve_references(), given), tmp_path / "given")
    assert not (tmp_path / "given").exists()

    def pretrained(config: ConfigDict, path: Path) -> None:
        shutil.copytree(workdir / "pretrain", path)

    monkeypatch.setattr(llama2_chat.pretrain, "run", pretrained)
    for _ in ("after pretraining", "at the next start"):
        with pytest.raises(ConfigError, match=reason):
            llama2_chat.run(short, tmp_path / "run")
        assert finished(tmp_path / "run") == ["pretrain"]
        assert not (tmp_path / "run" / "sft").exists()


def test_a_base_model_that_is_not_there_is_missed_at_the_start(tmp_path: Path, config: ConfigDict) -> None:
    models = {"chat_from": "chat", "init_from": str(tmp_path / "nowhere"), "tune_from": "base"}
    with pytest.raises(FormatError, match="nowhere does not exist"):
        llama2_chat.run(runs.changed(config.copy_and_resolve_references(), models), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_of_annotation_follow_one_another(
    tmp_path: Path, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def stage(self: Any, program: Any, section: str, folder: str, **changes: Any) -> str:
        if section == "annotate":
            collection = config.annotate.collection.copy_and_resolve_references()
            first = changes["collection.first_batch"]
            asked.append(list(range(first, first + collection.num_batches)))
        return folder

    monkeypatch.setattr(llama2_chat.Recipe, "stage", stage)
    config = config.copy_and_resolve_references()
    config.annotate.collection.num_batches = 2
    recipe = llama2_chat.Recipe(config, tmp_path)
    for number in (1, 2, 3):
        recipe.reward_models(number, {"SFT": "sft"})
    assert asked == [[1, 2], [3, 4], [5, 6]]


def test_the_first_round_compares_more(config: ConfigDict, workdir: Path) -> None:
    asked = [
        len((workdir / f"v{number}/preferences/pairs.jsonl").read_text().splitlines()) for number in (1, 2)
    ]
    assert 120 < asked[0] <= config.annotate.collection.prompts_in_first
    assert asked[1] <= config.annotate.collection.prompts_per_batch


def test_later_rounds_learn_from_all_preferences_and_samples_so_far(workdir: Path) -> None:
    second = json.loads((workdir / "v2/helpfulness_rm/config.json").read_text())
    assert [Path(path).parts[-3] for path in second["data"]["preferences"].split(",")] == ["v1", "v2"]
    rounds = {
        json.loads(line)["round"]
        for line in (workdir / "v2/rejection_sampling/archive.jsonl").read_text().splitlines()
    }
    assert rounds == {1, 2}
    models = {
        model
        for line in (workdir / "v2/preferences/preferences_train.jsonl").read_text().splitlines()
        for row in [json.loads(line)]
        for model in (row["chosen_model"], row["rejected_model"])
    }
    assert models == {"V1", "SFT"}  # PREF-5: the new and the previous model
    trained = json.loads((workdir / "v2/sft/config.json").read_text())["data"]["dialogues"]
    assert "rejection_sampling" in trained
    assert "gatt" in trained


def test_each_round_samples_for_prompts_of_its_own_and_learns_from_all(workdir: Path) -> None:
    folder = workdir / "v2/rejection_sampling"
    asked: dict[int, set[str]] = {1: set(), 2: set()}
    for line in (folder / "archive.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked[row["round"]].add(row["prompt_id"])
    assert [len(ids) for ids in asked.values()] == [32, 32]
    assert not asked[1] & asked[2]
    assert set(json.loads((folder / "results.json").read_text())["picks_by_round"]) == {"1", "2"}


def test_a_model_of_other_data_watches_ppo(workdir: Path) -> None:
    guard = json.loads((workdir / "v2/guard_rm/config.json").read_text())
    assert guard["kind"] == "guard"
    assert guard["data"]["preferences"] == ""  # none of those that the reward is made from (RM-18)
    assert json.loads((workdir / "v2/ppo/config.json").read_text())["guard_rm"] == str(
        workdir / "v2/guard_rm"
    )
    assert "eval/guard" in (workdir / "v2/ppo/metrics.jsonl").read_text()


def test_report_has_a_verdict_for_every_claim(workdir: Path) -> None:
    verdicts = json.loads((workdir / "verdicts.json").read_text())
    assert len(verdicts) == 10
    assert all(verdict["measured"] for verdict in verdicts)
    assert any(verdict["holds"] is not None for verdict in verdicts)
    report = (workdir / "report.md").read_text()
    pictures = [line.split("](")[1].rstrip(")") for line in report.splitlines() if line.startswith("![")]
    assert len(pictures) > 5
    assert all((workdir / picture).exists() for picture in pictures)
    assert report.index("## The versions") < report.index("## Verdicts")


def test_the_last_version_loads_as_a_chat_model(workdir: Path) -> None:
    assert load(workdir / "v2/ppo").require_tokenizer().vocab_size == 1024


def test_the_notebook_of_alignment_reads_any_run(workdir: Path) -> None:
    printed = run("alignment", {"runs/demo": workdir})
    assert "versions: SFT V1 V2 (no PPO) V2 - last round: v2" in printed
    assert numbers_after("largest difference of an advantage", printed) == [pytest.approx(0, abs=1e-5)]


def test_a_stopped_recipe_continues_with_the_stage_that_is_missing(
    config: ConfigDict, workdir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "recipe"
    shutil.copytree(workdir, copy)
    (copy / "DONE").unlink()
    shutil.rmtree(copy / "evaluation")
    for path in copy.rglob("config.json"):  # the paths of the stages name the workdir
        path.write_text(path.read_text().replace(str(workdir), str(copy)))
    llama2_chat.run(config, copy)
    assert finished(copy) == [*STAGES, "evaluation"]


def test_stages_that_changed_or_were_made_again_leave_nothing_stale(
    config: ConfigDict, workdir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "recipe"
    shutil.copytree(workdir, copy)
    for path in (copy / "DONE", copy / "v2" / "gatt" / "DONE", copy / "evaluation" / "DONE"):
        path.unlink()
    changed = ConfigDict(config.to_dict()).unlock()
    changed.pretrain.optimizer.learning_rate = 1.0
    changed.accept_changed_config = False
    (copy / "config.json").unlink()  # of the recipe itself: only the stages are asked
    with pytest.raises(ConfigError, match=r"(?s)pretrain is done, with another.*learning_rate: .* -> 1\.0"):
        llama2_chat.run(changed.lock(), copy)
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError) as caught:
        llama2_chat.run(config, copy)
    stale = "v2/context_distillation, v2/rejection_sampling, v2/sft, v2/guard_rm, v2/ppo, gatt_evaluation"
    assert "v2/gatt was made after v2/context_distillation, which comes after it" in str(caught.value)
    assert f"delete {stale} in {copy}" in str(caught.value)


def test_a_stage_that_is_new_asks_for_those_after_it_alone(config: ConfigDict, tmp_path: Path) -> None:
    ended = ["v1/sft", "evaluation", "v2/sft", "v2/ppo"]
    (tmp_path / "stages.jsonl").write_text("".join(json.dumps({"stage": one}) + "\n" for one in ended))
    stage = stage_config(config, "evaluate_chat")
    for folder in ended:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "DONE").touch()
        (tmp_path / folder / "config.json").write_text(json.dumps(to_plain(stage)))
    earlier = ["v1/sft", "v2/sft", "v2/ppo"]
    with pytest.raises(ConfigError, match=r"v2/ppo was made after evaluation, .*; delete evaluation in "):
        check_done_stage(tmp_path, "evaluation", stage, filled_in=(), earlier=earlier)
    check_done_stage(tmp_path, "v2/ppo", stage, filled_in=(), earlier=earlier[:2])
    check_done_stage(tmp_path, "v1/sft", stage, filled_in=(), earlier=())


class Planned(llama2_chat.Recipe):
    """Stages that are not run; each leaves the config that it would have had."""

    def __init__(self, config: ConfigDict) -> None:
        super().__init__(config, Path("run"))
        self.configs: dict[str, ConfigDict] = {}

    def stage(self, program: Any, section: str, folder: str, **changes: Any) -> str:
        self.configs[folder] = stage_config(self.config, section, **changes)
        return f"run/{folder}"

    def keep_dialogues(self, folder: str) -> None:
        """Without a look into the file."""
        self.extra_dialogues.append(f"{folder}/dialogues.jsonl")


def test_the_variant_of_a_real_chat_model_trains_nothing_before_it_and_aligns_it_once() -> None:
    recipe = Planned(get_config("smollm2"))
    assert recipe.run() == {"SFT": SMOLLM2, "V1 (no PPO)": "run/v1/sft", "V1": "run/v1/ppo"}
    assert list(recipe.configs) == [
        "v1/preferences", "v1/helpfulness_rm", "v1/safety_rm", "v1/rejection_sampling", "v1/sft", "v1/ppo",
        "evaluation",
    ]  # fmt: skip
    for folder in ("v1/helpfulness_rm", "v1/safety_rm", "v1/sft"):
        assert recipe.configs[folder].init_from == SMOLLM2
        assert recipe.configs[folder].template == ""  # of the checkpoint: smollm2
    assert recipe.configs["v1/rejection_sampling"].init_from == SMOLLM2
    assert recipe.configs["v1/ppo"].init_from == "run/v1/sft"


def test_one_seed_is_that_of_every_stage() -> None:
    plain, other = get_config("tiny").to_dict(), get_config("tiny,seed=3").to_dict()
    assert _seeds(plain) == dict.fromkeys(_seeds(other), 0)
    assert set(_seeds(other).values()) == {3}
    assert {path.split(".")[0] for path in _seeds(other)} > {
        "pretrain",
        "sft",
        "annotate",
        "safety_rm",
        "ppo",
    }


def _seeds(config: dict[str, Any], path: str = "") -> dict[str, int]:
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _seeds(value, f"{path}{name}.")
        elif name == "seed":
            found[path + name] = value
    return found


def test_a_round_adds_its_pairs_to_those_of_the_config() -> None:
    recipe = Planned(get_config("smollm2"))
    recipe.run()
    helpfulness, safety = (recipe.configs[f"v1/{track}_rm"].data for track in TRACKS)
    assert (helpfulness.public, safety.public) == ("", "runs/smollm2/data/safety_train.jsonl")
    assert safety.preferences == helpfulness.preferences == "run/v1/preferences/preferences_train.jsonl"
    assert helpfulness.heldout == "run/v1/preferences/preferences_heldout.jsonl"
    assert safety.heldout == f"runs/smollm2/data/safety_heldout.jsonl,{helpfulness.heldout}"


@pytest.fixture(scope="module")
def planned() -> tuple[Planned, dict[str, str]]:
    """Four rounds, the last two with PPO, and the versions of the chat model."""
    changes = {
        "rounds": 4, "ppo_from_round": 3, "gatt_after_round": 2, "distillation_round": 4,
        "last_bag_until_round": 2, "reference": "V1",
    }  # fmt: skip
    recipe = Planned(runs.changed(get_config("tiny"), changes))
    return recipe, recipe.run()


NEWEST = {1: "run/sft", 2: "run/v1/sft", 3: "run/v2/sft", 4: "run/v3/ppo"}
"""Of the versions, when a round begins."""


def test_a_round_with_ppo_gives_two_versions(planned: tuple[Planned, dict[str, str]]) -> None:
    assert planned[1] == {
        "SFT": "run/sft", "V1": "run/v1/sft", "V2": "run/v2/sft",
        "V3 (no PPO)": "run/v3/sft", "V3": "run/v3/ppo", "V4 (no PPO)": "run/v4/sft", "V4": "run/v4/ppo",
    }  # fmt: skip


@pytest.mark.parametrize("number", NEWEST)
def test_a_round_starts_from_the_newest_version(planned: tuple[Planned, dict[str, str]], number: int) -> None:
    configs = planned[0].configs
    stages = ["helpfulness_rm", "safety_rm", "rejection_sampling"]
    stages += {3: ["gatt", "guard_rm"], 4: ["context_distillation", "guard_rm"]}.get(number, [])
    for stage in stages:
        assert configs[f"v{number}/{stage}"].init_from == NEWEST[number], stage
    compared = configs[f"v{number}/preferences"]  # PREF-5: the new and the previous version, both with PPO
    assert (compared.new.path, compared.previous.path) == (NEWEST[number], NEWEST.get(number - 1, ""))


@pytest.mark.parametrize("number", NEWEST)
def test_a_round_has_its_own_reward_models_and_all_data_so_far(
    planned: tuple[Planned, dict[str, str]], number: int
) -> None:
    configs, folder = planned[0].configs, f"run/v{number}"
    judges = (f"{folder}/helpfulness_rm", f"{folder}/safety_rm")
    sampling = configs[f"v{number}/rejection_sampling"]
    assert (sampling.helpfulness_rm, sampling.safety_rm) == judges
    assert sampling.round == number
    assert sampling.pick.rounds == ("last" if number <= 2 else "all")  # RS-5
    before = (f"run/v{number - 1}/rejection_sampling/archive.jsonl",)
    assert sampling.archives == (before if number > 1 else ())
    for track in TRACKS:
        data = configs[f"v{number}/{track}_rm"].data
        for field, part in (("preferences", "train"), ("heldout", "heldout")):
            files = [f"run/v{n}/preferences/preferences_{part}.jsonl" for n in range(1, number + 1)]
            assert data[field].split(",") == files
    learned = [f"{folder}/rejection_sampling/dialogues.jsonl"]
    learned += ["run/v3/gatt/dialogues.jsonl"] * (number >= 3)
    learned += ["run/v4/context_distillation/dialogues.jsonl"] * (number >= 4)
    assert configs[f"v{number}/sft"].data.dialogues.split(",") == learned
    if number >= 3:
        policy = configs[f"v{number}/ppo"]
        assert (policy.helpfulness_rm, policy.safety_rm) == judges
        assert (policy.init_from, policy.guard_rm) == (f"{folder}/sft", f"{folder}/guard_rm")
    if number == 4:
        assert configs["v4/context_distillation"].safety_rm == judges[1]


def test_the_last_reward_models_judge_all_versions(planned: tuple[Planned, dict[str, str]]) -> None:
    configs, versions = planned[0].configs, planned[1]
    found = configs["evaluation"]
    assert found.versions == tuple(f"{name}={path}" for name, path in versions.items())
    assert (found.helpfulness_rm, found.safety_rm) == ("run/v4/helpfulness_rm", "run/v4/safety_rm")
    assert found.reference == "V1"
    gatt = configs["gatt_evaluation"].models  # the versions around the round that learned it
    assert (gatt.without, gatt.with_gatt) == ("run/v2/sft", "run/v3/ppo")


@pytest.mark.parametrize(
    ("tune_from", "starts"),
    [("base", ["base"] * 3), ("first", ["chat"] * 3), ("previous", ["chat", "run/v1/sft", "run/v2/sft"])],
)
def test_fine_tuning_of_a_round_starts_where_the_config_says(tune_from: str, starts: list[str]) -> None:
    changes = {"init_from": "base", "chat_from": "chat", "tune_from": tune_from}
    changes |= {"rounds": 3, "ppo_from_round": 9, "gatt_after_round": 0, "distillation_round": 0}
    recipe = Planned(runs.changed(get_config("tiny"), changes))
    recipe.run()
    assert [recipe.configs[f"v{number}/sft"].init_from for number in (1, 2, 3)] == starts


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_paper_sizes_hold_the_numbers_of_the_paper(size: str) -> None:
    config = get_config(size)
    assert (config.rounds, config.ppo_from_round, config.last_bag_until_round) == (5, 5, 3)
    assert config.tune_from == "base"
    assert config.annotate.annotator == "file"
    assert config.ppo.ppo.kl_coef == (0.01 if size in ("7b", "13b") else 0.005)
    assert (config.ppo.ppo.batch_size, config.ppo.ppo.mini_batch_size) == (512, 64)
    assert config.helpfulness_rm.optimizer.learning_rate == (5e-6 if size == "70b" else 1e-5)
    assert config.helpfulness_rm.data.batch_size == 512
    assert config.sft.optimizer.learning_rate == 2e-5


def test_bad_choices_are_named_before_anything_runs(tmp_path: Path) -> None:
    _refused(tmp_path, {"rounds": 0}, "config.rounds = 0 must be positive")
    _refused(tmp_path, {"tune_from": "scratch"}, "config.tune_from is 'scratch'")
    chat = {"chat_from": "chat", "init_from": "", "tune_from": "base"}
    _refused(tmp_path, chat, "the base of config.chat_from = chat is not named; name it in config.init_from")
    _refused(tmp_path, {"rejection_sampling": {"num_prompts": 0}}, "config.new_prompts asks for prompts")


def _refused(workdir: Path, changes: dict[str, Any], message: str) -> None:
    config = get_config("smoke").unlock()
    config.update(changes)
    with pytest.raises(ConfigError, match=message):
        llama2_chat.run(config.lock(), workdir)
    assert not list(workdir.iterdir())
