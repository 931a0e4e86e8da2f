"""Every stage that runs a model takes the implementation of attention from its config."""

import numpy as np
import pytest

from experiments import ppo, pretrain, reward_model, sft
from llama2_jax.config import ConfigError
from llama2_jax.train.metrics import read_metrics
from tests.experiments import runs
from tests.experiments.test_ppo import config_of as ppo_config
from tests.experiments.test_reward_model import config as reward_model_config


def losses(workdir, name="train/loss"):
    return [line[name] for line in read_metrics(workdir) if name in line]


def test_pretraining_and_fine_tuning(tmp_path):
    pretrain.run(runs.pretrain_config(model__attention_impl="xla"), tmp_path / "pretrained")
    found = losses(tmp_path / "pretrained")
    np.testing.assert_allclose(found, losses(runs.pretrained_workdir()), rtol=1e-4)
    sft.run(runs.sft_config(runs.pretrained_workdir(), model__attention_impl="reference"), tmp_path / "sft")
    np.testing.assert_allclose(losses(tmp_path / "sft"), losses(runs.fine_tuned_workdir()), rtol=1e-4)


def test_pretraining_with_the_tpu_kernels_in_the_interpreter(tmp_path):
    changes = {
        "train__num_steps": 2,
        "train__log_every_steps": 1,
        "data__batch_size": 2,
        "eval__batch_size": 2,
    }
    for impl in ("tpu_interpret", "chunked"):
        pretrain.run(runs.pretrain_config(model__attention_impl=impl, **changes), tmp_path / impl)
    found, wanted = (losses(tmp_path / impl) for impl in ("tpu_interpret", "chunked"))
    assert len(found) == 2
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_reward_model(tmp_path):
    for impl in ("xla", "chunked"):
        reward_model.run(reward_model_config(**{"model.attention_impl": impl}), tmp_path / impl)
    np.testing.assert_allclose(*(losses(tmp_path / impl) for impl in ("xla", "chunked")), rtol=1e-3)


def test_ppo(tmp_path):
    ppo.run(ppo_config(model__attention_impl="xla", train__num_iterations=2), tmp_path)
    # sampler and trainer agree: the doctor has looked
    assert losses(tmp_path, "ppo/kl_per_answer")[0] == pytest.approx(0, abs=1e-4)


def test_what_this_machine_cannot_run_is_refused_and_nothing_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"'tpu' cannot serve this: it runs on tpu, this is cpu.*chunked"):
        pretrain.run(runs.pretrain_config(model__attention_impl="tpu"), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
