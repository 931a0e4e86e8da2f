"""Eight fake CPU devices for every test, and quick compilation; set before anything imports jax."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is LLVM's, much less of it with its optimisations off. XLA's own passes, which decide
# what is computed in which order, stay as they are. What the environment says comes last and wins.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
).strip()
os.environ["MPLBACKEND"] = "Agg"  # no window, ever

import jax
import pytest

from llama2_jax.sharding import unattached

unattached.prepare()  # for the tests that compile for TPUs

MAPPINGS = Path("/proc/self/maps")  # of memory; Linux lets a process have 65,530


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs() -> Iterator[None]:
    """Every compiled program keeps three mappings, one that decodes 200; at the limit the process aborts."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
