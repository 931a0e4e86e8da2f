"""Which rows belong to which process; what several do together: tests/experiments/test_processes.py."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import process_slice, row_block
from llama2_jax.sharding.processes import files_at_rest, on_host
from llama2_jax.sharding.rules import Partitioner, make_partitioner
from llama2_jax.sharding.unattached import tpu_devices
from tests.kernels.aot_model import needs_tpu_compiler


@pytest.mark.parametrize(
    ("owners", "process", "block"),
    [
        ([[0], [0], [1], [1]], 0, (0, 2)),  # every process has rows of its own
        ([[0], [0], [1], [1]], 1, (1, 2)),
        ([[0], [1], [0], [1]], 1, (1, 2)),  # in whatever order
        ([[0, 0], [0, 0], [1, 1], [1, 1]], 1, (1, 2)),  # devices of one process split a row
        ([[0, 1], [0, 1]], 1, (0, 1)),  # two processes split every row
        ([[0, 1], [2, 3]], 2, (1, 2)),  # two pairs
        ([[0, 1], [2, 3]], 3, (1, 2)),
    ],
)
def test_a_process_loads_the_rows_that_its_devices_work_on(
    owners: list[list[int]], process: int, block: tuple[int, int]
) -> None:
    assert row_block(np.array(owners), process) == block


@pytest.mark.parametrize("owners", [[[0, 0], [0, 1], [1, 1]], [[0], [0], [0], [1]], [[0, 1], [1, 1]]])
def test_processes_that_share_only_some_rows_are_refused(owners: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="choose another config.mesh"):
        row_block(np.array(owners), 0)


@pytest.mark.parametrize("config", [MeshConfig("single"), MeshConfig(), MeshConfig("fsdp_tensor", tensor=4)])
def test_one_process_loads_all_rows(config: MeshConfig) -> None:
    assert process_slice(make_partitioner(config)) == {"host_index": 0, "host_count": 1}


def test_on_host_leaves_one_process_plain_arrays() -> None:
    with files_at_rest("nowhere"):
        found = on_host({"a": jnp.arange(3), "b": np.ones(2)})
    assert all(type(array) is np.ndarray for array in found.values())
    np.testing.assert_array_equal(found["a"], [0, 1, 2])


@needs_tpu_compiler
@pytest.mark.parametrize(
    ("chip", "topology"),
    [("v5e", "v5e:8x8"), ("v5p", "v5p:4x4x8"), ("v6e", "v6e:16x16"), ("v5p", "v5p:4x8x8")],
)
@pytest.mark.parametrize(
    ("data", "tensor", "sequence"),
    [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 1), (1, 8, 1), (2, 4, 1), (1, 2, 2), (1, 1, 8), (4, 4, 2)],
)
def test_a_mesh_over_a_pod_gives_every_process_its_rows(
    chip: str, topology: str, data: int, tensor: int, sequence: int
) -> None:
    config = MeshConfig("fsdp_tensor", data=data, tensor=tensor, sequence=sequence)
    check_rows(config, tpu_devices(chip, topology))


@needs_tpu_compiler
@pytest.mark.parametrize(("data", "tensor"), [(2, 1), (4, 1), (2, 4)])
def test_a_mesh_over_two_slices_does_too(data: int, tensor: int) -> None:
    check_rows(
        MeshConfig("fsdp_tensor", data=data, tensor=tensor), tpu_devices("v5e", "v5e:8x8", num_slices=2)
    )


def check_rows(config: MeshConfig, devices: list[Any]) -> None:
    mesh = make_mesh(config, devices)
    assert set(mesh.devices.flat) == set(devices)
    partitioner = Partitioner(mesh, "fsdp_tensor")
    owners = np.reshape(
        [device.process_index for device in mesh.devices.flat], (partitioner.batch_shards, -1)
    )
    found = {owner: row_block(owners, owner) for owner in np.unique(owners).tolist()}
    (count,) = {count for _, count in found.values()}
    assert {index for index, _ in found.values()} == set(range(count))
    assert len(found) >= 16
