import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.train.optimizer import (
    OptimizerConfig,
    decay_mask,
    learning_rate,
    make_optimizer,
    with_num_steps,
)
from tests.model import tiny


def rate(step, *, num_steps=10_000, **changes):
    return float(learning_rate(step, OptimizerConfig(learning_rate=3e-4, **changes), num_steps=num_steps))


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, 0.0),
        (1, 3e-4 / 2000),
        (1000, 1.5e-4),
        (2000, 3e-4),
        (4000, 3e-4 * (0.1 + 0.9 * 0.8535533905932737)),  # a quarter: (1 + cos 45 degrees) / 2
        (6000, 3e-4 * 0.55),
        (10_000, 3e-5),
        (12_000, 3e-5),
    ],
)
def test_cosine_schedule_of_the_paper(step, wanted):
    assert rate(step) == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_the_learning_rate_never_rises_after_the_warm_up():
    rates = [rate(step, num_steps=200, warmup_steps=20) for step in range(201)]
    assert np.argmax(rates) == 20
    assert (np.diff(rates[20:]) < 0).all()


def test_constant_schedule_warms_up_and_stays():
    assert rate(5, schedule="constant", warmup_steps=10) == pytest.approx(1.5e-4)
    assert rate(10, schedule="constant", warmup_steps=10) == pytest.approx(3e-4)
    assert rate(9_999, schedule="constant", warmup_steps=10) == pytest.approx(3e-4)


def test_a_warm_up_that_outlasts_the_run_is_said(caplog):
    caplog.set_level(logging.WARNING, logger="absl")
    for _ in range(2):
        make_optimizer(OptimizerConfig(learning_rate=3e-4, warmup_steps=2004), num_steps=501)
    said = "run of 501 update(s) ends within its warm-up of 2004: the learning rate ends at 25 %"
    assert caplog.text.count(said) == 1
    make_optimizer(OptimizerConfig(learning_rate=3e-4, warmup_steps=1), num_steps=1)
    assert "run of 1 update(s) ends within its warm-up of 1: the learning rate ends at 0 %" in caplog.text


def test_no_warm_up_starts_at_the_peak():
    assert rate(0, warmup_steps=0) == pytest.approx(3e-4)


def test_the_longer_warm_up_holds():
    # reward models: max(5, 3 %)
    assert rate(30, num_steps=1000, warmup_steps=5, warmup_fraction=0.03) == pytest.approx(3e-4)
    assert rate(15, num_steps=1000, warmup_steps=5, warmup_fraction=0.03) == pytest.approx(1.5e-4)
    assert rate(5, num_steps=100, warmup_steps=5, warmup_fraction=0.03) == pytest.approx(3e-4)
    assert rate(1, num_steps=60, warmup_steps=0, warmup_fraction=0.03) == pytest.approx(1.5e-4)  # 1.8 is 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "linear"}, "'linear'.*'cosine'.*'constant'"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"warmup_fraction": -0.1}, "warmup_fraction = -0.1"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
        ({"final_fraction": 1.1}, r"final_fraction = 1.1 must be in \[0, 1\]"),
        ({"beta1": -0.1}, r"beta1 = -0.1 must be in \[0, 1\)"),
        ({"beta2": 1.0}, r"beta2 = 1.0 must be in \[0, 1\)"),
        ({"epsilon": 0.0}, "epsilon = 0.0 must be positive"),
        ({"grad_clip_norm": 0.0}, "grad_clip_norm = 0.0"),
    ],
)
def test_wrong_fields_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        OptimizerConfig(**{"learning_rate": 1e-4, **changes})


def test_defaults_are_the_papers():
    config = OptimizerConfig(learning_rate=3e-4)
    assert (config.beta1, config.beta2, config.epsilon) == (0.9, 0.95, 1e-5)
    assert (config.weight_decay, config.grad_clip_norm, config.warmup_steps) == (0.1, 1.0, 2000)
    assert (config.final_fraction, config.schedule) == (0.1, "cosine")


def test_norm_scales_are_not_decayed_and_everything_else_is():
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(tiny.params()))
    undecayed = {jax.tree_util.keystr(path) for path, decayed in mask if not decayed}
    assert undecayed == {
        "['final_norm']['scale_D']",
        "['layers']['attention_norm']['scale_D']",
        "['layers']['feed_forward_norm']['scale_D']",
    }
    assert len(mask) == 12
    adapters = [{"scale_D": 1, "a_DR": 2}, (3, 4)]  # an own tree
    assert decay_mask(adapters) == [{"scale_D": False, "a_DR": True}, (True, True)]


def adamw_by_hand(params, all_grads, *, rates, clip, decayed, betas=(0.9, 0.95), epsilon=1e-5, decay=0.1):
    """Three loops of plain numpy: optax semantics, epsilon outside the root, decay times the rate."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    m = {name: np.zeros(value.shape) for name, value in params.items()}
    v = {name: np.zeros(value.shape) for name, value in params.items()}
    for step, (grads, rate) in enumerate(zip(all_grads, rates, strict=True), start=1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for name, grad in grads.items():
            g = grad * min(1.0, clip / norm)
            m[name] = betas[0] * m[name] + (1 - betas[0]) * g
            v[name] = betas[1] * v[name] + (1 - betas[1]) * g**2
            update = (m[name] / (1 - betas[0] ** step)) / (
                np.sqrt(v[name] / (1 - betas[1] ** step)) + epsilon
            )
            update += (decay if name in decayed else 0.0) * params[name]
            params[name] = params[name] - rate * update
    return params


@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["below_the_clip", "clipped"])
@pytest.mark.parametrize(
    ("clip", "betas", "epsilon", "decay"),
    [(1.0, (0.9, 0.95), 1e-5, 0.1), (2.0, (0.8, 0.9), 1e-3, 0.3)],
    ids=["paper", "others"],
)
def test_adamw_equals_three_steps_by_hand(scale, clip, betas, epsilon, decay):
    generator = np.random.default_rng(0)
    shapes = {"w_DF": (3, 4), "scale_D": (3,)}
    params = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    all_grads = [
        {
            name: (scale * generator.standard_normal(shape)).astype(np.float32)
            for name, shape in shapes.items()
        }
        for _ in range(3)
    ]
    all_grads[0]["w_DF"][0, 0] = 1e-6  # where epsilon 1e-5 matters
    config = OptimizerConfig(
        learning_rate=0.01, schedule="constant", warmup_steps=2, beta1=betas[0], beta2=betas[1],
        epsilon=epsilon, weight_decay=decay, grad_clip_norm=clip,
    )  # fmt: skip
    optimizer = make_optimizer(config, num_steps=10)
    found, state = params, optimizer.init(params)
    for grads in all_grads:
        updates, state = optimizer.update(grads, state, found)
        found = jax.tree.map(jnp.add, found, updates)
    wanted = adamw_by_hand(
        params, all_grads, rates=[0.0, 0.005, 0.01], clip=clip, decayed={"w_DF"},
        betas=betas, epsilon=epsilon, decay=decay,
    )  # fmt: skip
    for name in shapes:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7)


def test_runs_of_any_length_share_one_compiled_update_and_may_be_made_longer():
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=0, warmup_fraction=0.1, epsilon=1e-30)
    params, grads = {"scale_D": jnp.zeros(3)}, {"scale_D": jnp.ones(3)}
    update = jax.jit(make_optimizer(config, num_steps=999).update)
    for num_steps in (20, 40):
        found, state = [], make_optimizer(config, num_steps=num_steps).init(params)
        for _ in range(12):
            updates, state = update(grads, state, params)  # of one step: minus the rate
            found.append(-float(updates["scale_D"][0]))
        wanted = learning_rate(np.arange(12), config, num_steps=num_steps)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert update._cache_size() == 1
    updates, _ = update(grads, with_num_steps(state, config, num_steps=200), params)
    assert -updates["scale_D"][0] == pytest.approx(0.01 * 12 / 20)  # now within the warm-up
