"""The pretraining updates of the paper's configs compiled ahead of time for pods: memory per chip.

pip install -e ".[aot]" && python -m benchmarks.pods_aot
pip install -e ".[aot-hopper]" && JAX_PLATFORMS=cpu python -m benchmarks.pods_aot --chip=h200  # or a100

What ``experiments.pretrain --config=configs/pretrain.py:SIZE`` compiles there (4,194,304 tokens in a
batch, bfloat16, float32 master weights and AdamW, full remat), for chips that are not attached. What the
compiler says; nothing is executed.
"""

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.attention_aot import row_of
from benchmarks.record import record
from benchmarks.step_aot import memory_of, peak_of
from configs.pretrain import get_config
from llama2_jax.config import build
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import abstract_token_batch
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.sharding.unattached import prepare, tpu_devices
from llama2_jax.sharding.unattached_gpu import CHIPS, gpu_devices
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step, make_update, next_token_loss

# size, pods (slices, or hosts of eight GPUs), their topology, and what changes in the config
Pod = tuple[str, int, str, dict[str, Any]]
PODS: dict[str, list[Pod]] = {
    "tpu": [
        ("7b", 1, "v5e:16x16", {}),
        ("13b", 1, "v5e:16x16", {}),
        ("34b", 1, "v5p:4x4x8", {}),
        ("70b", 1, "v5p:4x4x8", {}),
        (
            "70b",
            1,
            "v5p:4x4x8",
            {"mesh.preset": "fsdp_tensor", "mesh.tensor": 4, "train.accumulation_steps": 4},
        ),
        ("70b", 2, "v5p:4x4x8", {"mesh.data": 2}),
    ],
    "h200": [
        ("7b", 1, "h200:8", {"train.accumulation_steps": 16}),
        ("13b", 1, "h200:8", {"train.accumulation_steps": 16}),
        ("34b", 4, "h200:8", {"train.accumulation_steps": 4}),
        ("70b", 8, "h200:8", {}),
        ("70b", 8, "h200:8", {"mesh.data": 2, "mesh.fsdp": 32, "train.accumulation_steps": 2}),
    ],
    "a100": [  # of 80 GB
        ("7b", 1, "a100:8", {"train.accumulation_steps": 16}),
        ("13b", 1, "a100:8", {"train.accumulation_steps": 16}),
        ("34b", 4, "a100:8", {"train.accumulation_steps": 4}),
        ("70b", 8, "a100:8", {"train.accumulation_steps": 4}),
    ],
}


def main() -> None:
    """Compile every update and record the table."""
    compile_all("pods_aot", PODS, compile_update, peak_of, description=__doc__)


def compile_all(
    name: str,
    table: dict[str, list[Pod]],
    compile_one: Callable[..., dict[str, Any]],
    numbers_of: Callable[[dict[str, Any]], str],
    *,
    description: str | None,
) -> None:
    """Compile for every pod with the chip of the command line, and record the rows.

    Args:
      description: the docstring of the program, for its ``--help``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", default="tpu", choices=table)
    chip = parser.parse_args().chip
    prepare()
    devices_of(table[chip][0][2], 1)  # without the compiler nothing is recorded
    rows = [
        row_of(compile_one, size=size, pods=pods, topology=topology, changes=changes)
        for size, pods, topology, changes in table[chip]
    ]
    texts = (
        f"{row['size']} on {row['pods']} x {row['topology']} {row['changes'] or ''}: {numbers_of(row)}"
        for row in rows
    )
    record(f"{name}_{chip}", {"rows": rows}, line="; ".join(texts))


def compile_update(*, size: str, pods: int, topology: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Compile one update as the stage does."""
    config = get_config(size)
    config.update_from_flattened_dict(changes)
    shape = build(ModelConfig, config.model, name="model")
    return compile_next_token(config, shape, devices_of(topology, pods))


def compile_next_token(config: Any, shape: ModelConfig, devices: list[Any]) -> dict[str, Any]:
    """Compile one update of the next-token loss, of a config of pretraining or of fine-tuning."""
    mesh = build(MeshConfig, config.mesh, name="mesh")
    partitioner = Partitioner(make_mesh(mesh, devices), mesh.preset)
    model = Transformer(shape, partitioner)
    optimizer = make_optimizer(
        build(OptimizerConfig, config.optimizer, name="optimizer"), num_steps=config.train.num_steps
    )
    update = make_update(
        next_token_loss(model, loss_chunk=config.train.loss_chunk),
        optimizer,
        accumulation_steps=config.train.accumulation_steps,
    )
    state = abstract_state(model, optimizer, partitioner)
    tokens = abstract_token_batch(partitioner, config.data.batch_size, config.data.sequence_length)
    step = compile_step(update, state, partitioner)
    return memory_of(step, state, tokens)


def devices_of(topology: str, pods: int) -> list[Any]:
    """Chips that are not there: slices of TPUs, or hosts of GPUs."""
    chip, _, size = topology.partition(":")
    if chip in CHIPS:
        return gpu_devices(chip, int(size), hosts=pods)
    return tpu_devices(chip, topology, num_slices=pods)


if __name__ == "__main__":
    main()
