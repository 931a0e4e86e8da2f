"""One new token per row against a cache, on one GPU: share of the rate at which the memory can be copied.

python -m benchmarks.decode_attention

32 rows, a cache of 4,096 slots, full and ragged, for the heads of a 7B and a 70B layer, bfloat16. What must
be read is the keys and values of the slots that hold a token. Errors against float32 come first.
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention import tried, try_in_parallel
from benchmarks.record import record, rotated_seconds, spread
from llama2_jax.kernels import dispatch

IMPLEMENTATIONS = ("hopper", "xla")  # the second is plain jnp, as for every other name


class Cache(NamedTuple):
    """What is measured."""

    name: str
    heads: int
    kv_heads: int
    is_ragged: bool = False
    batch: int = 32
    slots: int = 4096
    head_dim: int = 128


CACHES = (
    Cache("mha", 32, 32),
    Cache("gqa", 64, 8),
    Cache("mha_ragged", 32, 32, is_ragged=True),
    Cache("gqa_ragged", 64, 8, is_ragged=True),
)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--impl", nargs="+", default=IMPLEMENTATIONS)
    result = measure(implementations=tuple(parser.parse_args().impl))
    record("decode_attention", result, line="; ".join(texts(result)))


def measure(
    caches: tuple[Cache, ...] = CACHES,
    implementations: tuple[str, ...] = IMPLEMENTATIONS,
    *,
    copy_bytes: int = 2**30,
    calls: int = 10,
) -> dict[str, Any]:
    """Everything, as it goes into the result file."""
    copy_rate = measured_copy_rate(copy_bytes)
    cases = [(cache, impl) for cache in caches for impl in implementations]
    checks = try_in_parallel(_checked, cases)
    rows = []
    for (cache, impl), found in zip(cases, checks, strict=True):
        if "error" not in found:
            attend = found.pop("attend")
            found |= tried(functools.partial(_speed, attend, cache, copy_rate, calls))
        rows.append({"cache": cache._asdict(), "impl": impl, **found})
    return {"copy_rate_bytes": copy_rate, "rows": rows}


def measured_copy_rate(size: int) -> float:
    """Bytes per second, read and written, of a pass over an array of ``size`` bytes."""
    array = jax.random.normal(jax.random.key(0), (size // 4,))
    negate = jax.jit(jnp.negative)
    return 2 * size / min(rotated_seconds(negate, [(array,)], repeats=10))


def texts(result: dict[str, Any]) -> list[str]:
    """A line's worth of every row."""
    lines = [f"copy {result['copy_rate_bytes'] / 1e9:,.0f} GB/s"]
    for row in result["rows"]:
        what = f"{row['cache']['name']} {row['impl']}"
        if "error" in row:
            lines.append(f"{what}: {row['error'][:200]}")
        else:
            lines.append(
                f"{what}: {1e3 * row['secs']['median']:.3f} ms, {row['copy_rate_share']:.0%} of copying"
            )
    return lines


def _checked(cache: Cache, impl: str) -> dict[str, Any]:
    """The implementation, compiled, once its error is known to be as small as it must be."""
    given = random_cache(cache, 0)
    attend = jax.jit(functools.partial(dispatch.decode, impl=impl))
    error, allowed = _error(attend, given)
    assert error <= 2 * allowed + 1e-6, f"relative error {error}, of the plain form {allowed}"
    again = [attend(*given) for _ in range(2)]
    assert bool((again[0] == again[1]).all()), "two runs differ"
    return {"attend": attend, "relative_error": error, "plain_forms_error": allowed}


def _speed(attend: Any, cache: Cache, copy_rate: float, calls: int) -> dict[str, Any]:
    inputs = [random_cache(cache, seed) for seed in range(2)]
    times = spread(rotated_seconds(attend, inputs, calls=calls))
    used = sum(int(mask.sum()) for *_, mask in inputs) / len(inputs)  # slots with a token
    read = 2 * 2 * cache.kv_heads * cache.head_dim * used
    return {"secs": times, "read_bytes": read, "copy_rate_share": read / times["median"] / copy_rate}


def _error(attend: Any, given: tuple[Any, ...]) -> tuple[float, float]:
    """Relative errors of a few rows: of the implementation, and of the plain form in the same dtype."""
    few = tuple(array[:2] for array in given)
    plain = jax.jit(functools.partial(dispatch.decode, impl="reference"))
    # on the host, which compiles faster
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        q, k, v, mask = map(np.asarray, few)
        rounded = np.asarray(plain(q, k, v, mask))
        exact = np.asarray(plain(*(array.astype(np.float32) for array in (q, k, v)), mask))

    def error(found: Any) -> float:
        difference = np.asarray(found).astype(np.float32) - exact
        return float(np.linalg.norm(difference) / np.linalg.norm(exact))

    return error(attend(*few)), error(rounded)


def random_cache(cache: Cache, seed: int) -> tuple[Any, ...]:
    """q, k, v and the mask of slots that hold a token."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (cache.batch, cache.kv_heads, cache.slots, cache.head_dim)
    q = jax.random.normal(keys[0], (cache.batch, 1, cache.heads, cache.head_dim), jnp.bfloat16)
    k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys[1:])
    lengths = np.full(cache.batch, cache.slots)
    if cache.is_ragged:
        lengths = np.random.default_rng(seed).integers(cache.slots // 16, cache.slots, cache.batch)
    mask_BS = np.arange(cache.slots) < lengths[:, None]
    return q, k, v, jnp.asarray(mask_BS[:, None])


if __name__ == "__main__":
    main()
