"""What several config files share."""

from ml_collections import ConfigDict


def mesh(*, data: int = 1, fsdp: int = -1) -> ConfigDict:
    """Devices along the axes (-1: all that remain); parameters are split over the ``fsdp`` axis."""
    return ConfigDict({"preset": "fsdp", "data": data, "fsdp": fsdp, "tensor": 1, "sequence": 1})


def set_seeds(config: ConfigDict, seed: int) -> None:
    """One seed for all that is drawn in any stage."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            set_seeds(value, seed)
        elif name == "seed":
            config.seed = seed
