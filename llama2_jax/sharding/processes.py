"""Several processes that run the same programme, each with its own devices.

Every process takes every decision, on the same inputs, and all of them call everything that is computed
on the mesh, in the same order. The first alone writes files (``files.py``), so where one is read back, or
something depends on whether it is there, they wait for each other.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def wait_for_all(place: str) -> None:
    """Return when every process has come to the same ``place``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


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
