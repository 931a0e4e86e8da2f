"""Which tiles of the Hopper kernels are fastest: every variant that may be chosen, on one Hopper GPU.

python -m benchmarks.hopper --parts tiles

Variants are data in ``kernels/flash_hopper.py`` and ``kernels/decode_hopper.py``; the first of each is the
default. The result file is what a change of their order comes from.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import attention, decode_attention
from benchmarks.attention import tried, try_in_parallel
from benchmarks.record import rotated_seconds, spread
from llama2_jax.kernels.ranges import document_ranges

SHAPES = ("mha", "gqa", "packed", "mha_d64")
CACHES = ("mha", "gqa", "gqa_ragged")


def measure() -> dict[str, Any]:
    """Seconds of every variant and shape, as they go into the result file."""
    from llama2_jax.kernels import decode_hopper, flash_hopper

    shapes = [
        (shape, blocks)
        for shape in attention.GPU.shapes
        if shape.name in SHAPES
        for blocks in flash_hopper.VARIANTS[shape.head_dim]
    ]
    caches = [
        (cache, split)
        for cache in decode_attention.CACHES
        if cache.name in CACHES
        for split in decode_hopper.VARIANTS[cache.head_dim]
    ]

    def rows(
        cases: list[Any], compile_it: Callable[..., dict[str, Any]], time_it: Callable[..., dict[str, Any]]
    ) -> list[dict[str, Any]]:
        ready = try_in_parallel(compile_it, cases)
        return [
            {
                "name": case[0].name,
                "variant": dataclasses.asdict(case[1]),
                **(found if "error" in found else tried(functools.partial(time_it, case[0], **found))),
            }
            for case, found in zip(cases, ready, strict=True)
        ]

    return {
        "rows": rows(shapes, _compile_shape, _time_shape),
        "caches": rows(caches, _compile_cache, _time_cache),
    }


def texts(result: dict[str, Any]) -> list[str]:
    """A line's worth of every variant."""
    lines = []
    for row in [*result["rows"], *result["caches"]]:
        variant = tuple(row["variant"].values())
        times = [
            f"{key} {1e3 * row[key]['median']:.3f} ms"
            for key in ("forward", "forward_and_dq", "forward_and_dkv", "secs")
            if key in row
        ]
        lines.append(f"{row['name']} {variant}: {', '.join(times) or row['error'][:200]}")
    return lines


def _compile_shape(shape: attention.Shape, blocks: Any) -> dict[str, Any]:
    from llama2_jax.kernels import flash_hopper

    def attend(q: Any, k: Any, v: Any, ids: Any) -> Any:
        ranges, scale = document_ranges(ids), shape.head_dim**-0.5
        return flash_hopper.attention(q, k, v, ranges, scale=scale, blocks=blocks)[0]

    # a kernel whose results nobody wants is left out
    return {"programs": attention.compiled(attend, shape, ((), (0,), (1, 2)))}


def _time_shape(shape: attention.Shape, programs: list[Any]) -> dict[str, Any]:
    """Seconds of the forward pass, and of it with one of the two kernels of the backward pass."""
    inputs = attention.random_inputs(shape)
    return {
        name: spread(rotated_seconds(program, inputs))
        for name, program in zip(("forward", "forward_and_dq", "forward_and_dkv"), programs, strict=True)
    }


def _compile_cache(cache: decode_attention.Cache, split: Any) -> dict[str, Any]:
    from llama2_jax.kernels import decode_hopper

    def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return decode_hopper.decode_attention(
            q[:, 0], k, v, mask[:, 0], scale=cache.head_dim**-0.5, split=split
        )

    sizes = jax.eval_shape(functools.partial(decode_attention.random_cache, cache, 0))
    return {"program": jax.jit(attend).lower(*sizes).compile()}


def _time_cache(cache: decode_attention.Cache, program: Any) -> dict[str, Any]:
    inputs = [decode_attention.random_cache(cache, seed) for seed in range(2)]
    return {"secs": spread(rotated_seconds(program, inputs))}
