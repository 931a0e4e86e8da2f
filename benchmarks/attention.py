"""Attention with gradients on this machine: every implementation that runs here, side by side.

python -m benchmarks.attention

Rows of one document, and of packed documents of a quarter of the row. The share of the plain form's time says
what tiles and skipping give.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record, seconds, spread
from llama2_jax.kernels import dispatch

BATCH, HEADS, KV_HEADS, HEAD_DIM = 2, 8, 4, 64


def main() -> None:
    """Measure every length, layout and implementation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--impl", nargs="+", default=["reference", "xla", "chunked"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for length in arguments.lengths:
        for documents in (1, 4):
            for impl in arguments.impl:
                times = gradient_seconds(
                    impl, length, documents, dtype=arguments.dtype, repeats=arguments.repeats
                )
                rows.append({"length": length, "documents": documents, "impl": impl, "secs": spread(times)})
    texts = [
        f"T {row['length']}, {row['documents']} documents, {row['impl']}: "
        f"{1e3 * row['secs']['median']:,.1f} ms"
        for row in rows
    ]
    record(f"attention_{arguments.dtype}", {"rows": rows}, line="; ".join(texts))


def gradient_seconds(impl: str, length: int, documents: int, *, dtype: str, repeats: int) -> list[float]:
    """Seconds of output and gradients of a batch."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((BATCH, length, heads, HEAD_DIM)), dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    segment_ids = jnp.asarray(np.tile(1 + np.arange(length) * documents // length, (BATCH, 1)))

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return dispatch.attention(q, k, v, segment_ids_BT=segment_ids, impl=impl).out_BTNH.sum()

    gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    return seconds(lambda: gradients(q, k, v), repeats=repeats)


if __name__ == "__main__":
    main()
