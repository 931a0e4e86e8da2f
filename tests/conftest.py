"""Eight fake CPU devices for every test, and quick compilation; set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is LLVM's, much less of it with its optimisations off. XLA's own passes, which decide
# what is computed in which order, stay as they are. What the environment says comes last and wins.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
).strip()
os.environ["MPLBACKEND"] = "Agg"  # no window, ever

from llama2_jax.sharding import unattached

unattached.prepare()  # for the tests that compile for TPUs
