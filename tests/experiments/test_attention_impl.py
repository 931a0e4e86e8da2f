"""Every stage that runs a model takes the implementation of attention from its config or flag."""

import functools
import json

import numpy as np
import pytest

from experiments import ppo, pretrain, reward_model, sft
from llama2_jax.config import ConfigError
from llama2_jax.train.metrics import read_metrics
from tests.experiments import runs
from tests.experiments.test_ppo import config_of as ppo_config
from tests.experiments.test_reward_model import config as reward_model_config

REFUSAL = r"'tpu' cannot serve this: it runs on tpu, this is cpu.*chunked"


def losses(workdir):
    return [line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line]


@pytest.mark.parametrize("impl", ["reference", "xla", "tpu_interpret"])
def test_a_training_run_has_the_losses_of_the_default(impl, tmp_path):
    changes = {
        "train__num_steps": 2,
        "train__log_every_steps": 1,
        "data__batch_size": 2,
        "eval__batch_size": 2,
    }
    for name in (impl, "auto"):
        pretrain.run(runs.pretrain_config(model__attention_impl=name, **changes), tmp_path / name)
    found, wanted = (losses(tmp_path / name) for name in (impl, "auto"))
    assert len(found) == 2
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("impl", ["xla", "tpu_interpret"])
@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_other_stages_learn_the_same(stage, impl, tmp_path):
    run, config = {
        "sft": (sft.run, functools.partial(runs.sft_config, runs.pretrained_workdir())),
        "reward_model": (reward_model.run, reward_model_config),
    }[stage]
    for name in (impl, "auto"):
        run(config(model__attention_impl=name, train__log_every_steps=1), tmp_path / name)
    found, wanted = (losses(tmp_path / name) for name in (impl, "auto"))
    assert len(found) > 10
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_ppo_runs_with_the_kernels(tmp_path):
    changes = {
        "ppo__batch_size": 2,
        "ppo__mini_batch_size": 1,
        "train__num_iterations": 1,
        "eval__every_steps": 1,
    }
    ppo.run(ppo_config(model__attention_impl="tpu_interpret", **changes), tmp_path)
    line = next(line for line in read_metrics(tmp_path) if "ppo/score" in line)
    assert (
        line["ppo/kl_largest"] == 0
    )  # of the first iteration; the doctor compares sampler and trainer as well


# only what reaches the model can be refused
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward_model", "ppo"])
def test_what_this_machine_cannot_run_is_refused_and_nothing_is_trained(stage, tmp_path):
    run, config = {
        "pretrain": (pretrain.run, runs.pretrain_config),
        "sft": (sft.run, functools.partial(runs.sft_config, runs.pretrained_workdir())),
        "reward_model": (reward_model.run, reward_model_config),
        "ppo": (ppo.run, ppo_config),
    }[stage]
    with pytest.raises(ConfigError, match=REFUSAL):
        run(config(model__attention_impl="tpu"), tmp_path)
    assert not list(tmp_path.glob("**/checkpoints/[0-9]*"))


@pytest.mark.parametrize("program", ["score", "generate"])
def test_the_flag_of_the_programs(program, tmp_path):
    source = runs.write_lines(tmp_path / "in.jsonl", [{"tokens": [1, 5, 9]}])
    arguments = (
        f"--checkpoint={runs.fine_tuned_workdir()}",
        f"--input={source}",
        f"--output={tmp_path}/out.jsonl",
    )
    ran = runs.run_program(f"experiments.{program}", *arguments, "--attention_impl=tpu")
    assert ran.returncode == 2
    assert "error: attention_impl 'tpu' cannot serve this: it runs on tpu, this is cpu" in ran.stderr
    if program == "score":
        ran = runs.run_program(f"experiments.{program}", *arguments, "--attention_impl=xla")
        assert ran.returncode == 0, ran.stderr
        assert len(json.loads((tmp_path / "out.jsonl").read_text())["logprobs"]) == 3
