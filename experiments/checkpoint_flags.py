"""Flags of the programs that use checkpoints: which it is, how it is read, on how many devices."""

import jax
from absl import flags

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import TEMPLATES
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.rlhf.reward_checkpoint import load_reward_model
from llama2_jax.rlhf.reward_model import RewardModel
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.rules import Partitioner

flags.disclaim_key_flags()  # they are the program's that defines them, so that its --help shows them


SOURCE = "Workdir, Hugging Face folder, Meta folder or GGUF file."


def define(values: flags.FlagValues = flags.FLAGS, *, required: bool = True) -> None:
    """Add the flags that ``load_checkpoint`` reads.

    Args:
      required: no step of the program can do without a checkpoint.
    """
    flags.DEFINE_string("checkpoint", None, SOURCE, flag_values=values, required=required)
    define_reading(values)


def define_reading(values: flags.FlagValues = flags.FLAGS) -> None:
    """Add those that say how a checkpoint is read, for programs that do not always have just one."""
    dtypes = ["float32", "bfloat16"]
    flags.DEFINE_enum("dtype", "float32", dtypes, "Of parameters and computation.", flag_values=values)
    devices = "Devices that the model is split over."
    flags.DEFINE_integer("tensor", 1, devices, lower_bound=1, flag_values=values)
    kernels = "A name of llama2_jax/kernels/implementations.py."
    flags.DEFINE_string("attention_impl", "auto", kernels, flag_values=values)
    chat = "Chat template; the checkpoint's own if not given."
    flags.DEFINE_enum("template", None, list(TEMPLATES), chat, flag_values=values)


def load_checkpoint(values: flags.FlagValues = flags.FLAGS, *, path: str | None = None) -> LoadedModel:
    """The model that the flags name.

    Args:
      path: of another model, read in the same way.

    Raises:
      ConfigError: fewer devices than ``--tensor``, or a size of the model that they do not divide;
        else as ``llama2_jax.pretrained.load``.
    """
    return load(
        path or values.checkpoint,
        dtype=values.dtype,
        compute_dtype=values.dtype,
        attention_impl=values.attention_impl,
        template=values.template,
        partitioner=tensor_parallel(values.tensor),
    )


def load_reward_checkpoint(values: flags.FlagValues = flags.FLAGS) -> RewardModel:
    """The reward model that the flags name.

    Raises:
      ConfigError: as ``load_checkpoint``; else as ``load_reward_model``.
    """
    return load_reward_model(
        values.checkpoint,
        compute_dtype=values.dtype,
        attention_impl=values.attention_impl,
        template=values.template,
        partitioner=tensor_parallel(values.tensor),
    )


def tensor_parallel(num_devices: int) -> Partitioner:
    """Heads, feed-forward and vocabulary split over the first ``num_devices`` devices.

    Raises:
      ConfigError: there are not so many.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise ConfigError(
            f"--tensor={num_devices} needs as many devices, but {len(devices)} are present; "
            "lower it or run on more devices"
        )
    config = MeshConfig(preset="fsdp_tensor", fsdp=1, tensor=num_devices)
    if jax.process_count() > 1 and num_devices < len(devices):
        raise ConfigError(
            f"--tensor={num_devices} leaves out some of the {len(devices)} devices of {jax.process_count()} "
            f"processes, which all take part; set --tensor={len(devices)} or run one process"
        )
    return Partitioner(make_mesh(config, devices[:num_devices]), config.preset)
