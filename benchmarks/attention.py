"""Attention on this machine: is it right, and how fast, ours beside what else runs here.

python -m benchmarks.attention

On a GPU beside cuDNN, jax's Triton kernel, XLA and the loop in jnp, on a CPU beside the plain form and XLA.
Numbers before times: errors against float32, NaN in padding, two runs bitwise equal. A failure there is
recorded and nothing of that implementation is measured. Times are medians on random inputs that together are
larger than the cache of the chip. FLOPs as published figures count them: 4 B N T^2 H forward, halved because
causal, and 2.5 times that backward.
"""

import argparse
import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record, rotated_seconds, spread
from llama2_jax.kernels import dispatch
from llama2_jax.train.flops import measured_matrix_rate

CACHE_BYTES = 4 * 50 * 2**20  # inputs in turn take more than the second-level cache, several times over


class Shape(NamedTuple):
    """What is measured."""

    name: str
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    mean_document: int = 0  # tokens; 0: a row is one document
    dtype: str = "bfloat16"

    @property
    def forward_flops(self) -> float:
        """Of plain causal rows, whatever documents would save."""
        return 2.0 * self.batch * self.heads * self.length**2 * self.head_dim


class Plan(NamedTuple):
    """What is worth measuring on a platform."""

    shapes: tuple[Shape, ...]
    implementations: tuple[str, ...]
    of_first_shape: tuple[str, ...]  # slow to compile or to run, and measured once for that
    calls: int  # per run, see ``rotated_seconds``
    matrix_size: int

    def only(self, *implementations: str) -> "Plan":
        """Without all others."""
        every, first = (
            tuple(name for name in names if name in implementations)
            for names in (self.implementations, self.of_first_shape)
        )
        return self._replace(implementations=every, of_first_shape=first)


GPU = Plan(
    (
        Shape("mha", 4, 4096, 32, 32),
        Shape("gqa", 4, 4096, 64, 8),
        Shape("packed", 4, 4096, 32, 32, mean_document=1024),
        Shape("mha_d64", 4, 4096, 32, 32, head_dim=64),
        Shape("mha_16k", 1, 16_384, 32, 32),
    ),
    ("hopper", "cudnn", "triton"),
    of_first_shape=("xla", "chunked"),
    calls=10,
    matrix_size=8192,
)
CPU = Plan(
    tuple(
        Shape(f"{length}{'_packed' if share else ''}", 2, length, 8, 4, 64, length // 4 * share, "float32")
        for length in (256, 1024, 2048)
        for share in (0, 1)
    ),
    ("chunked", "xla", "reference"),
    of_first_shape=(),
    calls=1,
    matrix_size=2048,
)


def main() -> None:
    """Check, measure and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    result = measure(repeats=parser.parse_args().repeats)
    record("attention", result, line="; ".join(texts(result)))


def measure(plan: Plan | None = None, *, repeats: int = 20) -> dict[str, Any]:
    """Everything, as it goes into the result file."""
    plan = plan or (CPU if jax.default_backend() == "cpu" else GPU)
    rate = measured_matrix_rate(plan.matrix_size, dtype=plan.shapes[0].dtype)
    everything = plan.implementations + plan.of_first_shape
    checked = try_in_parallel(numerics, [(impl,) for impl in everything])
    checks = dict(zip(everything, checked, strict=True))
    cases = [
        (shape, impl)
        for number, shape in enumerate(plan.shapes)
        for impl in (plan.implementations if number else everything)
        if "error" not in checks[impl]
    ]

    def programs(shape: Shape, impl: str) -> dict[str, Any]:
        return {"programs": compiled(_attend(impl, has_documents=shape.mean_document > 0), shape)}

    ready = try_in_parallel(programs, cases)
    rows = []
    for (shape, impl), found in zip(cases, ready, strict=True):
        if "error" not in found:
            is_slow = impl in plan.of_first_shape  # so that starting it does not count
            calls = 1 if is_slow else plan.calls
            found = tried(functools.partial(speed, found["programs"], shape, repeats=repeats, calls=calls))
        rows.append({"shape": shape._asdict(), "impl": impl, **found})
    return {"matrix_rate_flops": rate, "numerics": checks, "rows": rows}


def tried(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result, or what went wrong: one that fails does not take the others with it."""
    try:
        return function()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def try_in_parallel(function: Callable[..., dict[str, Any]], cases: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What the function gives for every case, or what went wrong with that one."""
    return in_parallel([functools.partial(tried, functools.partial(function, *case)) for case in cases])


def numerics(impl: str) -> dict[str, Any]:
    """Relative errors of output and gradients against float32, and those of the plain form in bfloat16.

    Raises:
      AssertionError: more than twice (gradients three times) the plain form's error, or runs that differ.
    """
    cases = ((513, 8, 64), (1000, 1, 128), (2048, 2, 128))
    found = in_parallel([functools.partial(_errors, impl, *case) for case in cases])
    return {"relative_error_and_plain_forms": dict(itertools.chain(*(errors.items() for errors in found)))}


def _errors(impl: str, length: int, groups: int, head_dim: int) -> dict[str, list[float]]:
    has_documents = impl != "cudnn"
    if not has_documents:
        length = -(-length // 128) * 128  # it does not take every length
    exact, plain = (
        _plain_gradients(length, groups, head_dim, dtype, has_documents) for dtype in ("float32", "bfloat16")
    )
    given = _inputs(length, groups, head_dim, "bfloat16", poison=has_documents)
    gradients = _gradients(impl, has_documents)
    ours, again = (gradients(*given) for _ in range(2))
    errors = {}
    for name, a, b, c, twin in zip(("out", "dq", "dk", "dv"), ours, plain, exact, again, strict=True):
        a32, b32 = (np.asarray(x).astype(np.float32) for x in (a, b))
        error, allowed = (float(np.linalg.norm(x - c) / np.linalg.norm(c)) for x in (a32, b32))
        errors[f"T {length} G {groups} H {head_dim} {name}"] = [error, allowed]
        assert error <= (2 if name == "out" else 3) * allowed + 1e-6, (name, length, error, allowed)
        if impl == "hopper":
            assert bool((a == twin).all()), f"{name} differs between two runs"
    return errors


def speed(programs: list[Any], shape: Shape, *, repeats: int, calls: int) -> dict[str, Any]:
    """Seconds and FLOP/s of the forward pass and of the backward pass (both together, less the forward)."""
    inputs = random_inputs(shape)
    forward, both = (
        spread(rotated_seconds(program, inputs, repeats=repeats, calls=calls)) for program in programs
    )
    backward_secs = both["median"] - forward["median"]
    return {
        "seen_share": _seen_share(np.asarray(inputs[0][3])),
        "forward_secs": forward,
        "forward_and_backward_secs": both,
        "forward_flops_per_sec": shape.forward_flops / forward["median"],
        "backward_flops_per_sec": 2.5 * shape.forward_flops / backward_secs,
    }


def compiled(
    attend: Callable[..., jax.Array],
    shape: Shape,
    wanted: tuple[tuple[int, ...], ...] = ((), (0, 1, 2)),
) -> list[Any]:
    """Programs of ``random_inputs``: the output, and gradients with respect to these of q, k, v."""
    sizes = jax.eval_shape(lambda: random_inputs(shape)[0])
    return [_with_gradients(attend, of).lower(*sizes).compile() for of in wanted]


def in_parallel(functions: list[Callable[[], Any]]) -> list[Any]:
    """What the functions give, run in threads: compilers take most of a minute one after another."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def texts(result: dict[str, Any]) -> list[str]:
    """A line's worth of every row."""
    lines = [f"matrix rate {result['matrix_rate_flops'] / 1e9:,.0f} GFLOP/s"]
    for impl, found in result["numerics"].items():
        lines.append(f"{impl} numerics: {found.get('error', 'right')[:200]}")
    for row in result["rows"]:
        what = f"{row['shape']['name']} {row['impl']}"
        if "error" in row:
            lines.append(f"{what}: {row['error'][:200]}")
        else:
            rates = "/".join(f"{row[f'{way}_flops_per_sec'] / 1e9:,.0f}" for way in ("forward", "backward"))
            secs = row["forward_and_backward_secs"]["median"]
            lines.append(f"{what}: {1e3 * secs:,.2f} ms, {rates} GFLOP/s")
    return lines


def _attend(impl: str, *, has_documents: bool) -> Callable[..., jax.Array]:
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return dispatch.attention(q, k, v, segment_ids_BT=ids if has_documents else None, impl=impl).out_BTNH

    return attend


@functools.cache
def _plain_gradients(
    length: int, groups: int, head_dim: int, dtype: str, has_documents: bool
) -> tuple[np.ndarray, ...]:
    """On the host: a CPU compiles this in a second, a GPU tries out products for half a minute."""
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        given = _inputs(length, groups, head_dim, dtype, poison=False)
        return tuple(map(np.asarray, _gradients("reference", has_documents)(*given)))


def _gradients(impl: str, has_documents: bool) -> Callable[..., tuple[jax.Array, ...]]:
    return _with_gradients(_attend(impl, has_documents=has_documents))


def _with_gradients(attend: Callable[..., jax.Array], of: tuple[int, ...] = (0, 1, 2)) -> Any:
    """Output and gradients (of some of q, k, v) of q, k, v, segment ids and the gradient of the output."""

    def run(q: Any, k: Any, v: Any, ids: Any, d_out: Any) -> tuple[jax.Array, ...]:
        if not of:
            return (attend(q, k, v, ids),)
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, ids), q, k, v)
        gradients = pull(d_out)
        return out, *(gradients[i] for i in of)

    return jax.jit(run)


def _inputs(length: int, groups: int, head_dim: int, dtype: str, *, poison: bool) -> tuple[Any, ...]:
    """Two rows of documents cut at random; the same numbers, rounded to bfloat16, in every dtype."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, heads, head_dim) for heads in (2 * groups, 2, 2, 2 * groups)]
    arrays = [rng.standard_normal(shape).astype(jnp.bfloat16) for shape in shapes]
    ids = 1 + np.cumsum(rng.random((2, length)) < 4 / length, axis=1).astype(np.int32)
    ids[0, length - length // 8 :] = 0
    if poison:
        arrays = [np.where(ids[..., None, None] == 0, np.nan, array).astype(jnp.bfloat16) for array in arrays]
    q, k, v, d_out = (jnp.asarray(array, dtype) for array in arrays)
    return q, k, v, jnp.asarray(ids), d_out


def random_inputs(shape: Shape) -> list[tuple[Any, ...]]:
    """q, k, v, segment ids and the gradient of the output, often enough to be larger than the cache."""
    rng = np.random.default_rng(0)
    bytes_each = (
        jnp.dtype(shape.dtype).itemsize
        * shape.batch
        * shape.length
        * shape.head_dim
        * (2 * shape.heads + 2 * shape.kv_heads)
    )
    ids = jnp.asarray(_documents(rng, shape), jnp.int32)
    q_shape, kv_shape = (
        (shape.batch, shape.length, heads, shape.head_dim) for heads in (shape.heads, shape.kv_heads)
    )
    inputs = []
    for index in range(max(2, -(-CACHE_BYTES // bytes_each))):
        keys = jax.random.split(jax.random.key(index), 4)
        q, k, v, d_out = (
            jax.random.normal(key, size, shape.dtype)
            for key, size in zip(keys, (q_shape, kv_shape, kv_shape, q_shape), strict=True)
        )
        inputs.append((q, k, v, ids, d_out))
    return inputs


def _seen_share(ids_BT: np.ndarray) -> float:
    """Pairs of a causal row that are of one document."""
    lengths = np.concatenate([np.unique(ids, return_counts=True)[1] for ids in ids_BT]).astype(np.float64)
    whole = ids_BT.shape[0] * ids_BT.shape[1] * (ids_BT.shape[1] + 1)
    return float((lengths * (lengths + 1)).sum() / whole)


def _documents(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Segment ids of full rows whose documents have exponential lengths."""
    if not shape.mean_document:
        return np.ones((shape.batch, shape.length))
    starts = rng.random((shape.batch, shape.length)) < 1 / shape.mean_document
    return 1 + np.cumsum(starts, axis=1)


if __name__ == "__main__":
    main()
