"""Greedy decoding: new tokens per second, and how near the machine's roof.

make smollm2-files && python -m benchmarks.decode
python -m benchmarks.decode --config=7b

7b: random weights in bfloat16 on one GPU, batch 1 (prompt 128, 256 new) and batch 32 (prompt 512, 1,024 new).
Its roof is reading all weights, and the keys and values of the mean context, at the rate of a copy.

SmolLM2-135M (the default):

Prompt 64 tokens, 64 new ones, batch 1, 16 and 64; the time includes the prefill. The roof
is the prefill's matrix products at the measured float32 matrix rate, then for each step the larger of
reading every parameter once at the measured memory rate and the step's matrix products.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention import in_parallel
from benchmarks.decode_attention import measured_copy_rate
from benchmarks.record import record, seconds, spread
from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.config import kv_cache_bytes_per_token, model_config, parameter_count
from llama2_jax.model.transformer import Transformer, decoding_model, init_params, unstack
from llama2_jax.sharding.rules import single_device
from llama2_jax.train.flops import measured_matrix_rate

PROMPT, NEW = 64, 64


def main() -> None:
    """Measure every batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="smollm2", choices=["smollm2", "7b"])
    parser.add_argument("--impl", default="auto", help="attention, of 7b")
    parser.add_argument("--checkpoint", default=None, help="default: the fetched SmolLM2-135M")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.config == "7b":
        found = large(arguments.impl)
        record("decode_7b", found, line="; ".join(large_texts(found)))
        return
    # these need packages that a machine for the 7B need not have
    from llama2_jax.pretrained import for_decoding, load
    from tools.fetch_assets import asset_path

    path = arguments.checkpoint or asset_path("smollm2")
    loaded = for_decoding(load(path, dtype=arguments.dtype, compute_dtype=arguments.dtype))
    matrix_rate, memory_rate = measured_matrix_rate(size=2048), measured_memory_rate()
    parameters = parameter_count(loaded.config)
    parameter_bytes = parameters * jnp.dtype(arguments.dtype).itemsize
    result: dict[str, object] = {"matrix_rate_flops": matrix_rate, "memory_rate_bytes": memory_rate}
    texts = []
    for batch in arguments.batches:
        prompts = np.random.default_rng(0).integers(0, loaded.config.vocab_size, (batch, PROMPT)).tolist()
        sampling = SamplingConfig(max_new_tokens=NEW, temperature=0)

        def run(prompts: list[list[int]] = prompts, sampling: SamplingConfig = sampling) -> np.ndarray:
            return generate(loaded.model, loaded.params, prompts, sampling).tokens_BC

        times = seconds(run, repeats=arguments.repeats, warmup=1)
        rates = spread([batch * NEW / value for value in times])
        prefill_secs = 2 * parameters * batch * PROMPT / matrix_rate
        step_secs = max(parameter_bytes / memory_rate, 2 * parameters * batch / matrix_rate)
        roof_secs = prefill_secs + NEW * step_secs
        share = roof_secs / spread(times)["median"]
        result[f"batch_{batch}"] = {"tokens_per_sec": rates, "roof_share_median": share}
        texts.append(f"batch {batch}: {rates['median']:,.1f} tok/s ({share:.0%} of roof)")
    record(f"decode_{arguments.dtype}", result, line=f"{arguments.dtype}: " + "; ".join(texts))


def large(
    impl: str,
    *,
    size: str = "7b",
    settings: tuple[tuple[int, int, int], ...] = ((1, 128, 256), (32, 512, 1024)),
    copy_bytes: int = 2**30,
) -> dict[str, Any]:
    """Tokens per second of a model with random weights, for every (batch, prompt tokens, new tokens)."""
    copy_rate = measured_copy_rate(copy_bytes)
    context = max(prompt + new for _, prompt, new in settings)
    config = model_config(size, max_context=context, compute_dtype="bfloat16", attention_impl=impl)
    stacked = Transformer(config, single_device())
    half = jax.jit(lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params(stacked, key)))
    model, params = decoding_model(stacked), unstack(half(jax.random.key(0)))

    def run(batch: int, prompt: int, new: int) -> np.ndarray:
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt)).tolist()
        sampling = SamplingConfig(max_new_tokens=new, temperature=0)
        return generate(model, params, prompts, sampling).tokens_BC

    runs: list[Callable[[], np.ndarray]] = [functools.partial(run, *setting) for setting in settings]
    in_parallel(runs)  # compiles
    rows = []
    for (batch, prompt, new), run_it in zip(settings, runs, strict=True):
        # few runs: each is as many steps as new tokens
        times = seconds(run_it, repeats=5 if batch == 1 else 1, warmup=0)
        cached = kv_cache_bytes_per_token(config) * batch * (prompt + new / 2)
        roof_secs = new * (2 * parameter_count(config) + cached) / copy_rate
        rows.append(
            {
                "batch": batch,
                "prompt": prompt,
                "new": new,
                "secs": spread(times),
                "tokens_per_sec": batch * new / spread(times)["median"],
                "roof_share": roof_secs / spread(times)["median"],
            }
        )
    return {"copy_rate_bytes": copy_rate, "rows": rows}


def large_texts(result: dict[str, Any]) -> list[str]:
    """A line's worth of every row; the prefill is part of the time."""
    return [
        f"batch {row['batch']}, {row['prompt']} + {row['new']}: {row['tokens_per_sec']:,.0f} tok/s "
        f"({row['roof_share']:.0%} of roof)"
        for row in result["rows"]
    ]


def measured_memory_rate(megabytes: int = 512) -> float:
    """Bytes per second of the fastest pass that reads a large float32 array."""
    array = jnp.ones((megabytes * 2**20 // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    return array.nbytes / min(seconds(lambda: total(array), repeats=5))


if __name__ == "__main__":
    main()
