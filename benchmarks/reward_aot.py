"""Updates of reward models with the paper's configs compiled ahead of time for pods: memory per chip.

pip install -e ".[aot]" && python -m benchmarks.reward_aot
pip install -e ".[aot-hopper]" && JAX_PLATFORMS=cpu python -m benchmarks.reward_aot --chip=h200  # or a100

What ``experiments.reward_model --config=configs/reward_model.py:helpfulness,size=SIZE`` compiles there: 512
pairs, packed, the prompt of a pair once where attention serves prefixes. How many rows these are follows from
their lengths: here a lognormal draw with a mean of 496 tokens, up to 4,096. What the compiler says; nothing
is executed.
"""

from typing import Any

import jax
import numpy as np

from benchmarks.pods_aot import Pod, compile_all, devices_of
from benchmarks.step_aot import memory_of, peak_of
from configs.reward_model import get_config
from llama2_jax.config import build
from llama2_jax.data.preference_batches import EncodedPair, PairLoader
from llama2_jax.losses.preference import MARGINS
from llama2_jax.model.attention import serves_prefixes
from llama2_jax.model.config import model_config
from llama2_jax.model.heads import ScoreModel
from llama2_jax.rlhf.reward_model import preference_loss
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import batch_places
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import PreferenceBatch
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step, make_update

NUM_PAIRS = 20_000
PODS: dict[str, list[Pod]] = {
    "tpu": [
        ("7b", 1, "v5p:2x4x4", {}),
        ("70b", 1, "v5p:4x4x8", {}),
    ],
    "h200": [
        ("7b", 1, "h200:8", {}),
        ("13b", 1, "h200:8", {}),
        ("34b", 4, "h200:8", {}),
        ("70b", 8, "h200:8", {}),
    ],
    "a100": [  # of 80 GB
        ("7b", 1, "a100:8", {}),
        ("13b", 2, "a100:8", {}),
        ("34b", 4, "a100:8", {}),
        ("70b", 8, "a100:8", {}),
    ],
}


def main() -> None:
    """Compile every update and record the table."""
    compile_all("reward_aot", PODS, compile_update, peak_of, description=__doc__)


def compile_update(*, size: str, pods: int, topology: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Compile one update as the stage does."""
    config = get_config(f"helpfulness,size={size}")
    config.update_from_flattened_dict(changes)
    mesh = build(MeshConfig, config.mesh, name="mesh")
    partitioner = Partitioner(make_mesh(mesh, devices_of(topology, pods)), mesh.preset)
    model = ScoreModel(model_config(size, **config.model), partitioner)
    optimizer = make_optimizer(build(OptimizerConfig, config.optimizer, name="optimizer"), num_steps=1000)
    steps = config.train.accumulation_steps
    loss = preference_loss(model, safety_weight=config.loss.safety_weight)
    state = abstract_state(model, optimizer, partitioner)
    step = compile_step(make_update(loss, optimizer, accumulation_steps=steps), state, partitioner)
    batch = _first_batch(
        config,
        row_multiple=partitioner.batch_shards * steps,
        share_prompts=serves_prefixes(model.config, partitioner),
    )
    return {"rows": len(batch.tokens_BT), **memory_of(step, state, _abstract(partitioner, batch))}


def _first_batch(config: Any, *, row_multiple: int, share_prompts: bool) -> PreferenceBatch:
    """Prompts and answers of lognormal lengths, packed."""
    rng = np.random.default_rng(0)
    prompts_P, answers_PC = rng.lognormal(5.4, 0.8, NUM_PAIRS), rng.lognormal(5.0, 0.7, (NUM_PAIRS, 2))
    lengths_PC = np.clip((prompts_P[:, None] + answers_PC).astype(int), 4, config.data.sequence_length)
    shared_P = np.minimum(prompts_P.astype(int), lengths_PC.min(axis=1) - 1)
    pairs = [_pair(shared, *own) for shared, own in zip(shared_P.tolist(), lengths_PC.tolist(), strict=True)]
    loader = PairLoader(
        pairs,
        MARGINS[config.loss.margin],
        batch_size=config.data.batch_size,
        epochs=config.data.epochs,
        seed=0,
        share_prompts=share_prompts,
        row_multiple=row_multiple,
    )
    return loader.batch(0)


def _pair(shared: int, chosen: int, rejected: int) -> EncodedPair:
    """Responses of these lengths that begin with the same prompt."""
    prompt = [0] * shared
    return EncodedPair(prompt + [1] * (chosen - shared), prompt + [2] * (rejected - shared), -1, (-1, -1))


def _abstract(partitioner: Partitioner, batch: PreferenceBatch) -> PreferenceBatch:
    """Shapes and places of a batch."""
    places = batch_places(partitioner, batch)

    def array(name: str) -> jax.ShapeDtypeStruct:
        value = getattr(batch, name)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=places[name])

    return batch._replace(**{name: array(name) for name in places})


if __name__ == "__main__":
    main()
