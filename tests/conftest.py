"""Eight fake CPU devices for every test; set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["MPLBACKEND"] = "Agg"  # no window, ever

from llama2_jax.sharding import unattached

unattached.prepare()  # for the tests that compile for TPUs
