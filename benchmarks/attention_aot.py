"""Attention compiled ahead of time for TPUs that are not there: ours beside splash and XLA.

pip install -e ".[aot]" && python -m benchmarks.attention_aot

For every chip and shape the gradients (bfloat16): seconds to compile, vector memory of the largest of our
kernels, temporary bytes. All of it is what the compiler says; nothing is executed. Prints the table of
docs/kernels.md.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record
from llama2_jax.config import ConfigError
from llama2_jax.kernels import dispatch, flash_tpu
from llama2_jax.kernels.cost import kernel_costs
from llama2_jax.sharding.unattached import CHIPS, compile_for, prepare, tpu_devices, vector_memory_bytes

IMPLEMENTATIONS = ("tpu", "splash", "xla")
HEAD_DIM = 128
SHAPES = {
    "32 heads, 4096": (1, 4096, 32, 32),
    "64/8 heads, 4096": (1, 4096, 64, 8),
    "8 heads, 16384": (1, 16_384, 8, 8),
}


def main() -> None:
    """Compile everything and record the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=list(CHIPS))
    arguments = parser.parse_args()
    prepare()
    tpu_devices(arguments.chips[0])  # without the compiler nothing is recorded
    rows = [
        row_of(gradients, chip=chip, shape=shape, impl=impl)
        for chip in arguments.chips
        for shape in SHAPES
        for impl in IMPLEMENTATIONS
    ]
    print(markdown(rows))
    failed = sum("error" in row for row in rows)
    record(
        "attention_aot",
        {"attention": rows, "skipping": skipping()},
        line=f"{len(rows)} gradients compiled, {failed} of them do not fit",
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table: a line for every chip and shape, numbers of ours / splash / XLA."""
    lines = [
        "| chip | shape | compile, s: ours / splash / XLA | vector memory of ours, MiB "
        "| temporary memory, MiB: ours / splash / XLA |",
        "|---|---|---|---|---|",
    ]
    for start in range(0, len(rows), len(IMPLEMENTATIONS)):
        ours, *others = rows[start : start + len(IMPLEMENTATIONS)]
        secs = " / ".join(f"{row['secs']:.0f}" for row in (ours, *others))
        memory = " / ".join(_mebibytes(row, "temporary_bytes") for row in (ours, *others))
        used = _mebibytes(ours, "vector_memory_bytes", digits=1)
        lines.append(f"| {ours['chip']} | {ours['shape']} | {secs} | {used} | {memory} |")
    return "\n".join(lines)


def _mebibytes(row: dict[str, Any], name: str, *, digits: int = 0) -> str:
    return f"{row[name] / 2**20:,.{digits}f}" if name in row else "does not fit"


def row_of(compile_one: Callable[..., dict[str, Any]], **what: Any) -> dict[str, Any]:
    """Numbers of one compilation, or why it was refused; printed at once."""
    start = time.perf_counter()
    try:
        numbers = compile_one(**what)
    except (jax.errors.JaxRuntimeError, ConfigError) as error:
        numbers = {"error": str(error).splitlines()[0]}
    row = {**what, "secs": round(time.perf_counter() - start, 1), **numbers}
    print(row, flush=True)
    return row


def gradients(*, chip: str, shape: str, impl: str) -> dict[str, Any]:
    """Compile output and gradients of one attention on one device."""
    batch, length, heads, kv_heads = SHAPES[shape]

    def function(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> Any:
        def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            found = dispatch.attention(
                q, k, v, segment_ids_BT=segment_ids, impl=impl, placement=dispatch.unsharded("tpu")
            )
            return found.out_BTNH.astype(jnp.float32).sum()

        return jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)

    q, k = ((batch, length, count, HEAD_DIM) for count in (heads, kv_heads))
    half = jnp.bfloat16
    compiled = compile_for(chip, function, (q, half), (k, half), (k, half), ((batch, length), jnp.int32))
    used = vector_memory_bytes(compiled)
    return {
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "vector_memory_bytes": max(used) if used else None,
    }


def skipping() -> list[dict[str, Any]]:
    """What packed documents of equal length save: work of each kernel against one document per row."""
    q, k = (np.broadcast_to(np.float32(0), (1, 4096, heads, HEAD_DIM)) for heads in (32, 32))
    layout = flash_tpu.TILES.layout(q, k)
    causal = kernel_costs(np.ones((1, 4096), np.int32), layout)
    found = []
    for tokens in (4096, 2048, 1024, 512, 256):
        costs = kernel_costs(1 + np.arange(4096)[None] // tokens, layout)
        for name, cost in costs.items():
            share = cost.flops / causal[name].flops
            row = {"document_tokens": tokens, "kernel": name, "flops_share": share}
            found.append({**row, **cost._asdict()})
    return found


if __name__ == "__main__":
    main()
