"""A 7B training step compiled ahead of time for four v5p chips or one H200: peak memory with each attention.

pip install -e ".[aot]" && python -m benchmarks.step_aot
pip install -e ".[aot-hopper]" && JAX_PLATFORMS=cpu python -m benchmarks.step_aot --chip=h200 --lengths 4096

At least four packed rows of 4,096 and 16,384 tokens, bfloat16, float32 master weights and AdamW (on the v5p
chips sharded by ``fsdp``), attention kept by the remat policy. What the compiler says; nothing is executed.
"""

import argparse
import functools
from typing import Any

import jax
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
from llama2_jax.sharding.unattached_gpu import gpu_devices
from llama2_jax.structs import PreferenceBatch, TokenBatch, TrainState
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import StepFunction, abstract_state, compile_step, make_update, next_token_loss


def main() -> None:
    """Compile every step and record the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chip", default="v5p", choices=["v5p", "h200"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16_384])
    given = parser.parse_args()
    prepare()
    is_gpu = given.chip == "h200"
    compile_step_on = functools.partial(training_step, _one_h200() if is_gpu else _four_v5p())
    rows = [
        row_of(compile_step_on, length=length, impl=impl, remat_policy="attention")
        for length in given.lengths
        for impl in (("hopper", "xla") if is_gpu else IMPLEMENTATIONS)
    ]
    record(f"step_aot_{given.chip}", {"rows": rows}, line="; ".join(_text(row) for row in rows))


def _four_v5p() -> Partitioner:
    return Partitioner(Mesh(np.array(tpu_devices("v5p")).reshape(1, 4, 1, 1), AXES), "fsdp")


def _one_h200() -> Partitioner:
    return Partitioner(Mesh(np.array(gpu_devices("h200")).reshape(1, 1, 1, 1), AXES), "single")


def _text(row: dict[str, Any]) -> str:
    return f"T {row['length']}, {row['impl']}: {peak_of(row)}"


def peak_of(row: dict[str, Any]) -> str:
    """The peak memory in a row of a table, or why there is none."""
    return row["error"] if "error" in row else f"{row['peak_bytes'] / 2**30:.1f} GiB"


def training_step(partitioner: Partitioner, *, impl: str, length: int, remat_policy: str) -> dict[str, Any]:
    """Compile a 7B training step of at least four packed rows."""
    config = model_config(
        "7b", max_context=length, compute_dtype="bfloat16", remat_policy=remat_policy, attention_impl=impl
    )
    model = Transformer(config, partitioner)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-4), num_steps=1000)
    state = abstract_state(model, optimizer, partitioner)
    update = make_update(next_token_loss(model, loss_chunk=512), optimizer)
    step = compile_step(update, state, partitioner)
    tokens = abstract_token_batch(partitioner, max(4, 16_384 // length), length)
    return memory_of(step, state, tokens)


def memory_of(step: StepFunction, state: TrainState, batch: TokenBatch | PreferenceBatch) -> dict[str, int]:
    """Bytes on each device that the compiled step takes; nothing but shapes and places goes in."""
    (mesh,) = {leaf.sharding.mesh for leaf in jax.tree.leaves(batch)}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        memory = step.lower(state, batch).compile().memory_analysis()  # type: ignore[attr-defined]
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
    }


if __name__ == "__main__":
    main()
