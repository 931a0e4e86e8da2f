"""Several processes that run the same program, each with its own devices.

Every process takes every decision, on the same inputs, and all of them call everything that is computed
on the mesh, in the same order. The first alone writes files (``files.py``), so where one is read back, or
something depends on whether it is there, they wait for each other.
"""

import contextlib
import functools
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama2_jax.config import ConfigError


def wait_for_all(place: str) -> None:
    """Return when every process has come to the same ``place``, which may name what was decided there.

    Raises:
      ConfigError: another is elsewhere.
    """
    if jax.process_count() == 1:
        return
    try:
        multihost_utils.sync_global_devices(place)
    except AssertionError as error:
        raise ConfigError(
            f"the processes of this run do not agree; process {jax.process_index()} is at: {place}. All need "
            "the same command, and see the same files under the same paths"
        ) from error


def require_agreement(what: str, value: Any) -> None:
    """Check that all processes have the same ``value``, of plain Python: what each read from its files, say.

    Raises:
      ConfigError: another has a different one.
    """
    if jax.process_count() > 1:
        wait_for_all(f"{what} {zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}")


def require_same_rows(what: str, rows: Sequence[Sequence[int]]) -> None:
    """``require_agreement`` on ids, of which there may be many."""
    if jax.process_count() > 1:
        checksum = 0
        for row in rows:
            checksum = zlib.crc32(np.array([len(row), *row], np.int32).tobytes(), checksum)
        wait_for_all(f"{what} {checksum:08x}")


@contextlib.contextmanager
def files_at_rest(folder: str | Path) -> Iterator[None]:
    """A block that reads what the run itself writes in ``folder``, so that every process reads the same."""
    wait_for_all(f"{folder} was written")
    yield
    wait_for_all(f"{folder} was read")


def on_host(tree: Any) -> Any:
    """The whole of every array as numpy, on every process, also of arrays that lie on several of them."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def _whole(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def any_of_all(flag: bool) -> jax.Array:
    """Whether ``flag`` is set in any process, computed by the devices when they come to it."""
    own = np.full(jax.local_device_count(), flag)
    return _any_over_devices()(jax.make_array_from_process_local_data(_one_for_each_device(), own))


@functools.cache
def _one_for_each_device() -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()), ("devices",)), PartitionSpec("devices"))


@functools.cache
def _any_over_devices() -> Any:
    return jax.jit(jnp.any, out_shardings=NamedSharding(_one_for_each_device().mesh, PartitionSpec()))
