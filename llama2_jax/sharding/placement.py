"""From host memory to devices: batches, and trees that already have a sharding."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import ConfigError
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


def place_batch(partitioner: Partitioner, batch: Batch) -> Batch:
    """Make global arrays from this process's rows of a batch (all rows when there is one process)."""
    processes = jax.process_count()
    local = {name: np.asarray(value) for name, value in batch._asdict().items()}
    shapes = {name: (value.shape[0] * processes, *value.shape[1:]) for name, value in local.items()}
    shardings = {name: partitioner.activation(name.rsplit("_", 1)[1], shapes[name]) for name in local}
    # one call for all: a call for each takes four times as long
    placed = jax.make_array_from_process_local_data(shardings, local, shapes)
    return type(batch)(*(placed[name] for name in local))


def abstract_token_batch(partitioner: Partitioner, batch_size: int, length: int) -> TokenBatch:
    """Shapes and shardings of a batch, without memory."""

    def array(name: str) -> jax.ShapeDtypeStruct:
        dims = name.rsplit("_", 1)[1]
        shape = (batch_size, length)[: len(dims)]
        dtype = jnp.float32 if name == "loss_mask_BT" else jnp.int32
        return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.activation(dims, shape))

    return TokenBatch(*(array(name) for name in TokenBatch._fields))


def place_tree(partitioner: Partitioner, tree: Any) -> Any:
    """Put a host tree of parameters on the mesh, each leaf where the preset says."""
    return jax.tree.map(jax.device_put, tree, partitioner.tree(tree))


def process_slice() -> dict[str, int]:
    """Which rows of a global batch this process loads, as keyword arguments of the loader."""
    return {"host_index": jax.process_index(), "host_count": jax.process_count()}
