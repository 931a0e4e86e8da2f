"""Compile the Hopper attention kernels for an H200 that is not there, and print what the compiler says.

JAX_PLATFORMS=cpu python -m tools.hopper_gates [--head_dims=64,128] [--dtypes=bfloat16,float16] [--groups=1,8]

One line of JSON for each kernel of each variant (with jax 0.12 for each that differs from those before). Exit
code 1 if one of them spills registers, has products that wait for one another or that do not run on the
tensor cores of a warpgroup, takes more shared memory than there is, or if memory grows faster than T.
"""

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llama2_jax.config import require_choice
from llama2_jax.kernels import decode_hopper, flash_hopper
from llama2_jax.kernels.ranges import document_ranges
from llama2_jax.sharding.unattached_gpu import KernelFacts, compile_for_gpu, kernel_facts
from tools import command_line

BATCH, KV_HEADS = 2, 4
LENGTHS = (2048, 8192)
ODD = 1000  # no multiple of any tile
SHARED_BYTES = 232_448  # that a block of threads may have


class Case(NamedTuple):
    """A program with one variant of kernels in it."""

    compile_it: Callable[..., Any]  # of the case and a length
    head_dim: int
    dtype: str
    groups: int
    variant: Any
    is_default: bool  # of the variants, which one is taken unless another is faster


def cases(head_dims: list[int], dtypes: list[str], groups: list[int]) -> Iterator[Case]:
    """Every variant that may be chosen."""
    for head_dim, dtype, group in itertools.product(head_dims, dtypes, groups):
        for compile_it, module in ((compile_gradients, flash_hopper), (compile_decoding, decode_hopper)):
            for number, variant in enumerate(module.VARIANTS[head_dim]):
                yield Case(compile_it, head_dim, dtype, group, variant, is_default=number == 0)


def compile_gradients(case: Case, length: int) -> Any:
    """Output, log-sum-exp and gradients of packed documents."""
    scale = case.head_dim**-0.5

    def function(q: Any, k: Any, v: Any, segments: Any, d_out: Any, d_lse: Any) -> Any:
        ranges = document_ranges(segments)
        attend = functools.partial(flash_hopper.attention, ranges=ranges, scale=scale, blocks=case.variant)
        found, pull = jax.vjp(lambda q, k, v: attend(q, k, v), q, k, v)
        return found, pull((d_out, d_lse))

    heads = case.groups * KV_HEADS
    q = (BATCH, length, heads, case.head_dim), case.dtype
    kv = (BATCH, length, KV_HEADS, case.head_dim), case.dtype
    segments, lse = ((BATCH, length), jnp.int32), ((BATCH, length, heads), jnp.float32)
    return compile_for_gpu("h200", function, q, kv, kv, segments, q, lse)


def compile_decoding(case: Case, length: int) -> Any:
    """One token per row against a cache of so many slots."""
    attend = functools.partial(decode_hopper.decode_attention, scale=case.head_dim**-0.5, split=case.variant)
    q = (BATCH, case.groups * KV_HEADS, case.head_dim), case.dtype
    cache = (BATCH, KV_HEADS, length, case.head_dim), case.dtype
    return compile_for_gpu("h200", attend, q, cache, cache, ((BATCH, length), jnp.bool_))


def failures(facts: KernelFacts) -> list[str]:
    """The gates that a kernel does not pass."""
    found = []
    if facts.spill_bytes:
        found.append("spills")
    if facts.is_serialized or facts.warnings:
        found.append("warnings")
    if not facts.hgmma or facts.hmma:
        found.append("slow products")
    if not 0 < facts.shared_bytes <= SHARED_BYTES:
        found.append("shared memory")
    return found


def lines(case: Case) -> Iterator[dict[str, Any]]:
    """What is printed of one case."""
    start = time.monotonic()
    compiled, facts = kernel_facts(lambda: case.compile_it(case, LENGTHS[0]))
    seconds = time.monotonic() - start
    temporary = [compiled.memory_analysis().temp_size_in_bytes]
    if case.is_default:  # memory is that of inputs and results of kernels, whatever their tiles
        case.compile_it(case, ODD)
        temporary.append(case.compile_it(case, LENGTHS[1]).memory_analysis().temp_size_in_bytes)
    grows = temporary[-1] > 1.1 * temporary[0] * LENGTHS[1] / LENGTHS[0]
    for one in facts:
        yield {
            "jax": jax.__version__,
            "head_dim": case.head_dim,
            "dtype": case.dtype,
            "groups": case.groups,
            "variant": vars(case.variant),
            **one._asdict(),
            "temporary_bytes": temporary,
            "compile_seconds": round(seconds, 1),
            "fails": failures(one) + ["memory"] * grows,
        }


def main() -> None:
    """Print all lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head_dims", default="64,128")
    parser.add_argument("--dtypes", default="bfloat16,float16")
    parser.add_argument("--groups", default="1,8")
    given = parser.parse_args()
    head_dims, groups = ([int(one) for one in text.split(",")] for text in (given.head_dims, given.groups))
    for head_dim in head_dims:
        require_choice("--head_dims", head_dim, flash_hopper.VARIANTS)
    is_clean = True
    for case in cases(head_dims, given.dtypes.split(","), groups):
        for line in lines(case):
            is_clean = is_clean and not line["fails"]
            print(json.dumps(line), flush=True)
    sys.exit(0 if is_clean else 1)


if __name__ == "__main__":
    command_line.run(main)
