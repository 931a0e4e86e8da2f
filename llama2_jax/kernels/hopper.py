"""What the Hopper kernels have in common: where numbers lie, who moves them, and who waits for whom.

A block of threads is three warpgroups. The last one copies tiles to shared memory and does nothing else; the
two others compute, 64 rows each. What is kept during a whole loop comes first, what the loop goes over flows
through rings of slots: a slot has a barrier for "full", on which the computing warpgroups wait, and one for
"empty", on which the copying one waits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

COMPUTE = 2  # warpgroups that compute
PART = 64  # rows of each: what one matrix instruction of a warpgroup covers
# Registers of a thread: 128 * (2 * 240 + 24) fill the register file.
COMPUTE_REGISTERS, COPY_REGISTERS = 240, 24

Ref = Any
"""A reference to an array in global or shared memory, to barriers, or to an accumulator."""

BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
"""How a vector lies in registers that belongs to the rows, or to the columns, of a product."""


class Kept(NamedTuple):
    """What stays for the whole loop, a part for each warpgroup that computes."""

    full: Ref
    arrays: tuple[Ref, ...]

    @classmethod
    def of(cls, *arrays: tuple[tuple[int, ...], Any]) -> "Kept":
        """Scratch for arrays of these (shape of a part, dtype)."""
        barrier = plgpu.Barrier(num_arrivals=len(arrays), num_barriers=COMPUTE)
        return cls(barrier, tuple(shared((COMPUTE, *shape), dtype) for shape, dtype in arrays))

    def fill(self, sources: Callable[[int], list[Ref]]) -> None:
        """Copy the sources of every part."""
        for part in range(COMPUTE):
            for source, array in zip(sources(part), self.arrays, strict=True):
                plgpu.copy_gmem_to_smem(source, array.at[part], self.full.at[part])


class Ring(NamedTuple):
    """Slots that are filled and emptied one after another."""

    full: Ref
    empty: Ref
    arrays: tuple[Ref, ...]

    @classmethod
    def of(cls, slots: int, *arrays: tuple[tuple[int, ...], Any]) -> "Ring":
        """Scratch for arrays of these (shape of a slot, dtype)."""
        full = plgpu.Barrier(num_arrivals=len(arrays), num_barriers=slots)
        empty = plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=slots)
        return cls(full, empty, tuple(shared((slots, *shape), dtype) for shape, dtype in arrays))

    @property
    def slots(self) -> int:
        """How many there are."""
        return self.full.shape[0]

    def slot(self, step: Any) -> Any:
        """Used at a step."""
        return lax.rem(step, jnp.int32(self.slots))

    def refs(self, step: Any) -> tuple[Ref, ...]:
        """The arrays of a step."""
        return tuple(array.at[self.slot(step)] for array in self.arrays)

    def await_full(self, step: Any) -> None:
        """Wait until the slot of a step holds what was put there."""
        plgpu.barrier_wait(self.full.at[self.slot(step)])

    def await_empty(self, step: Any) -> None:
        """Wait until all have read the slot of a step."""
        plgpu.barrier_wait(self.empty.at[self.slot(step)])

    def put(self, step: Any, *sources: Ref, rows: Any = None) -> None:
        """Copy to the slot of a step, or to these rows of it, once it is empty."""
        pl.when(step >= self.slots)(functools.partial(self.await_empty, step))
        for source, ref in zip(sources, self.refs(step), strict=True):
            to = ref if rows is None else ref.at[rows]
            plgpu.copy_gmem_to_smem(source, to, self.full.at[self.slot(step)])

    def drain(self, steps: Any) -> None:
        """Wait until what so many steps have put is read."""
        pl.loop(jnp.maximum(steps - self.slots, 0), steps)(self.await_empty)

    def release(self, step: Any) -> None:
        """This warpgroup has read the slot."""
        plgpu.barrier_arrive(self.empty.at[self.slot(step)])


def shared(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory; what the tensor cores read lies in swizzled tiles."""
    is_operand = jnp.dtype(dtype).itemsize == 2
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)) if is_operand else ()
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def roles(copy: Callable[[], None], compute: Callable[[Any], None]) -> None:
    """Give the warpgroups their work; ``compute`` takes the number of its part."""
    part = lax.axis_index("warpgroup")

    @pl.when(part == COMPUTE)
    def _copy() -> None:
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
        copy()

    @pl.when(part < COMPUTE)
    def _compute() -> None:
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        compute(part)


def add(products: Callable[..., None], *sums: jax.Array) -> tuple[jax.Array, ...]:
    """Sums after ``products``, a function of their accumulators that starts products into them.

    A function of its own because Pallas' interpreter does not know it; tests put another in its place.
    """
    return pl.run_state(lambda refs: products(*refs))(tuple(map(plgpu.ACC.init, sums)))


def accumulate(function: Callable[..., Any], shape: tuple[int, int], number: int) -> Any:
    """Run a function of so many accumulators that are 0."""
    return pl.run_scoped(function, *[plgpu.ACC(shape, jnp.float32)] * number)


def zeros(shape: tuple[int, ...]) -> jax.Array:
    """What an accumulator starts from."""
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)


def write(*arrays: tuple[jax.Array, Ref, Ref]) -> None:
    """Write values to global memory by way of shared memory."""
    for value, staged, _ in arrays:
        staged[...] = value.astype(staged.dtype)
    plgpu.commit_smem()
    for _, staged, to in arrays:
        plgpu.copy_smem_to_gmem(staged, to)
    plgpu.wait_smem_to_gmem(0)


def launch(
    body: Callable[..., None], arrays: tuple[jax.Array, ...], *, out: Any, scratch: Any, grid: dict[str, int]
) -> Any:
    """Run a kernel over a grid; blocks of threads start along its last axis first."""
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=COMPUTE + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
            reduction_scratch_bytes=0,  # rows are reduced within a warp
        ),
    )(*arrays)
