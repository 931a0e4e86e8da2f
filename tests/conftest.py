"""Eight fake CPU devices for every test; set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
# for the tests that compile for TPUs; JAX reads the platform when it is imported
from llama2_jax.sharding.unattached import ENVIRONMENT

os.environ.update(ENVIRONMENT)
os.environ["MPLBACKEND"] = "Agg"  # no window, ever
