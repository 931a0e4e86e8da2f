"""Which tiles of the Hopper kernels are fastest: every variant that may be chosen, on one Hopper GPU.

python -m benchmarks.hopper_tiles

Variants are data in ``kernels/flash_hopper.py`` and ``kernels/decode_hopper.py``; the first of each is the
default. The result file is what a change of their order comes from.
"""

import dataclasses
import functools
from typing import Any

import jax

from benchmarks import attention, decode_attention
from benchmarks.attention import tried
from benchmarks.record import record, rotated_seconds, spread
from llama2_jax.kernels.ranges import document_ranges

SHAPES = ("mha", "gqa", "packed", "mha_d64")
CACHES = ("mha", "gqa", "gqa_ragged")


def main() -> None:
    """Measure and record."""
    result = measure()
    record("hopper_tiles", result, line="; ".join(texts(result)))


def measure() -> dict[str, Any]:
    """Seconds of every variant and shape, as they go into the result file."""
    from llama2_jax.kernels import decode_hopper, flash_hopper

    rows = [
        {
            "shape": shape.name,
            "variant": dataclasses.asdict(blocks),
            **tried(functools.partial(_rows, shape, blocks)),
        }
        for shape in attention.GPU.shapes
        if shape.name in SHAPES
        for blocks in flash_hopper.VARIANTS[shape.head_dim]
    ]
    caches = [
        {
            "cache": cache.name,
            "variant": dataclasses.asdict(split),
            **tried(functools.partial(_cache, cache, split)),
        }
        for cache in decode_attention.CACHES
        if cache.name in CACHES
        for split in decode_hopper.VARIANTS[cache.head_dim]
    ]
    return {"rows": rows, "caches": caches}


def texts(result: dict[str, Any]) -> list[str]:
    """A line's worth of every variant."""
    lines = []
    for row in [*result["rows"], *result["caches"]]:
        name, variant = row.get("shape") or row.get("cache"), tuple(row["variant"].values())
        times = [
            f"{key} {1e3 * row[key]['median']:.3f} ms" for key in ("forward", "both", "secs") if key in row
        ]
        lines.append(f"{name} {variant}: {', '.join(times) or row['error'][:200]}")
    return lines


def _rows(shape: attention.Shape, blocks: Any) -> dict[str, Any]:
    from llama2_jax.kernels import flash_hopper

    def attend(q: Any, k: Any, v: Any, ids: Any) -> Any:
        ranges, scale = document_ranges(ids), shape.head_dim**-0.5
        return flash_hopper.attention(q, k, v, ranges, scale=scale, blocks=blocks)[0]

    forward, both = attention.forward_and_both(attend, attention.random_inputs(shape))
    return {"forward": spread(forward), "both": spread(both)}


def _cache(cache: decode_attention.Cache, split: Any) -> dict[str, Any]:
    from llama2_jax.kernels import decode_hopper

    def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return decode_hopper.decode_attention(
            q[:, 0], k, v, mask[:, 0], scale=cache.head_dim**-0.5, split=split
        )

    inputs = [decode_attention.random_cache(cache, seed) for seed in range(2)]
    return {"secs": spread(rotated_seconds(jax.jit(attend), inputs))}


if __name__ == "__main__":
    main()
