"""An iteration of PPO with the paper's configs compiled ahead of time for pods: memory per chip.

pip install -e ".[aot]" && python -m benchmarks.ppo_aot
pip install -e ".[aot-hopper]" && JAX_PLATFORMS=cpu python -m benchmarks.ppo_aot --chip=h200  # or a100

What ``experiments.ppo --config=configs/ppo.py:SIZE`` compiles there, with a value model and two reward models
of the policy's size: 512 prompts of up to 1,024 tokens, as long answers. What the compiler says; nothing
is executed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.pods_aot import Pod, compile_all, devices_of
from configs.ppo import get_config
from llama2_jax.config import build
from llama2_jax.generate import decode
from llama2_jax.generate.sampler import decoding_params, make_sampler
from llama2_jax.model.config import model_config
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.rollouts import map_rows, response_logprobs
from llama2_jax.rlhf.update import make_epoch, policy_loss, value_loss
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Experience, Rollout
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step

STOP_IDS = (2,)
PODS: dict[str, list[Pod]] = {
    "tpu": [
        ("7b", 1, "v5p:2x4x4", {}),
        ("70b", 1, "v5p:4x4x8", {"mesh.preset": "fsdp_tensor", "mesh.tensor": 2}),
    ],
    "h200": [
        ("7b", 1, "h200:8", {}),
        ("7b", 1, "h200:8", {"ppo.sample_batch_size": 128}),
        ("13b", 1, "h200:8", {"ppo.sample_batch_size": 128}),
        ("34b", 4, "h200:8", {}),
        ("70b", 8, "h200:8", {}),
    ],
    "a100": [  # of 80 GB
        ("7b", 1, "a100:8", {"ppo.sample_batch_size": 128}),
        ("13b", 2, "a100:8", {"ppo.sample_batch_size": 128}),
        ("34b", 4, "a100:8", {}),
        ("70b", 8, "a100:8", {}),
    ],
}


class Phase(NamedTuple):
    """Bytes on each device: what a compiled function is given, and the most that it needs with that."""

    arguments: int
    peak: int


def main() -> None:
    """Compile every iteration and record the table."""
    compile_all("ppo_aot", PODS, compile_iteration, _numbers, description=__doc__)


def _numbers(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    parts = {name: row[f"{name}_bytes"] / 2**30 for name in ("resident", "sample", "update", "peak")}
    return ", ".join(f"{name} {size:.1f} GiB" for name, size in parts.items())


def compile_iteration(*, size: str, pods: int, topology: str, changes: dict[str, Any]) -> dict[str, int]:
    """Compile the functions of one iteration as ``Learner`` does.

    Returns:
      Bytes per device: ``resident``, both trained models with their optimisers, the reference and two reward
      models; what sampling and learning need besides; and the largest sum.
    """
    config = get_config(size)
    config.update_from_flattened_dict(changes)
    devices = devices_of(topology, pods)
    meshes = [build(MeshConfig, config[name], name=name) for name in ("mesh", "sampler_mesh")]
    partitioner, sampler_partitioner = (Partitioner(make_mesh(mesh, devices), mesh.preset) for mesh in meshes)
    shape = model_config(size, **config.model)
    ppo = build(PPOConfig, config.ppo, name="ppo")
    sampling = _sampling(Transformer(shape, partitioner), sampler_partitioner, ppo)
    learning = _learning(config, Transformer(shape, partitioner), partitioner, ppo)
    policy, value = learning["update_policy"].arguments, learning["update_value"].arguments
    frozen = 3 * learning["reference"].arguments
    resident = policy + value + frozen
    sample = max(phase.peak for phase in sampling)
    update = max(phase.peak - phase.arguments for phase in learning.values())
    return {
        "resident_bytes": resident,
        "sample_bytes": sample,
        "update_bytes": update,
        "peak_bytes": resident + max(sample, update),
    }


def _sampling(model: Transformer, partitioner: Partitioner, ppo: PPOConfig) -> list[Phase]:
    """Reading the prompts, and all new tokens."""
    rows = ppo.sample_batch_size or ppo.batch_size
    decoder = make_sampler(model, partitioner).model
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    weights = partitioner.abstract(jax.eval_shape(functools.partial(decoding_params, model), params))

    def given(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.replicated)

    inputs = given(rows, ppo.prompt_length), given(rows), given(rows, dtype=jnp.uint32)
    with jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
        prefill = decode._prefill.lower(decoder, weights, *inputs, num_slots=ppo.row_length)
        reading = prefill.compile()
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            prefill.out_info,
            reading.output_shardings,
        )
        advance = decode.advance.lower(
            decoder, weights, state, ppo.sampling.numbers, stop_ids=STOP_IDS, num_tokens=ppo.response_length
        )
        return [_phase(reading), _phase(advance.compile())]


def _learning(config: Any, policy: Transformer, partitioner: Partitioner, ppo: PPOConfig) -> dict[str, Phase]:
    """The log-probabilities of a frozen model, and an epoch of each of the two that learn."""
    optimizer_config = build(OptimizerConfig, config.optimizer, name="optimizer")
    optimizer = make_optimizer(optimizer_config, num_steps=config.train.num_iterations * ppo.num_updates)
    batch = _experience(partitioner, ppo)

    def logprobs(params: Any, rollout: Rollout) -> Any:
        one = functools.partial(response_logprobs, policy, params, temperature=ppo.temperature)
        return map_rows(one, rollout, parts=ppo.forward_parts)

    def epoch(model: Any, loss: Callable[..., Any]) -> Any:
        state = abstract_state(model, optimizer, partitioner)
        step: Any = compile_step(make_epoch(loss(model, ppo), optimizer, ppo), state, partitioner)
        return _phase(step.lower(state, batch).compile())

    params = abstract_state(policy, optimizer, partitioner).params
    with jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
        return {
            "reference": _phase(jax.jit(logprobs).lower(params, batch.rollout).compile()),
            "update_policy": epoch(policy, policy_loss),
            "update_value": epoch(ScoreModel(policy.config, partitioner), value_loss),
        }


def _experience(partitioner: Partitioner, ppo: PPOConfig) -> Experience:
    """Shapes and places of what an iteration learns from."""

    def array(dims: str, *shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.activation(dims, shape))

    rows = ppo.batch_size
    answers = array("BC", rows, ppo.response_length, dtype=jnp.float32)
    rollout = Rollout(
        tokens_BT=array("BT", rows, ppo.row_length),
        prompt_lengths_B=array("B", rows),
        response_lengths_B=array("B", rows),
        stopped_B=array("B", rows, dtype=jnp.bool_),
        sampler_logprobs_BC=answers,
    )
    return Experience(rollout, *[answers] * (len(Experience._fields) - 1))


def _phase(compiled: Any) -> Phase:
    memory = compiled.memory_analysis()
    return Phase(memory.argument_size_in_bytes, memory.peak_memory_in_bytes)


if __name__ == "__main__":
    main()
