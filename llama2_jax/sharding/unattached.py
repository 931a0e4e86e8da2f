"""TPUs that are not attached: programs are compiled for them by the real compiler (extra ``aot``).

What comes out says whether a program fits and how long it takes to compile, on any machine. Call ``prepare``
first.
"""

import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llama2_jax.config import ConfigError, require_choice

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # nobody asks a cloud what machine this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # these two silence complaints
    "TPU_WORKER_HOSTNAMES": "localhost",
}
CHIPS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
"""The smallest slice of every generation."""


def prepare() -> None:
    """Set what the compiler reads when it is loaded, and keep jax on the CPU; before any device is used."""
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


def tpu_devices(chip: str, topology: str | None = None, *, num_slices: int = 1) -> list[Any]:
    """Devices of slices of ``CHIPS``, or of any other topology (``v5p:4x4x8``), to make a mesh of.

    Raises:
      ConfigError: there is no such chip, or the compiler is not installed.
    """
    require_choice("chip", chip, CHIPS)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU compiler is not installed; pip install 'llama2_jax[aot]' brings it")
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        topology_name=topology or CHIPS[chip], platform="tpu", num_slices=num_slices
    )
    return list(found.devices)


def compile_for(chip: str, function: Callable[..., Any], *arrays: tuple[tuple[int, ...], Any]) -> Any:
    """Compile a function of arrays of these (shape, dtype) for one device of the chip."""
    return compile_on(tpu_devices(chip)[0], function, *arrays)


def compile_on(device: Any, function: Callable[..., Any], *arrays: tuple[tuple[int, ...], Any]) -> Any:
    """The same for any device, attached or not."""
    mesh = jax.sharding.Mesh(np.array([device]), ("one",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in arrays]
    # Pallas asks the mesh for what chip it compiles
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).lower(*arguments).compile()


def vector_memory_bytes(compiled: Any) -> list[int]:
    """Vector memory that each Pallas kernel of a compiled program takes."""
    return [int(size) for size in _VECTOR_MEMORY.findall(compiled.as_text())]


_VECTOR_MEMORY = re.compile(r'tpu_custom_call.*"used_scoped_memory_configs":\[\{[^}]*"size":"(\d+)"')
