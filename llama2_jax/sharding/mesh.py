"""The device mesh: four named axes, any of which may be 1."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from llama2_jax.config import ConfigError, require

AXES = ("data", "fsdp", "tensor", "sequence")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis (-1 = all that remain) and the placement preset.

    ``data`` replicates parameters, ``fsdp`` splits them along the model width and gathers them
    layer by layer, ``tensor`` splits heads, feed-forward and vocabulary, ``sequence`` splits
    the tokens of a row.
    """

    preset: str = "fsdp"
    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    sequence: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Devices per axis, with -1 resolved.

        Raises:
          ConfigError: the product is not the number of devices.
        """
        sizes = [getattr(self, axis) for axis in AXES]
        given = f"mesh {dict(zip(AXES, sizes, strict=True))}"
        if self.preset == "single":
            require(
                max(sizes) <= 1,
                f"{given}: mesh.preset 'single' is one device; take another, or set the axes to 1",
            )
            return (1,) * len(AXES)
        require(
            all(size > 0 or size == -1 for size in sizes),
            f"{given}: an axis is at least 1, or -1 for the rest",
        )
        require(sizes.count(-1) <= 1, f"{given}: only one axis may be -1")
        fixed = int(np.prod([size for size in sizes if size != -1]))
        if -1 in sizes:
            require(
                num_devices % fixed == 0,
                f"mesh axes take a multiple of {fixed} devices, but {num_devices} are present; "
                "change config.mesh or run on another number of devices",
            )
            sizes[sizes.index(-1)] = num_devices // fixed
        if int(np.prod(sizes)) != num_devices:
            raise ConfigError(
                f"mesh {dict(zip(AXES, sizes, strict=True))} needs {int(np.prod(sizes))} devices, "
                f"but {num_devices} are present; set one axis of config.mesh to -1 to fill the rest"
            )
        return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Arrange ``devices`` (default: all of them) on the four axes; ``single`` takes the first.

    TPU slices, which only a network joins, lie one after another along ``data``: sums of gradients (and of
    numbers to report) are all that passes between them.

    Raises:
      ConfigError: the axes do not take these devices, or ``data`` these slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    data, *inner = config.sizes(len(devices))
    devices = devices[: data * int(np.prod(inner))]
    slices = _slices(devices)
    require(
        data % len(slices) == 0,
        f"config.mesh.data = {data}, but the {len(devices)} devices are {len(slices)} TPU slices, joined by "
        f"a network; set it to a multiple of {len(slices)}, so that weights are gathered within a slice",
    )
    require(
        len({len(part) for part in slices}) == 1,
        f"TPU slices of {', '.join(str(len(part)) for part in slices)} devices; all must have equally many",
    )
    sizes = (data // len(slices), *inner)
    # an axis of the mesh may take a part of an axis of the chips: 2 of 8 x 8
    arranged = [mesh_utils.create_device_mesh(sizes, part, allow_split_physical_axes=True) for part in slices]
    return jax.sharding.Mesh(np.concatenate(arranged), AXES)


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """Devices by TPU slice, in order; those of other kinds are one part, as jax lists them host by host."""
    parts: dict[int, list[Any]] = {}
    for device in devices:
        of_slice = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        parts.setdefault(of_slice, []).append(device)
    return [parts[index] for index in sorted(parts)]


def require_all_processes(mesh: jax.sharding.Mesh) -> None:
    """Raise ``ConfigError`` unless every process of the run has devices in the mesh."""
    processes = {device.process_index for device in mesh.devices.flat}
    require(
        len(processes) == jax.process_count(),
        f"the mesh {dict(mesh.shape)} has devices of {len(processes)} of {jax.process_count()} processes; "
        "a run of several needs them all: a preset other than single, and one axis of -1 for the rest",
    )
