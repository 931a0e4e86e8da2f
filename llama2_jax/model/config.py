"""Model shapes: ``ModelConfig``, the named sizes, and parameter counts.

Llama 2, section 2.2 and Table 1; widths of the released params.json (34B: the public Code
Llama 34B, since the paper prints no shape and never released its own).
"""

import dataclasses
import numbers
from typing import Any

from llama2_jax.config import require, require_choice
from llama2_jax.kernels.implementations import NAMES as ATTENTION_NAMES

REMAT_POLICIES = ("none", "full", "dots", "attention")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of one Llama-architecture decoder."""

    vocab_size: int  # rows of the embedding
    model_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    feed_forward_width: int
    max_context: int = 4096
    head_dim: int = 0  # 0 = model_width / num_heads, which ``dataclasses.replace`` then keeps
    norm_epsilon: float = 1e-5
    rope_base: float = 10_000.0
    tie_embeddings: bool = False  # Llama 2 is untied; some imported models are not
    tokenizer_size: int = 0  # ids from here on are spare rows, which nothing predicts; 0 = there are none
    init_stddev: float = 0.02  # not in the paper (ARCH-12)
    compute_dtype: str = "float32"
    remat_policy: str = "none"
    attention_impl: str = "auto"  # a name of kernels/implementations.py

    def __post_init__(self) -> None:
        integers = (
            "vocab_size", "model_width", "num_layers", "num_heads",
            "num_kv_heads", "feed_forward_width", "max_context",
        )  # fmt: skip
        for name in (*integers, "head_dim", "tokenizer_size"):
            value = getattr(self, name)
            is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            require(is_integer, f"model.{name} = {value!r} must be an integer")
        for name in (*integers, "norm_epsilon", "rope_base"):
            require(getattr(self, name) > 0, f"model.{name} = {getattr(self, name)} must be positive")
        for name in ("head_dim", "tokenizer_size", "init_stddev"):
            require(getattr(self, name) >= 0, f"model.{name} = {getattr(self, name)} must not be negative")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}; "
            "every key/value head serves the same number of query heads",
        )
        if self.head_dim == 0:
            require(
                self.model_width % self.num_heads == 0,
                f"model.model_width = {self.model_width} is not a multiple of num_heads = {self.num_heads}; "
                "set model.head_dim or change one of them",
            )
            object.__setattr__(self, "head_dim", self.model_width // self.num_heads)
        require(self.head_dim % 2 == 0, f"model.head_dim = {self.head_dim} must be even: RoPE rotates pairs")
        require_choice("model.remat_policy", self.remat_policy, REMAT_POLICIES)
        require_choice("model.compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        require_choice("model.attention_impl", self.attention_impl, ATTENTION_NAMES)

    @property
    def num_ids(self) -> int:
        """Ids that stand for something."""
        return self.tokenizer_size or self.vocab_size


def feed_forward_width(model_width: int, *, multiple_of: int, multiplier: float | None = None) -> int:
    """SwiGLU width of the reference code (ARCH-7): 2/3 of 4D, scaled, rounded up."""
    width = int(2 * (4 * model_width) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def _size(
    width: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, context: int
) -> dict[str, Any]:
    return {
        "model_width": width,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "feed_forward_width": ffn,
        "vocab_size": vocab,
        "max_context": context,
    }


_ffn = feed_forward_width
SIZES: dict[str, dict[str, Any]] = {
    # toy sizes (the paper has none)
    "nano": _size(64, 2, 4, 2, _ffn(64, multiple_of=32), 512, 128),
    "micro": _size(128, 4, 8, 2, _ffn(128, multiple_of=32), 1024, 256),
    "mini": _size(256, 6, 8, 2, _ffn(256, multiple_of=32), 2048, 512),
    "small": _size(768, 12, 12, 12, _ffn(768, multiple_of=32), 16_384, 2048),
    # Table 1
    "7b": _size(4096, 32, 32, 32, _ffn(4096, multiple_of=256), 32_000, 4096),
    "13b": _size(5120, 40, 40, 40, _ffn(5120, multiple_of=256), 32_000, 4096),
    "34b": _size(8192, 48, 64, 8, _ffn(8192, multiple_of=256), 32_000, 4096),
    "70b": _size(8192, 80, 64, 8, _ffn(8192, multiple_of=4096, multiplier=1.3), 32_000, 4096),
}
PAPER_SIZES = ("7b", "13b", "34b", "70b")  # also the order of the paper's published results


def model_config(size: str, **changes: Any) -> ModelConfig:
    """The named size, with fields changed: ``model_config("7b", remat_policy="full")``."""
    require_choice("model size", size, SIZES)
    return ModelConfig(**{**SIZES[size], **changes})


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters in closed form (the tests compare it with the abstract shapes)."""
    attention = config.model_width * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    feed_forward = 3 * config.model_width * config.feed_forward_width
    per_layer = attention + feed_forward + 2 * config.model_width
    embeddings = config.vocab_size * config.model_width * (1 if config.tie_embeddings else 2)
    return config.num_layers * per_layer + config.model_width + embeddings


def kv_cache_bytes_per_token(config: ModelConfig, *, bytes_per_value: int = 2) -> int:
    """Bytes one cached token takes over all layers (ARCH-8), by default in bfloat16."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * bytes_per_value
