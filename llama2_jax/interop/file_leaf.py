"""A parameter of ours whose values still lie in the files of a checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llama2_jax.interop.imported import LazyTensor

Part = tuple[slice, ...]
"""What a device holds of an array: one slice per dim."""


@dataclasses.dataclass(frozen=True)
class FileLeaf:
    """One leaf of our parameter tree, read part by part.

    A 70B model never sits whole in the memory of a host because of this: each process reads what its
    devices hold, leaf by leaf, and nothing else of a file than the tensor at hand.
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
        for layer, tensor in enumerate(self.tensors):
            layers = [range(whole[0])[part[0]] for part in parts]
            if not any(layer in held for held in layers):
                continue
            values = self.from_file(tensor.read())
            for array, held, part in zip(arrays, layers, parts, strict=True):
                if layer in held:
                    array[held.index(layer)] = values[part[1:]]
        return arrays if self.stacked else [array[0] for array in arrays]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All values, as ``np.asarray`` asks for them."""
        del copy  # always a new array
        return self.read([(slice(None),) * len(self.shape)], dtype or self.dtype)[0]
