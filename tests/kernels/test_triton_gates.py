"""The Triton kernel that ships with jax, with our blocks, compiled for GPUs that are not there."""

import re

from tests.kernels.aot_model import needs_gpu_compilers, run_with_gpu_compilers

pytestmark = needs_gpu_compilers

GRADIENTS = """
import jax, jax.numpy as jnp
from llama2_jax.kernels import library
from llama2_jax.sharding.unattached_gpu import compile_for_gpu

def gradients(q, k, v, ids, d_out):
    out, pull = jax.vjp(lambda *qkv: library.triton(*qkv, ids, scale=0.1, causal=True), q, k, v)
    return out, pull(d_out)

for chip in {chips}:
    for head_dim in (64, 128):
        temporary = []
        for length in (2000, 8000):
            q, kv = ((((2, length, heads, head_dim), jnp.bfloat16)) for heads in (8, 4))
            made = compile_for_gpu(chip, gradients, q, kv, kv, ((2, length), jnp.int32), q)
            temporary.append(made.memory_analysis().temp_size_in_bytes)
        print(*temporary)
"""


def test_no_register_is_spilled_and_memory_grows_with_the_length():
    # ptxas says so in the log of the compiler; what needs more shared memory than there is it refuses
    ran = run_with_gpu_compilers(
        ["-c", GRADIENTS.replace("{chips}", "('a100', 'a10')")],
        TF_CPP_MIN_LOG_LEVEL="0", TF_CPP_VMODULE="subprocess_compilation=3",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = re.findall(r"entry function '(\w+)' for '(\w+)'.*\n.*\n.* (\d+) bytes spill stores", ran.stderr)
    kernels = {one for one in said if one[0].startswith("mha_")}
    names = ("mha_forward", "mha_preprocess_backward", "mha_backward")
    assert kernels == {(name, chip, "0") for name in names for chip in ("sm_80", "sm_86")}
    for line in ran.stdout.splitlines():
        short, long = map(int, line.split())
        assert long <= 4.1 * short


MODEL = """
from llama2_jax.sharding.unattached_gpu import gpu_devices
from tests.kernels import aot_model
text = aot_model.training_step(gpu_devices("a100", 4), "auto")
print(*(name in text for name in ("mha_forward", "mha_backward")))
"""


def test_a_training_step_for_an_a100_runs_it():
    ran = run_with_gpu_compilers(["-c", MODEL])
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "attention on gpu: triton" in ran.stderr
    assert ran.stdout.split() == ["True", "True"]
