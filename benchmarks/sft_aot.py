"""Updates of supervised fine-tuning with the paper's numbers compiled ahead of time: memory per chip.

pip install -e ".[aot]" && python -m benchmarks.sft_aot
pip install -e ".[aot-hopper]" && JAX_PLATFORMS=cpu python -m benchmarks.sft_aot --chip=h200  # or a100

What ``experiments.sft --config=configs/sft.py:SIZE`` compiles there (64 packed rows of 4,096 tokens,
bfloat16, float32 master weights and AdamW, full remat). What the compiler says; nothing is executed.
"""

from typing import Any

from benchmarks.pods_aot import Pod, compile_all, compile_next_token, devices_of
from benchmarks.step_aot import peak_of
from configs.sft import get_config
from llama2_jax.model.config import model_config

PODS: dict[str, list[Pod]] = {
    "tpu": [("7b", 1, "v5p:2x2x1", {})],
    "h200": [
        ("7b", 1, "h200:1", {"train.accumulation_steps": 64}),
        ("7b", 1, "h200:2", {"train.accumulation_steps": 8}),
        ("7b", 1, "h200:8", {}),
        ("13b", 1, "h200:8", {}),
        ("34b", 1, "h200:8", {"train.accumulation_steps": 8}),
        ("70b", 2, "h200:8", {"train.accumulation_steps": 4}),
    ],
    "a100": [  # of 80 GB
        ("7b", 1, "a100:4", {"train.accumulation_steps": 4}),
        ("7b", 1, "a100:8", {}),
        ("13b", 1, "a100:8", {}),
        ("34b", 2, "a100:8", {"train.accumulation_steps": 4}),
        ("70b", 4, "a100:8", {"train.accumulation_steps": 2}),
    ],
}


def main() -> None:
    """Compile every update and record the table."""
    compile_all("sft_aot", PODS, compile_update, peak_of, description=__doc__)


def compile_update(*, size: str, pods: int, topology: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Compile one update as the stage does."""
    config = get_config(size)
    config.update_from_flattened_dict({"train.num_steps": 1000, **changes})
    return compile_next_token(config, model_config(size, **config.model), devices_of(topology, pods))


if __name__ == "__main__":
    main()
