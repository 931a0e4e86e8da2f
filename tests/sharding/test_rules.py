import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llama2_jax.config import ConfigError
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import check_batch_size
from llama2_jax.sharding.rules import PRESETS, Partitioner, make_partitioner, parameter_dims, single_device

MESH = make_mesh(MeshConfig(fsdp=2, tensor=4))
PARTITIONER = Partitioner(MESH, "fsdp_tensor")
RULES = PRESETS["fsdp_tensor"]


def spec(dims, shape):
    return PARTITIONER.spec(dims, shape, RULES.parameters)


def test_letters_of_a_weight_name_its_mesh_axes():
    assert spec("LDNH", (2, 32, 4, 8)) == PartitionSpec(None, "fsdp", "tensor", None)
    assert spec("VD", (56, 32)) == PartitionSpec("tensor", "fsdp")
    assert spec("LFD", (2, 48, 32)) == PartitionSpec(None, "tensor", "fsdp")


def test_an_activation_keeps_d_whole_and_splits_rows_over_data_and_fsdp():
    found = PARTITIONER.activation("BTD", (8, 16, 32)).spec
    assert found == PartitionSpec(("data", "fsdp"), "sequence", None)
    assert PARTITIONER.activation("BTNH", (8, 16, 4, 8)).spec[2] == "tensor"


def test_fewer_kv_heads_than_tensor_shards_are_kept_whole():
    assert spec("DKH", (32, 2, 8)) == PartitionSpec("fsdp", None, None)
    assert spec("DKH", (32, 8, 8)) == PartitionSpec("fsdp", "tensor", None)


def test_an_indivisible_dimension_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"N = 6 .*DNH\(32, 6, 8\).* 4 devices .*tensor"):
        spec("DNH", (32, 6, 8))
    with pytest.raises(ConfigError, match=r"N = 1 .*DNH\(32, 1, 8\).* 4 devices"):
        spec("DNH", (32, 1, 8))
    with pytest.raises(ConfigError, match=r"B = 3 .* 2 devices"):
        PARTITIONER.activation("BT", (3, 16))


def test_one_row_and_one_token_are_not_split():
    assert PARTITIONER.activation("BTD", (1, 1, 32)).spec == PartitionSpec(None, None, None)


def test_two_dimensions_on_one_axis_are_refused():
    with pytest.raises(ConfigError, match=r"both D and F of DF .*'fsdp'"):
        PARTITIONER.spec("DF", (32, 48), {"D": ("fsdp",), "F": ("data", "fsdp")})


def test_no_preset_splits_a_weight_of_the_model_twice():
    for preset, mesh in (
        ("single", {"preset": "single"}),
        ("fsdp", {"sequence": 2}),
        ("fsdp_tensor", {"tensor": 2}),
    ):
        partitioner = Partitioner(make_mesh(MeshConfig(**mesh)), preset)
        for dims in ("VD", "DV", "LDNH", "LDKH", "LNHD", "LDF", "LFD", "LD", "D"):
            partitioner.spec(dims, (8,) * len(dims), PRESETS[preset].parameters)


@pytest.mark.parametrize("sizes", [{"tensor": 2, "fsdp": 4}, {"tensor": 8, "fsdp": 1}])
def test_an_axis_that_the_preset_does_not_use_is_refused(sizes):
    with pytest.raises(ConfigError, match=f"'fsdp' splits nothing over {{'tensor': {sizes['tensor']}}}"):
        make_partitioner(MeshConfig(**sizes))


def test_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match=r"'ddp'.*'single'.*'fsdp'.*'fsdp_tensor'"):
        Partitioner(MESH, "ddp")


def test_the_dims_of_a_leaf_come_from_its_name():
    key = jax.tree_util.DictKey
    assert parameter_dims((key("layers"), key("w_q_DNH")), 4) == "LDNH"
    assert parameter_dims((key("embedding_VD"),), 2) == "VD"
    assert parameter_dims((jax.tree_util.GetAttrKey("count"),), 0) == ""
    assert parameter_dims((jax.tree_util.GetAttrKey("rng"),), 1) == "."
    with pytest.raises(ConfigError, match="w_q_DNH has rank 2"):
        parameter_dims((key("w_q_DNH"),), 2)


@pytest.mark.parametrize(("batch_size", "accumulation_steps"), [(2, 1), (8, 4), (64, 2)])
def test_whole_rows_per_device_are_accepted(batch_size, accumulation_steps):
    check_batch_size(PARTITIONER, batch_size, accumulation_steps=accumulation_steps)


def test_a_batch_that_cannot_be_split_says_which_multiple_to_use():
    with pytest.raises(ConfigError) as error:
        check_batch_size(PARTITIONER, 12, accumulation_steps=4)
    words = ["data.batch_size = 12", "8", "data*fsdp = 2", "accumulation_steps = 4", "multiple of 8"]
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_on_one_device_every_preset_is_single(preset):
    one = Partitioner(make_mesh(MeshConfig(preset="single")), preset)
    assert one == single_device()
    assert one.activation("BTV", (8, 4, 56)).spec == PartitionSpec(None, None, None)


def test_constrain_is_a_no_op_on_one_device():
    single = Partitioner(make_mesh(MeshConfig(preset="single")), "single")
    array = np.zeros((3, 5))
    assert single.constrain(array, "BT") is array
