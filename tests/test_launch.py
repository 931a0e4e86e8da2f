"""From the command line to ``run(config, workdir)``, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.pretrain import get_config
from llama2_jax.config import ConfigError
from llama2_jax.launch import is_done, mark_done, open_workdir

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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizer.learning_rat=1", 'Did you mean "learning_rate"'),
        ("--config.train.num_steps=many", "many"),
    ],
)
def test_mistyped_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    result = pretrain("--config=configs/pretrain.py:tiny", f"--workdir={tmp_path / 'run'}", override)
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_workdir_is_required() -> None:
    result = pretrain("--config=configs/pretrain.py:tiny")
    assert result.returncode != 0
    assert "--workdir" in result.stderr + result.stdout


def test_workdir_keeps_the_resolved_config(tmp_path: Path) -> None:
    config = get_config("tiny")
    assert open_workdir(config, tmp_path) is False
    assert open_workdir(config, tmp_path) is False
    mark_done(tmp_path)
    assert is_done(tmp_path)
    assert open_workdir(config, tmp_path) is True


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
    open_workdir(get_config("tiny"), tmp_path)
    config = get_config("tiny")
    config.update_from_flattened_dict({key: value})
    assert open_workdir(config, tmp_path) is False


@pytest.mark.parametrize("key", ["train.num_steps", "train.seed", "data.batch_size", "model.num_layers"])
def test_what_changes_learning_is_refused(tmp_path: Path, key: str) -> None:
    open_workdir(get_config("tiny"), tmp_path)
    config = get_config("tiny")
    config.update_from_flattened_dict({key: 77})
    with pytest.raises(ConfigError, match=rf"{key}: \d+ -> 77"):
        open_workdir(config, tmp_path)
    config.train.accept_changed_config = True
    open_workdir(config, tmp_path)
