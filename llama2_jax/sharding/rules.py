"""Which dimension of a tensor is split over which mesh axis: one table, a preset per column.

Tensor names already say what their dims are (``w_q_DNH``), so the letters of ``shapes.py``
*are* the logical axes: no annotation is needed beside the name. Parameters and activations
have a table each because D of a weight is split for memory (``fsdp``) while D of an
activation must be whole.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama2_jax.config import ConfigError, require, require_choice
from llama2_jax.sharding.mesh import MeshConfig, make_mesh, require_all_processes

Rules = dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Preset:
    """Dimension letter -> mesh axes; letters not listed are replicated."""

    parameters: Rules
    activations: Rules


_BATCH: Rules = {"B": ("data", "fsdp"), "T": ("sequence",)}
_WIDTH: Rules = {"D": ("fsdp",)}
_TENSOR: Rules = dict.fromkeys("NKFV", ("tensor",))

PRESETS = {
    "single": Preset(parameters={}, activations={}),
    "fsdp": Preset(parameters=_WIDTH, activations=_BATCH),
    "fsdp_tensor": Preset(parameters=_WIDTH | _TENSOR, activations=_BATCH | _TENSOR),
}

# With fewer key/value heads than tensor shards the heads are kept whole on every shard (ABL-5).
REPLICATED_IF_INDIVISIBLE = frozenset("K")

# One row (shape inference at init) or one token per row (decoding) cannot be split.
REPLICATED_IF_ONE = frozenset("BT")


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh and a preset: answers "where does this tensor live?".

    On one device every preset becomes ``single``, so that a program compiled under one serves all.
    """

    mesh: Mesh
    preset: str = "fsdp"

    def __post_init__(self) -> None:
        require_choice("mesh.preset", self.preset, PRESETS)
        if self.mesh.size == 1:
            object.__setattr__(self, "preset", "single")
        preset = PRESETS[self.preset]
        rules = (*preset.parameters.values(), *preset.activations.values())
        used = {axis for axes in rules for axis in axes}
        idle = {axis: size for axis, size in self.mesh.shape.items() if size > 1 and axis not in used}
        require(
            not idle,
            f"mesh.preset {self.preset!r} splits nothing over {idle}: those devices would repeat one "
            "another's work; set the axis to 1, or take the preset 'fsdp_tensor'",
        )

    def axis_size(self, *axes: str) -> int:
        """Number of devices along one mesh axis or a product of several."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def batch_shards(self) -> int:
        """Number of parts that the rows of a batch are split into."""
        return self.activation_shards("B")

    def activation_shards(self, letter: str) -> int:
        """Number of parts that a dimension of activations is split into."""
        return self.axis_size(*PRESETS[self.preset].activations.get(letter, ()))

    def spec(self, dims: str, shape: tuple[int, ...], rules: Rules) -> PartitionSpec:
        """PartitionSpec of a tensor with dimension letters ``dims``.

        Raises:
          ConfigError: a dimension is not divisible by its mesh axes, or two dimensions of the
            tensor want the same axis.
        """
        entries: list[Any] = []
        used: dict[str, str] = {}
        for letter, size in zip(dims, shape, strict=True):
            axes = rules.get(letter, ())
            if letter in REPLICATED_IF_ONE and size == 1:
                axes = ()
            if size % self.axis_size(*axes):
                if letter not in REPLICATED_IF_INDIVISIBLE:
                    raise ConfigError(
                        f"dimension {letter} = {size} of a tensor {dims}{shape} is not divisible by "
                        f"{self.axis_size(*axes)} devices of mesh axis {', '.join(axes)}; change the "
                        "mesh or the size"
                    )
                axes = ()
            for axis in axes:
                if axis in used:
                    raise ConfigError(
                        f"preset {self.preset!r} maps both {used[axis]} and {letter} of {dims} to mesh axis "
                        f"{axis!r}; one axis can split only one dimension of a tensor"
                    )
                used[axis] = letter
            entries.append(axes or None)
        return PartitionSpec(*entries)

    def activation(self, dims: str, shape: tuple[int, ...]) -> NamedSharding:
        """Sharding of an activation or batch tensor."""
        return NamedSharding(self.mesh, self.spec(dims, shape, PRESETS[self.preset].activations))

    def constrain(self, array: jax.Array, dims: str) -> jax.Array:
        """Pin the layout of an activation inside ``jit``; a no-op on one device."""
        if self.mesh.size == 1:
            return array
        return jax.lax.with_sharding_constraint(array, self.activation(dims, array.shape))

    def map_shards(
        self,
        function: Callable[..., tuple[jax.Array, ...]],
        arguments: Sequence[jax.Array],
        dims: Sequence[str],
        out_dims: Sequence[str],
    ) -> tuple[jax.Array, ...]:
        """Run ``function`` on every device's part of the arguments, for code that XLA cannot split itself.

        Args:
          dims: dimension letters of each argument; what the rules do not split, a device gets whole.
          out_dims: the same of each result.
        """
        if self.mesh.size == 1:
            return function(*arguments)
        named = zip(dims, arguments, strict=True)
        sizes = {
            letter: size for names, array in named for letter, size in zip(names, array.shape, strict=True)
        }
        in_specs, out_specs = (
            tuple(self.activation(names, tuple(sizes[letter] for letter in names)).spec for names in each)
            for each in (dims, out_dims)
        )
        shard_map = jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return shard_map(*arguments)

    @property
    def platform(self) -> str:
        """Of the devices of the mesh, which need not be attached: ``cpu``, ``gpu`` or ``tpu``."""
        return self.mesh.devices.flat[0].platform

    @property
    def capability(self) -> str:
        """Compute capability of the GPUs of the mesh, as 9.0; empty elsewhere."""
        return getattr(self.mesh.devices.flat[0], "compute_capability", "")

    def parameter(self, path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        """Sharding of one leaf of a parameter or optimiser tree, from the name in its path."""
        dims = parameter_dims(path, len(leaf.shape))
        return NamedSharding(self.mesh, self.spec(dims, leaf.shape, PRESETS[self.preset].parameters))

    def tree(self, abstract: Any) -> Any:
        """Shardings of a whole tree (parameters, optimiser state, TrainState)."""
        return jax.tree_util.tree_map_with_path(self.parameter, abstract)

    def abstract(self, shapes: Any) -> Any:
        """The shapes and dtypes of a tree with the sharding of every leaf: the target of a restore."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.tree(shapes),
        )

    def make(self, build: Callable[[Any], Any], given: Any) -> Any:
        """The tree that ``build`` gives, in one program: every leaf is made where it will live."""
        return jax.jit(build, out_shardings=self.tree(jax.eval_shape(build, given)))(given)

    def gathered(self) -> "Partitioner":
        """The same devices, those along ``fsdp`` counted to ``data``: they split rows, and no weights."""
        data, fsdp, *rest = self.mesh.devices.shape
        devices = self.mesh.devices.reshape(data * fsdp, 1, *rest)
        return dataclasses.replace(self, mesh=Mesh(devices, self.mesh.axis_names))

    def one_device(self) -> "Partitioner":
        """The first device alone, for code that ``map_shards`` runs: its arrays are what one device holds."""
        return dataclasses.replace(self, mesh=Mesh(self.mesh.devices[:1, :1, :1, :1], self.mesh.axis_names))

    @property
    def replicated(self) -> NamedSharding:
        """The same value on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


def parameter_dims(path: tuple[Any, ...], rank: int) -> str:
    """Dimension letters of a leaf: the suffix of its name, with L in front when layers are stacked.

    Leaves without a suffix (step counters, keys) are replicated: rank times ``.``.
    """
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    suffix = names[-1].rsplit("_", 1)[-1] if names and "_" in names[-1] else ""
    if suffix.isupper() and rank - len(suffix) in (0, 1):
        return "L" * (rank - len(suffix)) + suffix
    if suffix.isupper() and rank > 0:
        raise ConfigError(f"{'/'.join(names)} has rank {rank}, which does not fit its suffix {suffix}")
    return "." * rank


def make_partitioner(config: MeshConfig) -> Partitioner:
    """The mesh of a config over all devices, with its preset.

    Raises:
      ConfigError: the mesh does not fit the number of devices, leaves out a process of the run, or there is
        no such preset.
    """
    partitioner = Partitioner(make_mesh(config), config.preset)
    require_all_processes(partitioner.mesh)
    return partitioner


def single_device() -> Partitioner:
    """Everything on the first device: for notebooks, scoring and tests."""
    return Partitioner(make_mesh(MeshConfig(preset="single")), "single")
