"""The pretraining updates of the paper's configs compiled ahead of time for TPU pods: memory per chip.

pip install -e ".[aot]" && python -m benchmarks.pods_aot

What ``experiments.pretrain --config=configs/pretrain.py:SIZE`` compiles there (4,194,304 tokens in a
batch, bfloat16, float32 master weights and AdamW, full remat), for pods that are not attached. What the
compiler says; nothing is executed.
"""

from typing import Any

import jax

from benchmarks.attention_aot import row_of
from benchmarks.record import record
from configs.pretrain import get_config
from llama2_jax.config import build
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import abstract_token_batch
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.sharding.unattached import prepare, tpu_devices
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step, make_update, next_token_loss

# size, slices of a topology, and what changes in the config's mesh
PODS: list[tuple[str, int, str, dict[str, Any]]] = [
    ("7b", 1, "v5e:16x16", {}),
    ("13b", 1, "v5e:16x16", {}),
    ("34b", 1, "v5p:4x4x8", {}),
    ("70b", 1, "v5p:4x4x8", {}),
    ("70b", 1, "v5p:4x4x8", {"preset": "fsdp_tensor", "tensor": 4}),
    ("70b", 2, "v5p:4x4x8", {"data": 2}),
]


def main() -> None:
    """Compile every update and record the table."""
    prepare()
    rows = [
        row_of(update, size=size, num_slices=num_slices, topology=topology, mesh=mesh)
        for size, num_slices, topology, mesh in PODS
    ]
    record("pods_aot", {"rows": rows}, line="; ".join(_text(row) for row in rows))


def _text(row: dict[str, Any]) -> str:
    found = row["error"] if "error" in row else f"{row['peak_bytes'] / 2**30:.1f} GiB"
    return f"{row['size']} on {row['num_slices']} x {row['topology']} {row['mesh'] or ''}: {found}"


def update(*, size: str, num_slices: int, topology: str, mesh: dict[str, Any]) -> dict[str, Any]:
    """Compile one update as the stage does."""
    config = get_config(size)
    config.mesh.update(mesh)
    devices = tpu_devices(topology.partition(":")[0], topology, num_slices=num_slices)
    mesh_config = build(MeshConfig, config.mesh, name="mesh")
    partitioner = Partitioner(make_mesh(mesh_config, devices), mesh_config.preset)
    model = Transformer(build(ModelConfig, config.model, name="model"), partitioner)
    optimizer = make_optimizer(
        build(OptimizerConfig, config.optimizer, name="optimizer"), num_steps=config.train.num_steps
    )
    state = abstract_state(model, optimizer, partitioner)
    loss = next_token_loss(model, loss_chunk=config.train.loss_chunk)
    step = compile_step(make_update(loss, optimizer), state, partitioner)
    tokens = abstract_token_batch(partitioner, config.data.batch_size, config.data.sequence_length)
    with jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
        memory = step.lower(state, tokens).compile().memory_analysis()  # type: ignore[attr-defined]
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
    }


if __name__ == "__main__":
    main()
