"""Which rows belong to which process; what several do together: tests/experiments/test_processes.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import process_slice, row_block
from llama2_jax.sharding.processes import files_at_rest, on_host
from llama2_jax.sharding.rules import make_partitioner


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
    with pytest.raises(ConfigError, match="choose config.mesh so that"):
        row_block(np.array(owners), 0)


@pytest.mark.parametrize("config", [MeshConfig("single"), MeshConfig(), MeshConfig("fsdp_tensor", tensor=4)])
def test_one_process_loads_all_rows(config: MeshConfig) -> None:
    assert process_slice(make_partitioner(config)) == {"host_index": 0, "host_count": 1}


def test_on_host_leaves_one_process_plain_arrays() -> None:
    with files_at_rest("nowhere"):
        found = on_host({"a": jnp.arange(3), "b": np.ones(2)})
    assert all(type(array) is np.ndarray for array in found.values())
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
