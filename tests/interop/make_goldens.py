"""Write ``tests/golden/transformers_logits.npz``: what ``transformers`` computes for our test models.

Run on request, in an environment with torch and transformers, and read the difference in review:

    python -m tests.interop.make_goldens

The file holds tokens and float32 logits only; the weights come from a numpy seed.
"""

import tempfile
from pathlib import Path

import numpy as np

from llama2_jax.interop.huggingface import save_huggingface
from llama2_jax.model.config import ModelConfig
from tests.interop.models import SHAPES, random_params

GOLDEN = Path(__file__).parents[1] / "golden" / "transformers_logits.npz"
SEED = 7


def sample_tokens(config: ModelConfig) -> np.ndarray:
    """Two rows of 16 ids."""
    return np.random.default_rng(SEED).integers(0, config.vocab_size, (2, 16))


def transformers_logits(folder: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """Logits of ``AutoModelForCausalLM`` on a folder, float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens_BT)).logits.numpy()


def main() -> None:
    arrays = {}
    for name, config in SHAPES.items():
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            save_huggingface(folder, config, random_params(config, seed=SEED), tokenizer=None)
            arrays[f"{name}/tokens"] = sample_tokens(config).astype(np.int32)
            arrays[f"{name}/logits"] = transformers_logits(folder, sample_tokens(config))
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
