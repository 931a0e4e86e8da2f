"""Parameters read part by part from the tensors of a file."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from llama2_jax.interop.file_leaf import FileLeaf, copy_across
from llama2_jax.interop.imported import LazyTensor
from llama2_jax.sharding.placement import place_parts

LAYERS = np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)  # in our layout: (L, D, F)


def file_leaf(reads: collections.Counter[int], *, stacked: bool = True) -> FileLeaf:
    """A leaf whose file holds each layer transposed, and which counts what is read."""

    def tensor(layer: int) -> LazyTensor:
        def read() -> np.ndarray:
            reads[layer] += 1
            return LAYERS[layer].T

        return LazyTensor((6, 4), LAYERS.dtype, read)

    tensors = tuple(tensor(layer) for layer in range(3 if stacked else 1))
    return FileLeaf(LAYERS.shape if stacked else (4, 6), LAYERS.dtype, tensors, np.transpose, stacked)


@pytest.mark.parametrize("stacked", [True, False])
def test_parts_are_cut_from_the_whole_and_each_tensor_is_read_once(stacked: bool) -> None:
    reads: collections.Counter[int] = collections.Counter()
    inner = [(slice(0, 2), slice(None)), (slice(2, 4), slice(1, 5, 2))]
    parts = [(slice(None), *part) if stacked else part for part in inner]
    found = file_leaf(reads, stacked=stacked).read(parts, np.float32)
    whole = LAYERS if stacked else LAYERS[0]
    for array, part in zip(found, parts, strict=True):
        np.testing.assert_array_equal(array, whole[part])
    assert set(reads.values()) == {1}


def test_layers_that_no_part_holds_are_not_read() -> None:
    reads: collections.Counter[int] = collections.Counter()
    (found,) = file_leaf(reads).read([(slice(1, 3), slice(None), slice(None))], np.float16)
    np.testing.assert_array_equal(found, LAYERS[1:3].astype(np.float16))
    assert found.dtype == np.float16
    assert reads == {1: 1, 2: 1}


def test_asarray_gives_all_values() -> None:
    np.testing.assert_array_equal(np.asarray(file_leaf(collections.Counter())), LAYERS)


@pytest.mark.parametrize(
    "spec", [(), (None, "x"), (None, "x", "y"), (None, None, "y")], ids=["whole", "D", "DF", "F"]
)
def test_devices_get_their_parts_in_one_reading(spec: tuple[str | None, ...]) -> None:
    reads: collections.Counter[int] = collections.Counter()
    leaf = file_leaf(reads)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    placed = place_parts(leaf.shape, sharding, lambda parts: leaf.read(parts, np.float32))
    np.testing.assert_array_equal(np.asarray(placed), LAYERS)
    assert placed.sharding == sharding
    assert reads == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_copying_across_is_copying(order: tuple[int, ...], dtype: type) -> None:
    whole = np.random.default_rng(0).standard_normal((70, 5, 130)).astype(np.float32)
    for source in (whole.transpose(order), whole.transpose(order)[1:, ::2, 3:], whole[:, 0].T, whole[0, 0]):
        target = np.full(source.shape, np.nan, dtype)
        copy_across(target, source)
        np.testing.assert_array_equal(target, source.astype(dtype))


def test_a_reader_that_fails_is_heard() -> None:
    def broken() -> np.ndarray:
        raise OSError("the disk is gone")

    good = file_leaf(collections.Counter())
    leaf = dataclasses.replace(good, tensors=(*good.tensors[:2], LazyTensor((6, 4), LAYERS.dtype, broken)))
    with pytest.raises(OSError, match="the disk is gone"):
        np.asarray(leaf)
