"""Greedy decoding of SmolLM2-135M: new tokens per second, and how near the machine's roof.

make smollm2-files && python -m benchmarks.decode

Prompt 64 tokens, 64 new ones, batch 1, 16 and 64; the time includes the prefill. The roof
is the prefill's matrix products at the measured float32 matrix rate, then for each step the larger of
reading every parameter once at the measured memory rate and the step's matrix products.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record, seconds, spread
from llama2_jax.generate.decode import generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.config import parameter_count
from llama2_jax.pretrained import for_decoding, load
from llama2_jax.train.flops import measured_matrix_rate
from tools.fetch_assets import asset_path

PROMPT, NEW = 64, 64


def main() -> None:
    """Measure every batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=None, help="default: the fetched SmolLM2-135M")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
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


def measured_memory_rate(megabytes: int = 512) -> float:
    """Bytes per second of the fastest pass that reads a large float32 array."""
    array = jnp.ones((megabytes * 2**20 // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    return array.nbytes / min(seconds(lambda: total(array), repeats=5))


if __name__ == "__main__":
    main()
