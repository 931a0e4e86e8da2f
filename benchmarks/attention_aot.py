"""Attention compiled ahead of time for TPUs that are not there: ours beside splash and XLA.

pip install -e ".[aot]" && python -m benchmarks.attention_aot --step

For every chip and shape the gradients (bfloat16): seconds to compile, vector memory of the largest of our
kernels, temporary bytes. With ``--step`` also whole training steps of the 7B model on four v5p chips: peak
memory per device. All of it is what the compiler says; nothing is executed, so nothing here is a speed.
"""

import argparse
import os
import re
import time
from typing import Any

from llama2_jax.sharding.unattached import CHIPS, ENVIRONMENT, tpu_devices

os.environ.update(ENVIRONMENT)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.record import record
from llama2_jax.kernels import dispatch, flash_tpu
from llama2_jax.kernels.cost import forward_cost
from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.mesh import AXES
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import TokenBatch
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step, make_update, next_token_loss

IMPLEMENTATIONS = ("tpu", "splash", "xla")
HEAD_DIM = 128
SHAPES = {
    "32 heads, 4096": (1, 4096, 32, 32),
    "64/8 heads, 4096": (1, 4096, 64, 8),
    "32 heads, 16384": (1, 16_384, 32, 32),
}
STEP_LENGTHS = (4096, 16_384)


def main() -> None:
    """Compile everything and record the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=list(CHIPS))
    parser.add_argument("--step", action="store_true", help="also the 7B training step")
    arguments = parser.parse_args()
    rows = [
        {"chip": chip, "shape": name, "impl": impl, **_try(gradients, chip, impl, *shape)}
        for chip in arguments.chips
        for name, shape in SHAPES.items()
        for impl in IMPLEMENTATIONS
    ]
    steps = [
        {"length": length, "impl": impl, **_try(training_step, impl, length)}
        for length in (STEP_LENGTHS if arguments.step else ())
        for impl in IMPLEMENTATIONS
    ]
    result = {"attention": rows, "step_7b_v5p_2x2x1": steps, "skipping": skipping()}
    failed = sum("error" in row for row in rows + steps)
    record(
        "attention_aot",
        result,
        line=f"{len(rows)} gradients and {len(steps)} steps compiled, {failed} of them do not fit",
    )
    for row in rows + steps:
        print(row)


def _try(compile_one: Any, *arguments: Any) -> dict[str, Any]:
    """Numbers of one compilation, or why the compiler refused it."""
    start = time.perf_counter()
    try:
        numbers = compile_one(*arguments)
    except jax.errors.JaxRuntimeError as error:
        numbers = {"error": str(error).splitlines()[0]}
    return {"secs": round(time.perf_counter() - start, 1), **numbers}


def gradients(chip: str, impl: str, batch: int, length: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """Compile output and gradients of one attention on one device."""
    mesh = Mesh(np.array(tpu_devices(chip)[:1]), ("one",))
    where = NamedSharding(mesh, PartitionSpec())

    def function(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> Any:
        def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            found = dispatch.attention(q, k, v, segment_ids_BT=segment_ids, impl=impl, platform="tpu")
            return found.out_BTNH.astype(jnp.float32).sum()

        return jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    q = array((batch, length, heads, HEAD_DIM), jnp.bfloat16)
    k = array((batch, length, kv_heads, HEAD_DIM), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(function).lower(q, k, k, array((batch, length), jnp.int32)).compile()
    numbers = {"temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}
    used = [int(size) for size in _VECTOR_MEMORY.findall(compiled.as_text())]
    return numbers | ({"vector_memory_bytes": max(used)} if used else {})


_VECTOR_MEMORY = re.compile(r'tpu_custom_call.*"used_scoped_memory_configs":\[\{[^}]*"size":"(\d+)"')


def training_step(impl: str, length: int) -> dict[str, Any]:
    """Compile a 7B training step, 16,384 tokens of packed rows on four chips with 95 GiB each."""
    partitioner = Partitioner(Mesh(np.array(tpu_devices("v5p")).reshape(1, 4, 1, 1), AXES), "fsdp")
    config = model_config(
        "7b", max_context=length, compute_dtype="bfloat16", remat_policy="attention", attention_impl=impl
    )
    if impl != "tpu":  # their residuals have no name, or another
        config = model_config(
            "7b", max_context=length, compute_dtype="bfloat16", remat_policy="full", attention_impl=impl
        )
    model = Transformer(config, partitioner)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-4), num_steps=1000)
    state = abstract_state(model, optimizer, partitioner)
    step = compile_step(make_update(next_token_loss(model, loss_chunk=512), optimizer), state, partitioner)
    batch = max(4, 16_384 // length)

    def array(name: str) -> jax.ShapeDtypeStruct:
        shape = (batch, length) if name.endswith("_BT") else (batch,)
        dtype = jnp.float32 if name == "loss_mask_BT" else jnp.int32
        sharding = partitioner.activation(name.rsplit("_", 1)[1], shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    tokens = TokenBatch(*(array(name) for name in TokenBatch._fields))
    compiled = step.lower(state, tokens).compile()  # type: ignore[attr-defined]
    memory = compiled.memory_analysis()
    return {
        "remat": config.remat_policy,
        "rows": batch,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
    }


def skipping() -> list[dict[str, Any]]:
    """What packed documents of equal length save: work of the forward pass against one document per row."""
    q, k = (np.broadcast_to(np.float32(0), (1, 4096, heads, HEAD_DIM)) for heads in (32, 32))
    layout = flash_tpu.TILES.layout(q, k)
    causal = forward_cost(np.ones((1, 4096), np.int32), layout)
    found = []
    for mean in (4096, 2048, 1024, 512, 256):
        cost = forward_cost(1 + np.arange(4096)[None] // mean, layout)
        found.append({"document_tokens": mean, "flops_share": cost.flops / causal.flops, **cost._asdict()})
    return found


if __name__ == "__main__":
    main()
