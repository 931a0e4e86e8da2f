"""What devices tell each other in an update: a program for two TPU slices, by the real TPU compiler."""

import re

import pytest

from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.sharding.unattached import tpu_devices
from tests.kernels.aot_model import needs_tpu_compiler, update_of
from tests.train.programs import Operation, inside_loops, parse

pytestmark = needs_tpu_compiler


@pytest.fixture(scope="module")
def operations() -> list[Operation]:
    """Those of an update in bfloat16, each slice of four chips with the whole model."""
    partitioner = Partitioner(make_mesh(MeshConfig(data=2), tpu_devices("v5e", num_slices=2)), "fsdp")
    model = Transformer(model_config("nano", compute_dtype="bfloat16", remat_policy="full"), partitioner)
    program = update_of(model, num_rows=8, length=128)
    return [operation for line in program.splitlines() if (operation := parse(line))]


def test_gradients_are_added_up_in_float32(operations: list[Operation]) -> None:
    sums = [
        dtype
        for operation in operations
        if operation.kind in ("all-reduce", "reduce-scatter")
        for dtype, operand in zip(operation.dtypes, operation.operands, strict=True)
        if "dynamic-update-slice" not in operand  # a small weight is gathered by adding it to zeros
    ]
    assert len(sums) >= 10
    assert set(sums) <= {"f32", "s32"}
    # weights themselves travel as they are multiplied
    gathers = [operation for operation in operations if operation.kind == "all-gather"]
    assert {dtype for operation in gathers for dtype in operation.dtypes} == {"bf16"}


@pytest.mark.parametrize("tied", [False, True])
def test_a_loss_in_chunks_gathers_the_head_once_and_adds_up_its_gradient_once(tied: bool) -> None:
    partitioner = Partitioner(make_mesh(MeshConfig(), tpu_devices("v5e")), "fsdp")
    config = model_config("nano", vocab_size=640, compute_dtype="bfloat16", tie_embeddings=tied)
    program = update_of(Transformer(config, partitioner), num_rows=8, length=512, loss_chunk=64)
    loops = "\n".join(inside_loops(program))

    def of_tables(text: str, kind: str) -> list[str]:
        """Tables of the vocabulary that are moved there."""
        moves = [operation for line in text.splitlines() if (operation := parse(line))]
        shapes = [one.line.split(f" {kind}")[0] for one in moves if one.kind == kind]
        return [table for shape in shapes for table in re.findall(r"\w+\[(?:64,640|640,64)\]", shape)]

    assert of_tables(loops, "all-reduce") == []
    assert of_tables(program, "all-gather")
    if not tied:  # of a tied table the compiler of jax 0.10 moves the gather into the loop
        assert of_tables(loops, "all-gather") == []
    sums = ["f32[640,64]", *["f32[64,640]"] * (not tied)]
    assert sorted(of_tables(program, "all-reduce")) == sorted(sums)


def test_nothing_but_sums_passes_between_slices(operations: list[Operation]) -> None:
    between = [operation for operation in operations if operation.kind == "send"]
    assert all('transfer_type="ALL_REDUCE"' in operation.line for operation in between)
    assert {dtype for operation in between for dtype in operation.dtypes} <= {"f32", "s32"}
    assert len(between) >= 3
    # all others name the chips of a slice by their numbers in it
    within = [operation for operation in operations if operation.kind != "send"]
    assert within
    assert all("replica_groups={{0,1,2,3}}" in operation.line for operation in within)
