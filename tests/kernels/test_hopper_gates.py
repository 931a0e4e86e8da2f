"""The Hopper kernels compiled by the real compilers for an H200 that is not there."""

import json

import pytest

from tests.kernels.aot_model import needs_gpu_compilers
from tests.kernels.aot_model import run_with_gpu_compilers as run

pytestmark = needs_gpu_compilers


@pytest.mark.parametrize(
    ("head_dim", "dtype", "groups"), [(64, "bfloat16", 8), (128, "bfloat16", 8), (128, "float16", 1)]
)
def test_every_variant_keeps_to_registers_and_shared_memory(head_dim, dtype, groups):
    ran = run(
        ["-m", "tools.hopper_gates", f"--head_dims={head_dim}", f"--dtypes={dtype}", f"--groups={groups}"]
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {line["name"] for line in lines} == {"flash_forward", "flash_dq", "flash_dkv", "flash_decode"}
    for line in lines:
        assert line["fails"] == []
        assert line["spill_bytes"] == line["hmma"] == 0
        assert line["hgmma"] > 0
        assert line["registers"] <= 240


TOO_LARGE = """
from tools.hopper_gates import Case, compile_gradients, lines
from llama2_jax.kernels.flash_hopper_steps import Blocks
too_large = Blocks(128, 2, 128, 2, 128, 2)
for line in lines(Case(compile_gradients, 128, "bfloat16", 1, too_large, is_default=False)):
    print(line["name"], *line["fails"])
"""


def test_the_gate_catches_a_tile_that_does_not_fit():
    ran = run(["-c", TOO_LARGE])
    assert ran.returncode == 0, ran.stderr[-3000:]
    fails = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines() if " " in line)
    assert "spills" in fails["flash_dkv"]


MODEL = """
from llama2_jax.sharding.unattached_gpu import gpu_devices
from tests.kernels import aot_model
devices = gpu_devices("h200", 4)
programs = aot_model.training_step(devices, "hopper"), *aot_model.generation(devices, "hopper")
for program in programs:
    calls = [line for line in program.splitlines() if "custom-call(" in line and "mosaic_gpu" in line]
    print(len(calls), *(name for name in ("forward", "dq", "dkv", "decode") if "flash_" + name in program))
"""


def test_a_training_step_and_generation_on_a_mesh_run_the_kernels():
    ran = run(["-c", MODEL])
    assert ran.returncode == 0, ran.stderr[-3000:]
    # attention is kept, so the forward kernel stands once in the loop over layers; prompts and new tokens
    # go through six layers without a loop
    assert ran.stdout.splitlines() == ["3 forward dq dkv", "6 forward", "6 decode"]


def test_the_same_call_without_the_compilers_says_what_is_missing():
    code = "from llama2_jax.sharding.unattached_gpu import gpu_devices; gpu_devices('h200')"
    ran = run(["-c", code], compilers="")
    assert "ConfigError: the CUDA compiler is not installed; pip install --no-deps" in ran.stderr
