"""From the command line to ``run(config, workdir)``, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.evaluate_chat import get_config as evaluation_config
from configs.llama2_chat import get_config as recipe_config
from configs.pretrain import get_config
from experiments.stages import stage_config
from llama2_jax.config import ConfigError, keep_config, to_plain
from llama2_jax.files import hold, release
from llama2_jax.train.checkpoint import write_params
from llama2_jax.workdir import has_checkpoints, is_done, mark_done, open_workdir

REPOSITORY = Path(__file__).parents[1]


def pretrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.pretrain", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_users_mistake_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    config = "--config=configs/pretrain.py:tiny"
    result = pretrain(config, f"--workdir={tmp_path}", "--config.data.sequence_length=999")
    assert result.returncode == 2
    assert result.stderr.startswith("error: data.sequence_length = 999 is beyond the model's context 128")
    assert "Traceback" not in result.stderr


def test_a_run_whose_outputs_are_closed_trains(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "experiments.pretrain", "--config=configs/pretrain.py:tiny",
        f"--workdir={tmp_path}", "--config.train.num_steps=2", "--config.mesh.preset=single",
    ]  # fmt: skip
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.run(closed, cwd=REPOSITORY, env=environment, timeout=300, check=False).returncode == 0
    assert is_done(tmp_path)


def test_an_address_of_an_object_store_is_not_taken_for_a_folder() -> None:
    result = pretrain("--config=configs/pretrain.py:tiny", "--workdir=gs://bucket/run")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --workdir=gs://bucket/run: only paths of a file system")
    assert not (REPOSITORY / "gs:").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.optimizer.learning_rat=1",
            "error: --config.optimizer.learning_rat: the config has no field 'learning_rat'; did you mean "
            "'learning_rate'?\n",
        ),
        ("--config.optimiser.learning_rate=1", "no field 'optimiser'; did you mean 'optimizer'?\n"),
        ("--config.lr=1", "error: --config.lr: the config has no field 'lr'\n"),
        ("--config.train.num_steps=many", "error: flag --config.train.num_steps=many: invalid literal"),
        ("--config.train[9]=1", "error: --config.train[9]: the config has no field '9'\n"),
        ("--config.data.shares[9]=1", "error: --config.data.shares[9]: the config has no field 'shares'\n"),
        ("--config.train.num_steps.foo=3", "error: one of --config.train.num_steps.foo: "),
        ("--config.train.=3", "error: one of --config.train.: "),
        ("--config=configs/pretrain.py:8b", "error: config variant is '8b'; choose one of '7b', "),
        ("--workdirs=x", "error: Unknown command line flag 'workdirs'. Did you mean: workdir ?"),
    ],
)
def test_mistyped_flag_is_refused(tmp_path: Path, override: str, message: str) -> None:
    result = pretrain("--config=configs/pretrain.py:tiny", f"--workdir={tmp_path / 'run'}", override)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_only_the_mistyped_override_is_named_and_mistakes_of_the_file_are_not_hidden(tmp_path: Path) -> None:
    result = pretrain(
        "--config=configs/pretrain.py:tiny", f"--workdir={tmp_path / 'run'}", "--config.train.seed=1",
        "--config.optimizer.lr=1",
    )  # fmt: skip
    assert "error: --config.optimizer.lr: the config has no field 'lr'" in result.stderr
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return None.lower()\n")
    result = pretrain(f"--config={broken}", f"--workdir={tmp_path / 'run'}", "--config.train.seed=1")
    assert "in get_config" in result.stderr
    broken.write_text("WIDTH = {}['width']\n")
    result = pretrain(f"--config={broken}", f"--workdir={tmp_path / 'run'}", "--config.train.seed=1")
    assert "WIDTH = {}['width']" in result.stderr


def test_workdir_is_required() -> None:
    result = pretrain("--config=configs/pretrain.py:tiny")
    assert (result.returncode, "Flag --workdir must have a value" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("environment", "flag", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "16"}, "--nodistributed", "16 processes were started; give --distributed"),
        ({}, "--num_processes=2", "some are missing; give all, or --distributed"),
        ({}, "--distributed", "Nothing that jax knows started this process; give --coordinator_address"),
    ],
)
def test_processes_that_cannot_find_each_other_are_told_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], flag: str, message: str
) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "KUBERNETES", "TPU", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = pretrain("--config=configs/pretrain.py:tiny", f"--workdir={tmp_path / 'run'}", flag)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "run").exists()


def test_workdir_keeps_the_resolved_config(tmp_path: Path) -> None:
    config = get_config("tiny")
    assert open_workdir(config, tmp_path) is False
    assert open_workdir(config, tmp_path) is False
    mark_done(tmp_path)
    assert is_done(tmp_path)
    assert open_workdir(config, tmp_path) is True


def test_a_workdir_whose_checkpoints_could_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llama\[7b\] has one of"):
        open_workdir(get_config("tiny"), tmp_path / "llama[7b]")
    assert not (tmp_path / "llama[7b]").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mesh.preset", "single"),
        ("train.log_every_steps", 3),
        ("train.keep_last", 7),
        ("train.checkpoint_every_steps", 9),
        ("train.profile_steps", "1:2"),
    ],
)
def test_what_does_not_change_learning_may_change(tmp_path: Path, key: str, value: object) -> None:
    keep_config(get_config("tiny"), tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config = get_config("tiny")
    config.update_from_flattened_dict({key: value})
    assert open_workdir(config, tmp_path) is False


def test_only_the_mesh_is_free_not_a_source_of_that_name(tmp_path: Path) -> None:
    config = get_config("tiny").unlock()
    config.data.sources.mesh = config.data.sources.main.copy_and_resolve_references()
    keep_config(config, tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config.data.sources.mesh.weight = 9.0
    with pytest.raises(ConfigError, match=r"data\.sources\.mesh\.weight"):
        open_workdir(config, tmp_path)


def test_a_change_that_came_to_nothing_does_not_lock_the_run_out(tmp_path: Path) -> None:
    config, other = get_config("tiny"), get_config("tiny")
    other.model.num_layers = 3
    other.accept_changed_config = True
    keep_config(config, tmp_path)
    write_params(tmp_path, {"w": np.zeros(2, np.float32)}, {"config": to_plain(config)})
    open_workdir(other, tmp_path)
    keep_config(other, tmp_path)  # and then killed before a checkpoint
    assert open_workdir(config, tmp_path) is False


@pytest.mark.parametrize("key", ["train.num_steps", "train.seed", "data.batch_size", "model.num_layers"])
def test_what_changes_learning_is_refused(tmp_path: Path, key: str) -> None:
    keep_config(get_config("tiny"), tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config = get_config("tiny")
    config.update_from_flattened_dict({key: 77})
    with pytest.raises(ConfigError, match=rf"{key}: \d+ -> 77"):
        open_workdir(config, tmp_path)
    config.accept_changed_config = True
    open_workdir(config, tmp_path)


def test_a_config_may_be_corrected_before_anything_is_trained(tmp_path: Path) -> None:
    wrong, right = get_config("tiny"), get_config("tiny")
    wrong.data.batch_size = 7
    keep_config(wrong, tmp_path)
    (tmp_path / "checkpoints").mkdir()  # made by a run that was refused later
    assert open_workdir(right, tmp_path) is False
    keep_config(right, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["batch_size"] == right.data.batch_size


def test_a_checkpoint_that_was_half_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not has_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "samples", ["archive.jsonl", "answers/V1.jsonl", "v1/rejection_sampling/archive.jsonl"]
)
def test_samples_of_one_config_are_not_continued_with_another(tmp_path: Path, samples: str) -> None:
    keep_config(evaluation_config("tiny"), tmp_path)
    (tmp_path / samples).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / samples).touch()
    config = evaluation_config("tiny")
    config.sampling.top_p = 0.5
    with pytest.raises(ConfigError, match=r"sampling\.top_p: .* -> 0\.5"):
        open_workdir(config, tmp_path)


def test_two_processes_do_not_work_in_one_workdir(tmp_path: Path) -> None:
    open_workdir(get_config("tiny"), tmp_path)
    result = pretrain("--config=configs/pretrain.py:tiny", f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert f"{tmp_path} is in use by process {os.getpid()} on " in result.stderr
    assert "or use another --workdir" in result.stderr
    open_workdir(get_config("tiny"), tmp_path)  # the same process may begin again
    mark_done(tmp_path)
    (tmp_path / "DONE").unlink()
    steps = ("--config.train.num_steps=1", "--config.train.eval_every_steps=0")
    assert pretrain("--config=configs/pretrain.py:tiny", f"--workdir={tmp_path}", *steps).returncode == 0


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    held = "from pathlib import Path; from llama2_jax.files import hold; import os; "
    held += f"hold(Path({str(tmp_path)!r}), another=''); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", held], cwd=REPOSITORY, check=False).returncode == -9
    assert (tmp_path / ".lock").exists()
    hold(tmp_path, another="")
    release(tmp_path)


def test_config_of_a_finished_run_is_never_rewritten(tmp_path: Path) -> None:
    keep_config(get_config("tiny"), tmp_path)
    mark_done(tmp_path)
    before = (tmp_path / "config.json").read_text()
    other = get_config("tiny")
    other.optimizer.learning_rate = 9.0
    with pytest.raises(
        ConfigError, match=r"(?s)learning_rate: .* -> 9\.0.* by deleting DONE there and --conf"
    ):
        open_workdir(other, tmp_path)
    other.accept_changed_config = True
    assert open_workdir(other, tmp_path) is True
    assert (tmp_path / "config.json").read_text() == before


def test_recipe_passes_its_stages_the_flag_and_frees_their_meshes(tmp_path: Path) -> None:
    config = recipe_config("tiny")
    keep_config(config, tmp_path)
    (tmp_path / "pretrain" / "checkpoints" / "1").mkdir(parents=True)
    config.pretrain.mesh.preset = "single"
    config.pretrain.train.log_every_steps = 3
    assert open_workdir(config, tmp_path) is False
    config.pretrain.optimizer.learning_rate = 9.0
    with pytest.raises(ConfigError, match=r"pretrain\.optimizer\.learning_rate"):
        open_workdir(config, tmp_path)
    config.accept_changed_config = True
    assert stage_config(config, "pretrain").accept_changed_config is True
    assert stage_config(config, "sft", init_from="x").init_from == "x"
