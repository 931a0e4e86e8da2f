"""A 7B training step compiled ahead of time for four v5p chips: peak memory with each attention.

pip install -e ".[aot]" && python -m benchmarks.step_aot

At least four packed rows of 4,096 and 16,384 tokens, ``fsdp``, bfloat16, float32 master weights and AdamW,
attention kept by the remat policy. What the compiler says; nothing is executed.
"""

import argparse
from typing import Any

import numpy as np
from jax.sharding import Mesh

from benchmarks.attention_aot import IMPLEMENTATIONS, row_of
from benchmarks.record import record
from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.mesh import AXES
from llama2_jax.sharding.placement import abstract_token_batch
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.sharding.unattached import prepare, tpu_devices
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step, make_update, next_token_loss


def main() -> None:
    """Compile every step and record the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16_384])
    lengths = parser.parse_args().lengths
    prepare()
    rows = [
        row_of(training_step, length=length, impl=impl, remat_policy="attention")
        for length in lengths
        for impl in IMPLEMENTATIONS
    ]
    record("step_aot", {"rows": rows}, line="; ".join(_text(row) for row in rows))


def _text(row: dict[str, Any]) -> str:
    found = row["error"] if "error" in row else f"{row['peak_bytes'] / 2**30:.1f} GiB"
    return f"T {row['length']}, {row['impl']}: {found}"


def training_step(*, impl: str, length: int, remat_policy: str) -> dict[str, Any]:
    """Compile a 7B training step of at least four packed rows on four chips with 95 GiB each."""
    partitioner = Partitioner(Mesh(np.array(tpu_devices("v5p")).reshape(1, 4, 1, 1), AXES), "fsdp")
    config = model_config(
        "7b", max_context=length, compute_dtype="bfloat16", remat_policy=remat_policy, attention_impl=impl
    )
    model = Transformer(config, partitioner)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-4), num_steps=1000)
    state = abstract_state(model, optimizer, partitioner)
    update = make_update(next_token_loss(model, loss_chunk=512), optimizer)
    step = compile_step(update, state, partitioner)
    tokens = abstract_token_batch(partitioner, max(4, 16_384 // length), length)
    memory = step.lower(state, tokens).compile().memory_analysis()  # type: ignore[attr-defined]
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
    }


if __name__ == "__main__":
    main()
