"""Model FLOPs per token and MFU, in the conventions others publish.

MFU = tokens/s/device * FLOPs/token / peak FLOP/s. Numbers of different projects compare only
when the convention is the same, so every report names it.
"""

import functools
import time

import jax
import jax.numpy as jnp

from llama2_jax.config import require_choice
from llama2_jax.model.config import ModelConfig, parameter_count

CONVENTIONS = ("full_no_embed", "causal_no_embed", "full")

# Dense bf16 matrix peak, FLOP/s per device (vendor data sheets), by jax device_kind.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def flops_per_token(
    config: ModelConfig, sequence_length: int, *, convention: str, num_outputs: int | None = None
) -> float:
    """FLOPs of forward and backward pass per trained token.

    ``full_no_embed``: 6 (N - V D) + 12 L S N_h H (MaxText before July 2025, NVIDIA logs).
    ``causal_no_embed``: half the attention term (MaxText since). ``full``: 6 N + the whole
    attention term (torchtitan). V D is the input embedding, a look-up.

    Args:
      num_outputs: of the head; None = the vocabulary, 1 for a score.
    """
    require_choice("MFU convention", convention, CONVENTIONS)
    embedding = config.vocab_size * config.model_width
    head = embedding if num_outputs is None else num_outputs * config.model_width
    is_shared = config.tie_embeddings and num_outputs is None
    parameters = parameter_count(config) - embedding * (1 if config.tie_embeddings else 2) + head
    if convention == "full" and not is_shared:
        parameters += embedding
    attention = 12 * config.num_layers * sequence_length * config.num_heads * config.head_dim
    if convention == "causal_no_embed":
        attention //= 2
    return float(6 * parameters + attention)


def mfu(tokens_per_sec: float, flops: float, *, num_devices: int, peak_flops: float) -> float:
    """Share of the peak that the model's own FLOPs use, 0 to 1."""
    return tokens_per_sec * flops / (num_devices * peak_flops)


def peak_flops(given: float = 0.0) -> tuple[float, str]:
    """FLOP/s of one device and where the number comes from.

    ``given`` wins; then the data-sheet table; on other devices the rate of a matrix product is measured
    (float32 on a CPU, else bfloat16), so that MFU means "share of what this machine can do".
    """
    if given > 0:
        return given, "config"
    device = jax.devices()[0]
    if device.device_kind in PEAK_FLOPS:
        return PEAK_FLOPS[device.device_kind], f"data sheet, bf16, {device.device_kind}"
    if device.platform == "cpu":
        return measured_matrix_rate(), "measured float32 matrix product"
    rate = measured_matrix_rate(size=8192, dtype="bfloat16")
    return rate, f"measured bfloat16 matrix product, {device.device_kind}"


@functools.cache
def measured_matrix_rate(size: int = 1024, dtype: str = "float32") -> float:
    """FLOP/s of the fastest of 30 products of two random (size, size) matrices."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # zeros need less power, hence clock higher
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(30):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
