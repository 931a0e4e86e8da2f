"""One optimiser update from any loss that returns sums: the only place where a gradient is taken."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llama2_jax.config import require
from llama2_jax.losses.next_token import chunked_next_token_sums, next_token_sums
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer, head_logits, init_params
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import LossSums, Mean, Params, TokenBatch, TrainState

Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Any], LossSums]
StepFunction = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_update(
    loss: Loss, optimizer: optax.GradientTransformation, *, accumulation_steps: int = 1
) -> StepFunction:
    """An update as a pure function of (state, batch); the caller compiles it.

    Micro-batch gradients are summed and divided once by the weight of the whole batch, so
    ``accumulation_steps`` changes memory and speed but not the result (D24).

    Args:
      loss: of (params, batch); every leaf of a batch has the rows in front.

    Returns:
      The update. Its metrics are ``loss``, ``grad_norm``, ``param_norm``, and those of the loss:
      its means, divided, and its totals.
    """

    def summed_loss(params: Params, batch: Any) -> tuple[jax.Array, LossSums]:
        sums = loss(params, batch)
        return sums.loss_sum, sums

    gradient = jax.grad(summed_loss, has_aux=True)

    def accumulate(params: Params, batch: Any) -> tuple[Params, LossSums]:
        if accumulation_steps == 1:
            return gradient(params, batch)

        def body(total: Any, micro: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, micro)), None

        parts = split_rows(batch, accumulation_steps)
        sums = jax.eval_shape(loss, params, jax.tree.map(lambda part: part[0], parts))
        total, _ = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, (params, sums)), parts)
        return total

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        grads, sums = accumulate(state.params, batch)
        weight = _divisor(sums.weight)
        grads = jax.tree.map(lambda grad: grad / weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **{name: _divide(mean) for name, mean in sums.means.items()},
            **sums.totals,
            "loss": sums.loss_sum / weight,
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),  # after the update: not finite = not worth saving
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return update


def _divide(mean: Mean) -> jax.Array:
    return mean.total / _divisor(mean.weight)


def _divisor(weight: jax.Array) -> jax.Array:
    """The weight, or 1 where nothing counts: sums are 0 then."""
    return jnp.where(weight == 0, 1.0, weight)


def next_token_loss(model: Transformer, *, loss_chunk: int = 0, num_sources: int = 1) -> Loss:
    """Mean negative log-likelihood per counted token, of ``TokenBatch``; see ``loss_sums``."""

    def loss(params: Params, batch: TokenBatch) -> LossSums:
        sums = loss_sums(model, params, batch, loss_chunk=loss_chunk)
        totals = {"tokens": sums.weight, "source_tokens": tokens_per_source(batch, num_sources)}
        return sums._replace(totals=totals)

    return loss


def loss_sums(model: Transformer, params: Params, batch: TokenBatch, *, loss_chunk: int = 0) -> LossSums:
    """Summed loss of one batch; ``loss_chunk`` > 0 makes logits for that many positions at a time."""
    hidden_BTD, _ = model.apply(
        {"params": params},
        batch.tokens_BT,
        segment_ids_BT=batch.segment_ids_BT,
        positions_BT=batch.positions_BT,
        method="hidden",
    )
    if loss_chunk:
        name = "embedding_VD" if model.config.tie_embeddings else "unembedding_DV"
        return chunked_next_token_sums(
            functools.partial(head_logits, config=model.config, partitioner=model.partitioner.one_device()),
            params[name],
            name.rpartition("_")[2],
            hidden_BTD,
            batch.targets_BT,
            batch.loss_mask_BT,
            vocab_size=model.config.vocab_size,
            chunk_size=loss_chunk,
            map_shards=model.partitioner.map_shards,
        )
    logits_BTV = model.apply({"params": params}, hidden_BTD, method="unembed")
    return next_token_sums(logits_BTV, batch.targets_BT, batch.loss_mask_BT)


def split_rows(batch: Any, parts: int) -> Any:
    """Leading dim of micro-batches; each takes every ``parts``-th row, so no row changes device.

    Raises:
      ConfigError: the rows do not divide by ``parts``.
    """
    for leaf in jax.tree.leaves(batch):
        require(leaf.shape[0] % parts == 0, f"{leaf.shape[0]} rows do not divide into {parts} equal parts")
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def tokens_per_source(batch: TokenBatch, num_sources: int) -> jax.Array:
    """Real (not padding) tokens of each data source in the batch, int32 (num_sources,)."""
    per_row = (batch.segment_ids_BT != 0).sum(axis=1)
    is_source = batch.source_ids_B[None, :] == jnp.arange(num_sources)[:, None]
    return jnp.where(is_source, per_row[None, :], 0).sum(axis=1)


def init_state(
    model: Transformer | ScoreModel,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    *,
    seed: int,
) -> TrainState:
    """A fresh TrainState, every leaf allocated once, where it will live."""
    key, _ = jax.random.split(jax.random.key(seed))  # so a seed keeps the parameters it always gave

    def build(key: jax.Array) -> TrainState:
        return _start(init_params(model, key), optimizer)

    # in one program: parameters made before it would be copied, and leave a hole where they were
    return partitioner.make(build, key)


def state_from_params(
    params: Params, optimizer: optax.GradientTransformation, partitioner: Partitioner
) -> TrainState:
    """A TrainState at step 0 around a copy of given parameters (already placed)."""

    def build(params: Params) -> TrainState:
        return _start(params, optimizer)

    return partitioner.make(build, params)


def _start(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(
    model: Transformer | ScoreModel, optimizer: optax.GradientTransformation, partitioner: Partitioner
) -> TrainState:
    """Shapes, dtypes and shardings of a TrainState, without memory: the target of a restore."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, partitioner, seed=0))
    return partitioner.abstract(shapes)


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
