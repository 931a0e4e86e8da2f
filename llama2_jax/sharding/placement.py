"""From host memory to devices: batches, and trees that already have a sharding."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import ConfigError, require
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import TokenBatch

Batch = TypeVar("Batch", bound=NamedTuple)
"""A NamedTuple of arrays whose names end in their dims, rows first: ``TokenBatch``, ``PreferenceBatch``."""


def check_batch_size(
    partitioner: Partitioner, batch_size: int, *, accumulation_steps: int = 1, field: str = "data.batch_size"
) -> None:
    """Raise ``ConfigError`` unless every device gets whole rows in every micro-batch."""
    shards = partitioner.batch_shards
    unit = shards * accumulation_steps
    if batch_size % unit:
        raise ConfigError(
            f"{field} = {batch_size} is not divisible by {unit} "
            f"(data*fsdp = {shards} devices times train.accumulation_steps = {accumulation_steps}); "
            f"set config.{field} to a multiple of {unit}"
        )


def process_slice(partitioner: Partitioner) -> dict[str, int]:
    """Which rows of a global batch this process loads, as keyword arguments of the loader.

    Raises:
      ConfigError: see ``row_block``.
    """
    index, count = _own_block(partitioner)
    return {"host_index": index, "host_count": count}


@functools.cache
def _own_block(partitioner: Partitioner) -> tuple[int, int]:
    owners = [device.process_index for device in partitioner.mesh.devices.flat]  # the axes of rows come first
    return row_block(np.reshape(owners, (partitioner.batch_shards, -1)), jax.process_index())


def row_block(owners: np.ndarray, process: int) -> tuple[int, int]:
    """Which block of a batch's rows the devices of a process work on, and how many blocks there are.

    Processes whose devices split a row among them, along ``tensor`` or ``sequence``, load the same block.

    Args:
      owners: the process of each device, (parts that the rows are split into, devices of a part).

    Raises:
      ConfigError: processes that share some of their rows but not all.
    """
    parts = {owner: frozenset(np.flatnonzero((owners == owner).any(axis=1))) for owner in np.unique(owners)}
    blocks = sorted(set(parts.values()), key=min)
    require(
        sum(map(len, blocks)) == len(owners) and len(set(map(len, blocks))) == 1,
        "the devices of some processes share a part of their rows with others, where all or none is wanted; "
        "choose another config.mesh: best if tensor * sequence is at most the devices of a process",
    )
    return blocks.index(parts[process]), len(blocks)


def place_batch(partitioner: Partitioner, batch: Batch) -> Batch:
    """Make global arrays from this process's rows of a batch (``process_slice``)."""
    _, blocks = _own_block(partitioner)
    local = {name: np.asarray(value) for name, value in batch._asdict().items() if value is not None}
    shapes = {name: (value.shape[0] * blocks, *value.shape[1:]) for name, value in local.items()}
    shardings = {name: partitioner.activation(name.rsplit("_", 1)[1], shapes[name]) for name in local}
    # one call for all: a call for each takes four times as long
    placed = jax.make_array_from_process_local_data(shardings, local, shapes)
    return batch._replace(**placed)


def place_rows(partitioner: Partitioner, batch: Batch) -> Batch:
    """Make global arrays of a batch that every process holds whole."""
    places = batch_places(partitioner, batch)
    return batch._replace(
        **{name: place_leaf(np.asarray(getattr(batch, name)), place) for name, place in places.items()}
    )


def batch_places(partitioner: Partitioner, batch: NamedTuple) -> dict[str, jax.sharding.NamedSharding]:
    """Where each array of a whole batch lies, by the dims in its name."""
    return {
        name: partitioner.activation(name.rsplit("_", 1)[1], value.shape)
        for name, value in batch._asdict().items()
        if value is not None
    }


def abstract_token_batch(partitioner: Partitioner, batch_size: int, length: int) -> TokenBatch:
    """Shapes and shardings of a batch, without memory."""

    def array(name: str) -> jax.ShapeDtypeStruct:
        dims = name.rsplit("_", 1)[1]
        shape = (batch_size, length)[: len(dims)]
        dtype = jnp.float32 if name == "loss_mask_BT" else jnp.int32
        return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.activation(dims, shape))

    return TokenBatch(*(array(name) for name in TokenBatch._fields))


def place_tree(partitioner: Partitioner, tree: Any) -> Any:
    """Put a tree of parameters on the mesh, each leaf where the preset says."""
    return jax.tree.map(place_leaf, tree, partitioner.tree(tree))


def place_leaf(leaf: Any, sharding: jax.sharding.Sharding, dtype: Any = None) -> jax.Array:
    """An array in its place, cast; of one in host memory each process takes what its devices hold."""
    dtype = leaf.dtype if dtype is None else jnp.dtype(dtype)
    if jax.process_count() > 1 and isinstance(leaf, np.ndarray):
        return jax.make_array_from_callback(leaf.shape, sharding, lambda part: leaf[part].astype(dtype))
    return jax.device_put(leaf if leaf.dtype == dtype else leaf.astype(dtype), sharding)


def place_parts(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    read: Callable[[list[tuple[slice, ...]]], list[np.ndarray]],
) -> jax.Array:
    """An array in its place; ``read`` gives the parts that this process holds, one for all replicas."""
    held = sharding.addressable_devices_indices_map(shape)
    parts = {str(part): part for part in held.values()}
    values = dict(zip(parts, read(list(parts.values())), strict=True))
    arrays = [jax.device_put(values[str(part)], device) for device, part in held.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)
