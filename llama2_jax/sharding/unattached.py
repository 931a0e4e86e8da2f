"""TPUs that are not attached: programs are compiled for them by the real compiler (extra ``aot``).

What comes out says whether a program fits and how long it takes to compile, on any machine. The compiler
reads the environment when jax starts, so ``ENVIRONMENT`` must be set before.
"""

import importlib.util
from typing import Any

from llama2_jax.config import ConfigError, require_choice

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # nothing looks for a TPU
    "TPU_SKIP_MDS_QUERY": "1",  # nor asks a cloud what machine this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # these two silence complaints
    "TPU_WORKER_HOSTNAMES": "localhost",
}
CHIPS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
"""The smallest slice of every generation."""


def tpu_devices(chip: str, topology: str | None = None) -> list[Any]:
    """Devices of a slice of ``CHIPS``, or of any other topology (``v5p:4x4x8``), to make a mesh of.

    Raises:
      ConfigError: there is no such chip, or the compiler is not installed.
    """
    require_choice("chip", chip, CHIPS)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU compiler is not installed; pip install 'llama2_jax[aot]' brings it")
    from jax.experimental import topologies

    found = topologies.get_topology_desc(topology_name=topology or CHIPS[chip], platform="tpu")
    return list(found.devices)
