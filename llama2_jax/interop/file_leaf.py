"""A parameter of ours whose values still lie in the files of a checkpoint."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from llama2_jax.interop.imported import LazyTensor

Part = tuple[slice, ...]
"""What a device holds of an array: one slice per dim."""

THREADS = min(8, os.cpu_count() or 1)  # as many tensors are in memory at once, where they must be decoded
COLUMNS = 32


@dataclasses.dataclass(frozen=True)
class FileLeaf:
    """One leaf of our parameter tree, read part by part.

    A 70B model never sits whole in the memory of a host because of this: each process reads what its
    devices hold, leaf by leaf, and nothing else of a file than the tensors at hand.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    tensors: tuple[LazyTensor, ...]  # one per layer if the leaf is stacked, else one
    from_file: Callable[[np.ndarray], np.ndarray]  # a tensor of the file in our layout, without the layer dim
    stacked: bool

    def read(self, parts: Sequence[Part], dtype: Any) -> list[np.ndarray]:
        """The values of each part, cast; a tensor of the file is read once for all of them."""
        whole = self.shape if self.stacked else (1, *self.shape)
        parts = [part if self.stacked else (slice(None), *part) for part in parts]
        sizes = [[len(range(size)[cut]) for size, cut in zip(whole, part, strict=True)] for part in parts]
        arrays = [np.empty(size, dtype) for size in sizes]
        layers = [range(whole[0])[part[0]] for part in parts]

        def fill(layer: int) -> None:
            values = self.from_file(self.tensors[layer].read())
            for array, held, part in zip(arrays, layers, parts, strict=True):
                if layer in held:
                    copy_across(array[held.index(layer)], values[part[1:]])

        with ThreadPoolExecutor(THREADS) as pool:  # each fills places of its own
            wanted = [layer for layer in range(whole[0]) if any(layer in held for held in layers)]
            list(pool.map(fill, wanted))  # raises what one of them raised
        return arrays if self.stacked else [array[0] for array in arrays]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All values, as ``np.asarray`` asks for them."""
        del copy  # always a new array
        return self.read([(slice(None),) * len(self.shape)], dtype or self.dtype)[0]


def copy_across(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source``, for a target in C order and a source in any.

    Where the two run across each other, numpy reads a line of memory for each value and takes more than twice
    as long: here a few columns at a time, so that lines are still in the cache for their other values.
    """
    along = int(np.argmin(np.abs(source.strides))) if source.ndim else 0  # the dim that the source runs along
    if source.ndim < 2 or along == source.ndim - 1:
        target[...] = source
        return
    for between in np.ndindex(*source.shape[along + 1 : -1]):
        for start in range(0, source.shape[-1], COLUMNS):
            at = (*(slice(None),) * (along + 1), *between, slice(start, start + COLUMNS))
            target[at] = source[at]
