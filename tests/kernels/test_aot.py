"""The TPU kernels compiled by the real TPU compiler, for chips that are not there."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from llama2_jax.config import ConfigError
from llama2_jax.kernels import decode_tpu, dispatch, flash_tpu
from llama2_jax.sharding.mesh import AXES
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.sharding.unattached import CHIPS, compile_for, tpu_devices, vector_memory_bytes
from tests.kernels import aot_model

pytestmark = aot_model.needs_tpu_compiler
HEADS = 8


def attention_gradients(impl, chip, *, length, kv_heads, head_dim, dtype=jnp.bfloat16, batch=4):
    def function(q, k, v, segment_ids):
        def total(q, k, v):
            out, _ = dispatch.attention(
                q, k, v, segment_ids_BT=segment_ids, impl=impl, placement=dispatch.unsharded("tpu")
            )
            return out.astype(jnp.float32).sum()

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    q, kv = (batch, length, HEADS, head_dim), (batch, length, kv_heads, head_dim)
    return compile_for(chip, function, (q, dtype), (kv, dtype), (kv, dtype), ((batch, length), jnp.int32))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("chip", CHIPS)
def test_gradients_compile_within_the_vector_memory_of_every_chip(chip, head_dim):
    executable = attention_gradients("tpu", chip, length=1000, kv_heads=1, head_dim=head_dim)
    assert executable.as_text().count('custom_call_target="tpu_custom_call"') == 3
    used = vector_memory_bytes(executable)
    assert len(used) == 3
    assert max(used) <= flash_tpu.VMEM_BYTES


def test_float32_takes_more_vector_memory():
    executable = attention_gradients("tpu", "v5e", length=2048, kv_heads=8, head_dim=128, dtype=jnp.float32)
    # at the highest precision there must be room for the parts of its products; the chip has 128 MiB
    assert max(vector_memory_bytes(executable)) <= 2**26


def test_the_default_precision_of_products_is_not_that_of_the_kernels():
    with jax.default_matmul_precision("highest"):
        attention_gradients("tpu", "v5e", length=300, kv_heads=8, head_dim=128)


def test_memory_grows_with_the_length_and_not_with_its_square():
    def temporary(impl, length):
        executable = attention_gradients(impl, "v5p", length=length, kv_heads=8, head_dim=128)
        return executable.memory_analysis().temp_size_in_bytes

    ours = {length: temporary("tpu", length) for length in (2048, 8192)}
    plain = {length: temporary("xla", length) for length in (1024, 2048)}
    # copies of inputs, outputs and their gradients: a few arrays of the size of q, at every length
    assert all(used < 10 * 4 * length * HEADS * 128 * 2 for length, used in ours.items())
    assert plain[2048] > 3.5 * plain[1024]
    assert plain[2048] > 5 * ours[2048]


def test_splash_compiles_behind_the_same_interface():
    executable = attention_gradients("splash", "v5e", length=1000, kv_heads=2, head_dim=128)
    assert executable.as_text().count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("kv_heads", "groups", "slots"), [(32, 1, 4096), (8, 8, 1000)], ids=["mha", "gqa"])
def test_decoding_compiles(chip, kv_heads, groups, slots):
    def function(q, k, v, visible):
        split = decode_tpu.Split(parts=2)
        return decode_tpu.decode_attention(q, k, v, visible, scale=0.1, split=split)

    cache = ((4, kv_heads, slots, 128), jnp.bfloat16)
    q = ((4, kv_heads * groups, 128), jnp.bfloat16)
    executable = compile_for(chip, function, q, cache, cache, ((4, slots), jnp.bool_))
    assert max(vector_memory_bytes(executable)) <= flash_tpu.VMEM_BYTES
    # the cache is read where it lies
    assert executable.memory_analysis().temp_size_in_bytes < 2 * 4 * kv_heads * slots * 128


@pytest.mark.skipif(importlib.util.find_spec("flatbuffers") is None, reason="jax.export needs flatbuffers")
def test_the_kernels_are_exported_without_a_tpu():
    def function(q, k, segment_ids):
        def attend(q, k):
            return dispatch.attention(
                q, k, k, segment_ids_BT=segment_ids, impl="tpu", placement=dispatch.unsharded("tpu")
            ).out_BTNH

        out, pull = jax.vjp(attend, q, k)
        return out, *pull(out)

    shapes = [jax.ShapeDtypeStruct((1, 256, heads, 128), jnp.bfloat16) for heads in (4, 2)]
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    exported = jax.export.export(jax.jit(function), platforms=["tpu"])(*shapes, ids)
    assert exported.platforms == ("tpu",)
    assert exported.mlir_module().count("custom_call @tpu_custom_call") == 3
    again = jax.export.deserialize(exported.serialize())
    assert again.out_avals[0].shape == (1, 256, 4, 128)


def test_a_training_step_on_a_mesh_does_not_run_the_kernel_again_where_attention_is_kept():
    text = aot_model.training_step(tpu_devices("v5p"), "tpu")
    kernels = re.findall(r"= .*custom-call\(.*tpu_custom_call.*?flash_(\w+?)/", text)
    assert sorted(kernels) == ["dkv", "dq", "forward"]


def test_generation_on_a_mesh_runs_the_kernels():
    prefill, advance = aot_model.generation(tpu_devices("v5p"), "tpu")
    assert "flash_forward" in prefill
    assert "flash_decode" in advance


def test_reading_prompts_keeps_nothing_of_a_layer_but_its_cache():
    num_rows, length = 16, 1024

    def temporary(num_layers):
        device, *_ = tpu_devices("v5e")
        compiled = aot_model.reading_prompts(device, num_layers=num_layers, num_rows=num_rows, length=length)
        return compiled.memory_analysis().temp_size_in_bytes

    of_a_layer = 2 * num_rows * length * 2 * 128 * 2  # keys and values, two heads of 128, bfloat16
    assert temporary(8) - temporary(2) < of_a_layer


def test_the_room_for_lists_is_that_of_a_device_and_not_of_the_mesh():
    devices = np.array(tpu_devices("v5p", "v5p:2x2x2")).reshape(1, 8, 1, 1)
    partitioner = Partitioner(Mesh(devices, AXES), "fsdp_tensor")
    placement = dispatch.Placement("tpu", partitioner.map_shards)
    shapes = [(1024, 4096, heads, 128) for heads in (64, 8, 8)]
    q, k, v = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=partitioner.activation(dims, shape))
        for shape, dims in zip(shapes, ("BTNH", "BSKH", "BSKH"), strict=True)
    )
    attend = jax.jit(functools.partial(dispatch.attention, impl="tpu", placement=placement))
    assert attend.lower(q, k, v).out_info.out_BTNH.shape == (1024, 4096, 64, 128)
    with pytest.raises(ConfigError, match="1024 rows of 4096 queries"):
        jax.eval_shape(
            functools.partial(dispatch.attention, impl="tpu", placement=dispatch.unsharded("tpu")), q, k, v
        )
