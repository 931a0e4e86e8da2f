"""Programs compiled once per test session, also across runs and subprocesses that build them anew."""

import atexit
import os
import shutil
import tempfile

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def share() -> None:
    """Switch JAX's compilation cache on, in a folder of this session, unless it is on already."""
    if VARIABLE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="compilations-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {VARIABLE: folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    os.environ.update(settings)  # for subprocesses; this process has read its environment already
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
