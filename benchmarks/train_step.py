"""Training step of a tiny Llama on one device: tokens/s, and the share of the matrix rate.

python -m benchmarks.train_step

d 256, FFN 688, 4 layers, 8 heads, vocabulary 4096, sequence 256, batch 8, float32, AdamW: the
setting in which peers were measured. Best and median of the steps, with full remat and without.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record, seconds, spread
from llama2_jax.kernels import dispatch
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.sharding.rules import single_device
from llama2_jax.structs import Params, TokenBatch
from llama2_jax.train.flops import flops_per_token, measured_matrix_rate
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import compile_step, init_state, loss_sums, make_update, next_token_loss

BATCH, LENGTH, VOCAB = 8, 256, 4096
STEPS = 20


def main() -> None:
    """Measure both remat settings and the matrix rate."""
    rate = measured_matrix_rate(size=2048)
    result: dict[str, object] = {"matrix_rate_flops": rate}
    texts = []
    for policy in ("full", "none"):
        times = step_seconds(policy)
        tokens_per_sec = {key: BATCH * LENGTH / value for key, value in spread(times).items()}
        best, median = tokens_per_sec["min"], tokens_per_sec["median"]
        flops = flops_per_token(_config(policy), LENGTH, convention="causal_no_embed")
        result[policy] = {
            "step_secs": spread(times),
            "tokens_per_sec_best": best,
            "tokens_per_sec_median": median,
            "matrix_rate_share_best": best * flops / rate,
        }
        texts.append(
            f"remat {policy}: best {best:,.0f}, median {median:,.0f} tok/s ({best * flops / rate:.0%})"
        )
    result["parts_secs"] = parts = part_seconds()
    texts.append(
        "without remat: " + ", ".join(f"{name} {1e3 * secs:,.0f} ms" for name, secs in parts.items())
    )
    record("train_step", result, line="; ".join(texts) + f"; matrix rate {rate / 1e9:,.0f} GFLOP/s")


def step_seconds(remat_policy: str) -> list[float]:
    """Seconds of each timed update."""
    partitioner = single_device()
    model = Transformer(_config(remat_policy), partitioner)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-4), num_steps=1000)
    state = init_state(model, optimizer, partitioner, seed=0)
    step = compile_step(make_update(next_token_loss(model), optimizer), state, partitioner)
    batch = _batch()

    def update() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return seconds(update, repeats=STEPS)


def part_seconds() -> dict[str, float]:
    """Where an update goes: fastest seconds of its parts, measured one by one, without remat."""
    config = _config("none")
    model = Transformer(config, single_device())
    params = init_params(model, jax.random.key(0))
    batch = _batch()
    heads = jnp.ones((BATCH, LENGTH, config.num_heads, config.head_dim))

    def layers(params: Params) -> jax.Array:
        return model.apply({"params": params}, batch.tokens_BT, method="hidden")[0].sum()

    def attention(q: jax.Array) -> jax.Array:
        return dispatch.attention(q, heads, heads, segment_ids_BT=batch.segment_ids_BT).out_BTNH.sum()

    def fastest(function: Callable[..., jax.Array], argument: Any) -> float:
        gradient = jax.jit(jax.grad(function))
        return min(seconds(lambda: gradient(argument), repeats=STEPS))

    whole = fastest(lambda params: loss_sums(model, params, batch).loss_sum, params)
    all_layers = fastest(layers, params)
    one_attention = fastest(attention, heads)
    return {
        "gradient": whole,
        "of it layers": all_layers,
        "of them attention": config.num_layers * one_attention,
        "head and loss": whole - all_layers,
        "optimiser and clipping": min(step_seconds("none")) - whole,
        "matrix products at the matrix rate": BATCH
        * LENGTH
        * flops_per_token(config, LENGTH, convention="causal_no_embed")
        / measured_matrix_rate(size=2048),
    }


def _config(remat_policy: str) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB,
        model_width=256,
        num_layers=4,
        num_heads=8,
        num_kv_heads=8,
        feed_forward_width=688,
        max_context=LENGTH,
        remat_policy=remat_policy,
    )


def _batch() -> TokenBatch:
    tokens = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1), dtype=np.int32)
    ones = jnp.ones((BATCH, LENGTH), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
    sources = jnp.zeros(BATCH, jnp.int32)
    return TokenBatch(
        jnp.asarray(tokens[:, :-1]),
        jnp.asarray(tokens[:, 1:]),
        ones.astype(jnp.float32),
        ones,
        positions,
        sources,
    )


if __name__ == "__main__":
    main()
