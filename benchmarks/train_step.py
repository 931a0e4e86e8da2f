"""Training step on one device: tokens/s, and the share of the matrix rate.

python -m benchmarks.train_step [--config=tiny|7b_layer|7b]

tiny: d 256, FFN 688, 4 layers, 8 heads, vocabulary 4096, sequence 256, batch 8, float32, AdamW: the
setting in which peers were measured. Best and median of the steps, with full remat and without.
7b_layer: forward and backward pass of one decoder layer of the 7B, 4 rows of 4,096 tokens, bfloat16, nothing
kept or run again. 7b: the whole step, float32 master weights and AdamW, which takes a GPU of 140 GB.
MFU of both is a share of the data sheet's peak, attention counted as causal.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record, seconds, spread
from llama2_jax.kernels import dispatch
from llama2_jax.model.config import ModelConfig, model_config
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.sharding.rules import single_device
from llama2_jax.structs import Params, TokenBatch
from llama2_jax.train.flops import flops_per_token, measured_matrix_rate, peak_flops
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import Loss, compile_step, init_state, loss_sums, make_update, next_token_loss

BATCH, LENGTH, VOCAB = 8, 256, 4096
STEPS = 20
LARGE_BATCH, LARGE_LENGTH = 4, 4096


def main() -> None:
    """Measure what ``--config`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="tiny", choices=["tiny", "7b_layer", "7b"])
    parser.add_argument("--impl", default="auto", help="attention, not of tiny")
    parser.add_argument("--remat", default="attention", help="remat policy of 7b")
    given = parser.parse_args()
    if given.config == "tiny":
        _measure_tiny()
        return
    result = large_layer(given.impl) if given.config == "7b_layer" else large_step(given.impl, given.remat)
    record(f"train_step_{given.config}", result, line=large_text(given.config, result))


def large_layer(
    impl: str, *, size: str = "7b", batch: int = LARGE_BATCH, length: int = LARGE_LENGTH
) -> dict[str, Any]:
    """Seconds and MFU of the gradient of one decoder layer of a model."""
    config = model_config(
        size,
        num_layers=1,
        max_context=length,
        compute_dtype="bfloat16",
        remat_policy="none",
        attention_impl=impl,
    )
    model = Transformer(config, single_device())
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), init_params(model, jax.random.key(0)))
    tokens = random_batch(config.vocab_size, batch, length).tokens_BT

    @jax.jit
    def gradient(params: Params) -> Any:
        def total(layers: Params) -> jax.Array:
            given = {**params, "layers": layers}
            return model.apply({"params": given}, tokens, method="hidden")[0].astype(jnp.float32).sum()

        return jax.grad(total)(params["layers"])

    # the embeddings are looked up, and no head is run
    flops = flops_per_token(config, length, convention="causal_no_embed", num_outputs=0)
    return _utilisation(seconds(lambda: gradient(params), repeats=STEPS), batch * length, flops)


def large_step(
    impl: str,
    remat_policy: str,
    *,
    size: str = "7b",
    batch: int = LARGE_BATCH,
    length: int = LARGE_LENGTH,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Seconds and MFU of whole updates of a model."""
    config = model_config(
        size, max_context=length, compute_dtype="bfloat16", remat_policy=remat_policy, attention_impl=impl
    )
    run = functools.partial(
        update_seconds, config, random_batch(config.vocab_size, batch, length), loss_chunk=min(512, length)
    )
    flops = flops_per_token(config, length, convention="causal_no_embed")
    return {"remat_policy": remat_policy, **_utilisation(run(steps=steps), batch * length, flops)}


def large_text(name: str, result: dict[str, Any]) -> str:
    """A line's worth."""
    return (
        f"{name}: {1e3 * result['step_secs']['median']:,.1f} ms, {result['tokens_per_sec']:,.0f} tok/s, "
        f"MFU {result['mfu']:.1%} of {result['peak_flops'] / 1e12:,.0f} TFLOP/s ({result['peak_source']})"
    )


def _utilisation(times: list[float], tokens: int, flops: float) -> dict[str, Any]:
    peak, source = peak_flops()
    rate = tokens / spread(times)["median"]
    return {
        "step_secs": spread(times),
        "tokens_per_sec": rate,
        "mfu": rate * flops / peak,
        "peak_flops": peak,
        "peak_source": source,
    }


def _measure_tiny() -> None:
    """Measure both remat settings and the matrix rate."""
    rate = measured_matrix_rate(size=2048)
    result: dict[str, object] = {"matrix_rate_flops": rate}
    texts = []
    for policy in ("full", "none"):
        times = update_seconds(_config(policy), _batch())
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


def update_seconds(
    config: ModelConfig, batch: TokenBatch, *, steps: int = STEPS, loss_chunk: int = 0
) -> list[float]:
    """``step_seconds`` of a language model."""
    model = Transformer(config, single_device())
    return step_seconds(model, next_token_loss(model, loss_chunk=loss_chunk), batch, steps=steps)


def step_seconds(model: Transformer | ScoreModel, loss: Loss, batch: Any, *, steps: int) -> list[float]:
    """Seconds of each timed update."""
    partitioner = single_device()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-5, warmup_steps=0), num_steps=1000)
    state = init_state(model, optimizer, partitioner, seed=0)
    step = compile_step(make_update(loss, optimizer), state, partitioner)

    def update() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return seconds(update, repeats=steps)


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
        "optimiser and clipping": min(update_seconds(config, batch)) - whole,
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
    return random_batch(VOCAB, BATCH, LENGTH)


def random_batch(vocab_size: int, batch: int, length: int) -> TokenBatch:
    """Rows of one document."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (batch, length + 1), dtype=np.int32)
    ones = jnp.ones((batch, length), jnp.int32)
    return TokenBatch(
        jnp.asarray(tokens[:, :-1]),
        jnp.asarray(tokens[:, 1:]),
        ones.astype(jnp.float32),
        ones,
        jnp.broadcast_to(jnp.arange(length), (batch, length)),
        jnp.zeros(batch, jnp.int32),
    )


if __name__ == "__main__":
    main()
