"""What several config files share."""

from typing import Any

from ml_collections import ConfigDict

SAMPLED_BY = {"34b": 8, "70b": 8}  # devices that hold the weights together while answers are made


def new_config() -> ConfigDict:
    """What every config begins with: whether to go on in a workdir that another config began."""
    return ConfigDict({"accept_changed_config": False})


def mesh() -> ConfigDict:
    """Devices along the axes (-1: all that remain); parameters are split over the ``fsdp`` axis."""
    return ConfigDict({"preset": "fsdp", "data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})


def sampling_mesh(size: str = "") -> ConfigDict:
    """Of a stage that makes answers: weights are whole on every device then, but for ``tensor`` (PPO-8).

    Where the size is not known ``tensor`` is 1; with a model that one device cannot hold, set it.
    """
    config = mesh()
    config.update(preset="fsdp_tensor", tensor=SAMPLED_BY.get(size, 1))
    return config


def optimizer(learning_rate: float, **changes: Any) -> ConfigDict:
    """AdamW of section 2.2, which all stages share but for ``changes`` (OPT-1..4, PPO-5)."""
    config = ConfigDict()
    config.learning_rate = learning_rate  # peak
    config.schedule = "cosine"
    config.warmup_steps = 0
    config.warmup_fraction = 0.0  # of all steps; the longer warm-up holds
    config.final_fraction = 0.1
    config.beta1 = 0.9
    config.beta2 = 0.95
    config.epsilon = 1e-5
    config.weight_decay = 0.1
    config.grad_clip_norm = 1.0
    config.update(changes)
    return config


def set_seeds(config: ConfigDict, seed: int) -> None:
    """One seed for all that is drawn in any stage."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            set_seeds(value, seed)
        elif name == "seed":
            config.seed = seed
