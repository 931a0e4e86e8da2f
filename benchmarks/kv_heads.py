"""Generation with many, one or a few key/value heads: latency and throughput by batch (Figure 24, ABL-4).

python -m benchmarks.kv_heads
python -m benchmarks.kv_heads --size=34b --dtype=bfloat16 --tensor=8 --max_batch=2048

MHA, MQA and GQA of one size, with the paper's wider feed-forward layers, random weights and prompts of every
context; 128 new tokens; the batch is doubled until memory ends or ``--max_batch`` is reached. As in the paper
latency is that of a whole generation, prefill included, over its new tokens, and throughput is rows per
second (QPS): its end points fit that, with 512 rows of 256 tokens and 64 of 2k before its MHA ran out of
memory. With fewer key/value heads than devices along ``tensor`` every device holds all of them (ABL-5).
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record, seconds, spread
from experiments.checkpoint_flags import tensor_parallel
from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.config import (
    SIZES,
    ModelConfig,
    kv_cache_bytes_per_token,
    model_config,
    parameter_count,
)
from llama2_jax.model.transformer import Transformer, decoding_model, init_params, unstack
from llama2_jax.model.variants import attention_variants

NEW = 128


def main() -> None:
    """Measure every variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="mini", choices=list(SIZES))
    parser.add_argument("--grouped_kv_heads", type=int, default=0, help="of GQA; 0: 2 of mini, 8 of others")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--max_batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tensor", type=int, default=1, help="devices that each model is split over")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    result = {}
    for name, config in configs(
        args.size, args.grouped_kv_heads, args.dtype, max(args.contexts) + NEW
    ).items():
        result[name] = {
            "parameters": parameter_count(config),
            "cache_bytes_per_token": kv_cache_bytes_per_token(
                config, bytes_per_value=jnp.dtype(args.dtype).itemsize
            ),
            "contexts": measure(config, args.contexts, args.max_batch, args.tensor, args.repeats),
        }
    record(f"kv_heads_{args.size}", result, line="; ".join(texts(result)))


def configs(size: str, grouped_kv_heads: int, dtype: str, context: int) -> dict[str, ModelConfig]:
    """The variants of a size."""
    shape = SIZES[size]
    variants = attention_variants(
        model_width=shape["model_width"],
        num_heads=shape["num_heads"],
        grouped_kv_heads=grouped_kv_heads or (2 if size == "mini" else 8),
        multiple_of=256 if shape["model_width"] >= 4096 else 32,
    )
    return {
        name: model_config(size, **changes, max_context=context, compute_dtype=dtype)
        for name, changes in variants.items()
    }


def measure(
    config: ModelConfig, contexts: list[int], max_batch: int, tensor: int, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Rows of every context, by its length."""
    stacked = Transformer(config, tensor_parallel(tensor))
    dtype = jnp.dtype(config.compute_dtype)
    params = jax.jit(lambda key: jax.tree.map(lambda x: x.astype(dtype), init_params(stacked, key)))(
        jax.random.key(0)
    )
    model, params = decoding_model(stacked), unstack(params)

    def run(context: int, batch: int) -> np.ndarray:
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch, context)).tolist()
        return generate(model, params, prompts, SamplingConfig(max_new_tokens=NEW, temperature=0)).tokens_BC

    return {
        str(context): doubled(functools.partial(run, context), max_batch=max_batch, repeats=repeats)
        for context in contexts
    }


def doubled(run: Callable[[int], Any], *, max_batch: int, repeats: int) -> list[dict[str, Any]]:
    """A row for batch 1, 2, 4 and so on, up to the limit or the one that finds no memory."""
    rows: list[dict[str, Any]] = []
    batch = 1
    while batch <= max_batch:
        try:
            times = seconds(functools.partial(run, batch), repeats=repeats, warmup=1)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return [*rows, {"batch": batch, "out_of_memory": True}]
        rows.append(
            {
                "batch": batch,
                "ms_per_token": spread([1e3 * time / NEW for time in times]),
                "queries_per_sec": spread([batch / time for time in times]),
            }
        )
        batch *= 2
    return rows


def texts(result: dict[str, Any]) -> list[str]:
    """A line's worth of every variant and context: its largest batch."""
    return [
        f"{name}, context {context}: batch {row['batch']} {row['ms_per_token']['median']:.1f} ms per token, "
        f"{row['queries_per_sec']['median']:.2f} QPS"
        for name, own in result.items()
        for context, rows in own["contexts"].items()
        for row in [row for row in rows if "ms_per_token" in row][-1:]
    ]


if __name__ == "__main__":
    main()
