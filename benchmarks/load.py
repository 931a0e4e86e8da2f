"""Seconds and memory to open a Hugging Face folder, written here with random weights.

python -m benchmarks.load --devices=8 --dtype=float32
"""

import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from benchmarks.record import own_memory, record
from llama2_jax.config import require
from llama2_jax.interop.huggingface import save_huggingface
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import abstract_params
from llama2_jax.pretrained import load
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.rules import make_partitioner

FLAGS = flags.FLAGS
flags.DEFINE_integer("devices", 1, "CPU devices that the model is split over")
flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "of the parameters in memory; the file has bfloat16"
)

CONFIG = ModelConfig(
    vocab_size=32_000, model_width=2048, num_layers=16, num_heads=16, num_kv_heads=16, feed_forward_width=5504
)


def _write(folder: Path) -> None:
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: generator.random(leaf.shape, np.float32).astype(jax.numpy.bfloat16),
        abstract_params(CONFIG),
    )
    save_huggingface(folder, CONFIG, params, tokenizer=None)


class _Peak(threading.Thread):
    """The most memory seen until ``done`` is set."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.mebibytes = threading.Event(), 0.0

    def run(self) -> None:
        """Look fifty times a second."""
        while not self.done.wait(0.02):
            self.mebibytes = max(self.mebibytes, own_memory())


def main(_: list[str]) -> None:
    """Open once."""
    jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    require(len(jax.devices()) == FLAGS.devices, "this benchmark wants CPU devices; set JAX_PLATFORMS=cpu")
    partitioner = make_partitioner(MeshConfig(preset="fsdp", fsdp=FLAGS.devices))
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "model")
        peak, start, before = _Peak(), time.perf_counter(), own_memory()
        peak.start()
        loaded = load(Path(folder) / "model", dtype=FLAGS.dtype, partitioner=partitioner)
        jax.block_until_ready(loaded.params)
        secs = time.perf_counter() - start
        peak.done.set()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params)) / 2**20
    measured = {"secs": secs, "held_mib": held, "peak_mib": peak.mebibytes - before}
    record(
        f"load_{FLAGS.devices}_{FLAGS.dtype}",
        measured,
        line=f"{secs:.1f} s, {measured['peak_mib']:.0f} MiB at most for {held:.0f} MiB of parameters",
    )


if __name__ == "__main__":
    app.run(main)
