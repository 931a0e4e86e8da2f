"""Programs of a small model compiled for a mesh of devices that are not there; what is in them as text."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from llama2_jax.generate import decode
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer, abstract_params, decoding_model, unstack
from llama2_jax.sharding.mesh import AXES
from llama2_jax.sharding.placement import abstract_token_batch
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step, make_update, next_token_loss

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed (extra aot)"
)

REPOSITORY = Path(__file__).parents[2]
# installed apart: where jax finds a CUDA plugin and no GPU, it complains in every process
GPU_COMPILERS = Path(os.environ.get("LLAMA2_JAX_AOT_HOPPER", Path(sys.prefix) / "aot_hopper"))
needs_gpu_compilers = pytest.mark.skipif(
    not (GPU_COMPILERS / "jax_cuda13_plugin").exists(),
    reason="the CUDA compilers are not installed (make $(VENV)/aot_hopper; they need Linux and Python 3.12)",
)


def run_with_gpu_compilers(
    code_or_module: list[str], *, compilers: object = GPU_COMPILERS, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(compilers), **variables}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a program for another machine cannot be read back
    environment.pop("XLA_FLAGS")  # those of conftest.py are for quick tests on a CPU
    return subprocess.run(
        [sys.executable, *code_or_module],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def model_on(devices, impl, **changes):
    """A model over four devices, half of them along heads."""
    partitioner = Partitioner(Mesh(np.array(devices[:4]).reshape(1, 2, 2, 1), AXES), "fsdp_tensor")
    config = model_config("mini", head_dim=64, attention_impl=impl, compute_dtype="bfloat16", **changes)
    return Transformer(config, partitioner)


def training_step(devices, impl):
    """An update whose remat policy keeps attention."""
    return update_of(model_on(devices, impl, remat_policy="attention"), num_rows=4, length=512)


def update_of(model, *, num_rows, length, loss_chunk=0):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), num_steps=10)
    state = abstract_state(model, optimizer, model.partitioner)
    step = compile_step(
        make_update(next_token_loss(model, loss_chunk=loss_chunk), optimizer), state, model.partitioner
    )
    with jax.sharding.use_abstract_mesh(model.partitioner.mesh.abstract_mesh):
        tokens = abstract_token_batch(model.partitioner, num_rows, length)
        return step.lower(state, tokens).compile().as_text()


def reading_prompts(device, *, num_layers, num_rows, length):
    """Prompts read into a cache with as many slots again, by a model on one device as it decodes."""
    partitioner = Partitioner(Mesh(np.array([device]).reshape(1, 1, 1, 1), AXES), "single")
    config = model_config("mini", num_layers=num_layers, head_dim=128, compute_dtype="bfloat16")
    model = decoding_model(Transformer(config, partitioner))
    params = partitioner.abstract(jax.eval_shape(unstack, abstract_params(config)))

    def rows(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.replicated)

    prompts = rows(num_rows, length), rows(num_rows), rows(num_rows, dtype=jnp.uint32)
    with jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
        return decode._prefill.lower(model, params, *prompts, num_slots=2 * length).compile()


def generation(devices, impl):
    """Reading prompts, and four new tokens."""
    model = model_on(devices, impl)
    partitioner = model.partitioner
    abstract = abstract_params(model.config)

    def placed(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    def rows(dims, *shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.activation(dims, shape))

    params = jax.tree.map(placed, abstract, partitioner.tree(abstract))
    prompts = rows("BT", 8, 128), rows("B", 8), rows("B", 8, dtype=jnp.uint32)
    with jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
        prefill = decode._prefill.lower(model, params, *prompts, num_slots=256)
        state = jax.tree.map(lambda leaf: placed(leaf, partitioner.replicated), prefill.out_info)
        sampling = SamplingConfig(temperature=0).numbers
        advance = decode.advance.lower(model, params, state, sampling, stop_ids=(2,), num_tokens=4)
        return prefill.compile().as_text(), advance.compile().as_text()
