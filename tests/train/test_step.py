import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.model.transformer import init_params
from llama2_jax.sharding.rules import single_device
from llama2_jax.structs import LossSums, Mean, TrainState
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import (
    abstract_state,
    compile_step,
    init_state,
    loss_sums,
    make_update,
    next_token_loss,
    split_rows,
    state_from_params,
    tokens_per_source,
)
from tests.model import numpy_llama, tiny

ROWS = [
    tiny.tokens(n, seed=n).tolist() for n in (16, 2, 3, 9, 1, 2, 16, 2)
]  # 15 1 2 8 0 1 15 1 trained tokens
BATCH = tiny.pack([[row] for row in ROWS], 16)
CLIP = 0.01
ADAMW = make_optimizer(
    OptimizerConfig(learning_rate=1e-2, warmup_steps=0, grad_clip_norm=CLIP), num_steps=100
)
SGD = optax.sgd(0.1)


@functools.cache
def state_and_step(optimizer, accumulation_steps=1, loss_chunk=0):
    loss = next_token_loss(tiny.MODEL, loss_chunk=loss_chunk, num_sources=3)
    step = make_update(loss, optimizer, accumulation_steps=accumulation_steps)
    state = state_from_params(tiny.params(), optimizer, single_device())
    return state, compile_step(step, state, single_device(), donate=False)


@functools.cache
def after_one_step(optimizer, accumulation_steps=1, loss_chunk=0):
    state, step = state_and_step(optimizer, accumulation_steps, loss_chunk)
    return step(state, BATCH)


@functools.cache
def mean_loss_and_grads():
    def mean(params):
        sums = loss_sums(tiny.MODEL, params, BATCH)
        return sums.loss_sum / sums.weight

    return jax.jit(jax.value_and_grad(mean))(tiny.params())


def test_the_loss_is_the_mean_over_tokens_by_hand():
    _, metrics = after_one_step(SGD)
    total = sum(numpy_llama.next_logprobs(tiny.params(), row, tiny.CONFIG).sum() for row in ROWS)
    assert float(metrics["tokens"]) == 43
    np.testing.assert_allclose(metrics["loss"], -total / 43, rtol=1e-5)


def test_one_sgd_step_subtracts_the_gradient_of_the_mean():
    state, metrics = after_one_step(SGD)
    _, grads = mean_loss_and_grads()
    tiny.assert_trees_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, tiny.params(), grads))
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("optimizer", "accumulation_steps", "loss_chunk"),
    [(SGD, 2, 0), (SGD, 4, 4), (ADAMW, 4, 0)],
    ids=["sgd_2", "sgd_4_chunked", "adamw_4"],
)
def test_accumulation_equals_the_large_batch_on_uneven_masks(optimizer, accumulation_steps, loss_chunk):
    state, metrics = after_one_step(optimizer)
    found, found_metrics = after_one_step(optimizer, accumulation_steps, loss_chunk)
    tiny.assert_trees_close(found.params, state.params, rtol=1e-6, atol=1e-6)
    for name in ("loss", "tokens", "grad_norm"):
        np.testing.assert_allclose(found_metrics[name], metrics[name], rtol=1e-5)
    np.testing.assert_array_equal(found_metrics["source_tokens"], metrics["source_tokens"])


def test_the_adamw_step_is_that_of_the_clipped_gradient():
    state, metrics = after_one_step(ADAMW)
    _, grads = mean_loss_and_grads()
    norm = float(metrics["grad_norm"])
    assert norm > 2 * CLIP  # reported before clipping

    def by_hand(path, param, grad):
        g = np.asarray(grad, np.float64) * CLIP / norm
        decay = 0.0 if path[-1].key == "scale_D" else 0.1
        return param - 1e-2 * (g / (np.abs(g) + 1e-5) + decay * param)

    wanted = jax.tree_util.tree_map_with_path(by_hand, tiny.params(), grads)
    # where |g| is near epsilon the rounding of the gradient shows
    tiny.assert_trees_close(state.params, wanted, rtol=1e-5, atol=2e-5)


class Numbers(NamedTuple):
    """Rows of one number, and the weight of each."""

    value_B: Any
    weight_B: Any


def pull(params, batch):
    """Sum of (w - x)^2 / 2 over the rows that count, with a mean over those above 2 and a total."""
    difference_B = params["w"] - batch.value_B
    high_B = (batch.value_B > 2) * batch.weight_B
    means = {"high": Mean((batch.value_B * high_B).sum(), high_B.sum())}
    total = (0.5 * batch.weight_B * difference_B**2).sum()
    return LossSums(total, batch.weight_B.sum(), means, {"seen": batch.value_B.sum()})


@pytest.mark.parametrize("accumulation_steps", [1, 2, 4])
def test_any_loss_is_divided_once_by_the_weight_of_the_whole_batch(accumulation_steps):
    # uneven: the mean of the means of two micro-batches would be 2.5, of four 2.25
    numbers = Numbers(np.arange(8, dtype=np.float32), np.array([0, 1, 1, 0, 1, 0, 1, 0], np.float32))
    update = make_update(pull, optax.sgd(1.0), accumulation_steps=accumulation_steps)
    params = {"w": jnp.zeros(())}
    state = TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(1.0).init(params))
    state, metrics = update(state, numbers)
    assert float(state.params["w"]) == (1 + 2 + 4 + 6) / 4
    assert float(metrics["loss"]) == (1 + 4 + 16 + 36) / 2 / 4
    assert float(metrics["grad_norm"]) == float(metrics["param_norm"]) == 3.25
    assert float(metrics["high"]) == (4 + 6) / 2
    assert float(metrics["seen"]) == 28
    assert int(state.step) == 1


def test_weights_that_add_up_to_less_than_one_make_the_same_mean():
    # (0.001 * 1 + 0.003 * 2) / 0.004
    numbers = Numbers(np.array([1, 2], np.float32), np.array([0.001, 0.003], np.float32))
    params = {"w": jnp.zeros(())}
    state = TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(1.0).init(params))
    state, metrics = make_update(pull, optax.sgd(1.0))(state, numbers)
    assert float(state.params["w"]) == pytest.approx(1.75)
    assert float(metrics["loss"]) == pytest.approx((0.001 * 0.5 + 0.003 * 2) / 0.004)


def test_split_rows_deals_the_rows_out_without_moving_a_block_boundary():
    parts = split_rows(BATCH, 4)
    assert parts.tokens_BT.shape == (4, 2, 16)
    np.testing.assert_array_equal(parts.tokens_BT[1], BATCH.tokens_BT[[1, 5]])
    np.testing.assert_array_equal(parts.loss_mask_BT.sum(axis=(1, 2)), [15 + 0, 1 + 1, 2 + 15, 8 + 1])
    with pytest.raises(ConfigError, match="8 rows do not divide into 3 equal parts"):
        split_rows(BATCH, 3)


def test_tokens_per_source_counts_real_tokens():
    batch = BATCH._replace(source_ids_B=np.array([0, 0, 2, 2, 0, 0, 0, 2], np.int32))
    found = tokens_per_source(batch, 4)
    np.testing.assert_array_equal(found, [16 + 2 + 1 + 2 + 16, 0, 3 + 9 + 2, 0])


def test_a_batch_without_a_counted_token_changes_nothing_but_decay():
    empty = BATCH._replace(loss_mask_BT=np.zeros((8, 16), np.float32))
    state, step = state_and_step(SGD)
    found, metrics = step(state, empty)
    tiny.assert_trees_close(found.params, tiny.params(), rtol=0, atol=0)
    assert (float(metrics["loss"]), float(metrics["tokens"])) == (0.0, 0.0)


@functools.cache
def fresh_state(seed):
    return init_state(tiny.MODEL, ADAMW, single_device(), seed=seed)


def test_another_seed_gives_other_weights():
    first, second = fresh_state(0), fresh_state(1)
    assert not np.array_equal(first.params["embedding_VD"], second.params["embedding_VD"])
    assert int(first.step) == 0
    always = init_params(tiny.MODEL, jax.random.split(jax.random.key(1))[0])  # what seed 1 always gave
    tiny.assert_trees_close(second.params, always, rtol=0, atol=1e-7)


def test_an_update_takes_the_memory_of_the_state_unless_told_otherwise():
    state = state_from_params(tiny.params(), SGD, single_device())
    step = compile_step(make_update(next_token_loss(tiny.MODEL), SGD), state, single_device())
    step(state, BATCH)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_abstract_state_matches_the_real_one():
    real = fresh_state(0)
    abstract = abstract_state(tiny.MODEL, ADAMW, single_device())
    assert isinstance(abstract, TrainState)
    assert jax.tree.structure(abstract) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(real), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_master_weights_and_moments_stay_float32_under_bfloat16_compute():
    model = tiny.with_config(compute_dtype="bfloat16")
    state = abstract_state(model, ADAMW, single_device())
    found, _ = jax.eval_shape(make_update(next_token_loss(model), ADAMW), state, BATCH)
    for leaf in jax.tree.leaves((found.params, found.opt_state)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
