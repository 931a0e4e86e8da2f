"""One optimiser update: the only ``value_and_grad`` of next-token training."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llama2_jax.losses.next_token import chunked_next_token_sums, next_token_sums
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import LossSums, Params, TokenBatch, TrainState

Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, TokenBatch], tuple[TrainState, Metrics]]


def loss_sums(model: Transformer, params: Params, batch: TokenBatch, *, loss_chunk: int = 0) -> LossSums:
    """Summed loss of one batch; ``loss_chunk`` > 0 makes logits for that many positions at a time."""
    hidden_BTD, _ = model.apply(
        {"params": params},
        batch.tokens_BT,
        segment_ids_BT=batch.segment_ids_BT,
        positions_BT=batch.positions_BT,
        method="hidden",
    )
    unembed = functools.partial(model.apply, {"params": params}, method="unembed")
    if loss_chunk:
        return chunked_next_token_sums(
            unembed, hidden_BTD, batch.targets_BT, batch.loss_mask_BT, chunk_size=loss_chunk
        )
    return next_token_sums(unembed(hidden_BTD), batch.targets_BT, batch.loss_mask_BT)


def make_train_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    *,
    accumulation_steps: int = 1,
    loss_chunk: int = 0,
    num_sources: int = 1,
) -> StepFunction:
    """An update as a pure function of (state, batch); the caller compiles it.

    Micro-batch gradients are summed and divided once by the token count of the whole batch, so
    ``accumulation_steps`` changes memory and speed but not the result (D24).
    """

    def summed_loss(params: Params, batch: TokenBatch) -> tuple[jax.Array, LossSums]:
        sums = loss_sums(model, params, batch, loss_chunk=loss_chunk)
        return sums.loss_sum, sums

    gradient = jax.grad(summed_loss, has_aux=True)

    def accumulate(params: Params, batch: TokenBatch) -> tuple[Params, LossSums]:
        if accumulation_steps == 1:
            return gradient(params, batch)

        def body(total: Any, micro: TokenBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, micro)), None

        zeros = jax.tree.map(jnp.zeros_like, (params, LossSums(jnp.zeros(()), jnp.zeros(()))))
        total, _ = jax.lax.scan(body, zeros, split_rows(batch, accumulation_steps))
        return total

    def step(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        grads, sums = accumulate(state.params, batch)
        tokens = jnp.maximum(sums.token_count, 1.0)
        grads = jax.tree.map(lambda grad: grad / tokens, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums.loss_sum / tokens,
            "tokens": sums.token_count,
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),  # after the update: not finite = not worth saving
            "source_tokens": tokens_per_source(batch, num_sources),
        }
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    return step


def split_rows(batch: TokenBatch, parts: int) -> TokenBatch:
    """Leading dim of micro-batches; each takes every ``parts``-th row, so no row changes device."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def tokens_per_source(batch: TokenBatch, num_sources: int) -> jax.Array:
    """Real (not padding) tokens of each data source in the batch, int32 (num_sources,)."""
    per_row = (batch.segment_ids_BT != 0).sum(axis=1)
    is_source = batch.source_ids_B[None, :] == jnp.arange(num_sources)[:, None]
    return jnp.where(is_source, per_row[None, :], 0).sum(axis=1)


def init_state(
    model: Transformer, optimizer: optax.GradientTransformation, partitioner: Partitioner, *, seed: int
) -> TrainState:
    """A fresh TrainState, every leaf allocated where it will live."""
    params_key, rng = jax.random.split(jax.random.key(seed))
    params = init_params(model, params_key)
    return state_from_params(params, optimizer, partitioner, rng=rng)


def state_from_params(
    params: Params, optimizer: optax.GradientTransformation, partitioner: Partitioner, *, rng: jax.Array
) -> TrainState:
    """A TrainState at step 0 around given parameters (already placed)."""

    def build(params: Params) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, optimizer.init(params), jax.random.key_data(rng))

    shardings = partitioner.tree(jax.eval_shape(build, params))
    return jax.jit(build, out_shardings=shardings)(params)


def abstract_state(
    model: Transformer, optimizer: optax.GradientTransformation, partitioner: Partitioner
) -> TrainState:
    """Shapes, dtypes and shardings of a TrainState, without memory: the target of a restore."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, partitioner, seed=0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        partitioner.tree(shapes),
    )


def compile_step(
    step: StepFunction, state: TrainState, partitioner: Partitioner, *, donate: bool = True
) -> StepFunction:
    """``jit`` with the state's layout fixed going in and out, its memory reused."""
    shardings = partitioner.tree(state)
    return jax.jit(
        step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, partitioner.replicated),
        donate_argnums=(0,) if donate else (),
    )
