import jax
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.sharding.mesh import AXES, MeshConfig, make_mesh
from llama2_jax.sharding.unattached import tpu_devices
from tests.kernels.aot_model import needs_tpu_compiler


def test_minus_one_takes_the_remaining_devices():
    assert MeshConfig().sizes(8) == (1, 8, 1, 1)
    assert MeshConfig(data=2, fsdp=-1, tensor=2).sizes(8) == (2, 2, 2, 1)
    assert MeshConfig(data=-1, fsdp=2, sequence=4).sizes(8) == (1, 2, 1, 4)


def test_single_takes_the_first_device_only():
    mesh = make_mesh(MeshConfig(preset="single"))
    assert mesh.axis_names == AXES
    assert list(mesh.devices.flat) == jax.devices()[:1]


def test_every_device_is_used_once():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 2}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.size == 8


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(fsdp=4), ["'fsdp': 4", "needs 4 devices", "8 are present", "-1"]),
        (MeshConfig(data=4, fsdp=4), ["needs 16 devices", "8 are present"]),
        (MeshConfig(data=3), ["multiple of 3", "8 are present"]),
        (MeshConfig(data=-1, fsdp=-1), ["'data': -1", "only one axis may be -1"]),
        (MeshConfig(data=0), ["'data': 0"]),
        (MeshConfig("single", data=8), ["'data': 8", "'single' is one device"]),
        (MeshConfig(data=-2, tensor=-4, fsdp=1), ["'data': -2"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_both_numbers(config, words):
    with pytest.raises(ConfigError) as error:
        config.sizes(8)
    assert all(word in str(error.value) for word in words), str(error.value)


@needs_tpu_compiler
@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=6), MeshConfig(data=3, tensor=2)])
def test_only_data_runs_across_tpu_slices(config):
    devices = tpu_devices("v5e", num_slices=3)
    # jax does not promise an order of devices
    mesh = make_mesh(config, devices[::2] + devices[1::2])
    assert set(mesh.devices.flat) == set(devices)
    for index, part in enumerate(mesh.devices.reshape(3, -1)):
        assert {device.slice_index for device in part} == {index}


@needs_tpu_compiler
def test_slices_of_different_sizes_are_refused():
    with pytest.raises(ConfigError, match="slices of 4, 2 devices"):
        make_mesh(MeshConfig(data=2), tpu_devices("v5e", num_slices=2)[:6])


@needs_tpu_compiler
@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(data=2, tensor=4)])
def test_an_inner_axis_across_tpu_slices_is_refused(config):
    with pytest.raises(ConfigError) as error:
        make_mesh(config, tpu_devices("v5p", num_slices=4))
    words = (f"config.mesh.data = {config.data}", "16 devices", "4 TPU slices", "a multiple of 4")
    assert all(word in str(error.value) for word in words), str(error.value)
