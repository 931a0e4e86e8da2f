"""RMSNorm, rotary embedding and SwiGLU, exact to the reference code (ARCH-3, 4, 7)."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llama2_jax.model.config import ModelConfig
from llama2_jax.sharding.rules import Partitioner


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then times the scale (ARCH-3)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last dim."""
        scale_D = self.param("scale_D", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return normed.astype(x.dtype) * scale_D.astype(x.dtype)


def rotary_angles(positions_BT: jax.Array, *, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 (B, T, H/2), of position * base^(-2i/H)."""
    inverse_frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BT[..., None].astype(jnp.float32) * inverse_frequency
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (2i, 2i+1) of each head by their angle: Meta's interleaved layout (ARCH-4)."""
    pairs = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x_BTNH.shape).astype(x_BTNH.dtype)


def project(
    x: jax.Array, weight: jax.Array, *, partitioner: Partitioner, contract: int = 1, out_dtype: Any = None
) -> jax.Array:
    """Multiply the last ``contract`` dims of ``x`` (B, T, ...) with the first of ``weight``.

    Rows are flattened to one 2-D product where a device holds whole rows: XLA:CPU would copy and
    transpose the operands of the weight gradient otherwise (a quarter of the time of the layer).
    """
    out_dtype = out_dtype or x.dtype
    if partitioner.axis_size("sequence") > 1:
        return jnp.tensordot(x, weight, contract, preferred_element_type=out_dtype)
    inner = math.prod(weight.shape[:contract])
    product = jnp.matmul(x.reshape(-1, inner), weight.reshape(inner, -1), preferred_element_type=out_dtype)
    return product.reshape(*x.shape[:2], *weight.shape[contract:])


class FeedForward(nn.Module):
    """w_down(silu(w_gate x) * w_up x) (ARCH-7)."""

    config: ModelConfig
    partitioner: Partitioner

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        cfg, dtype = self.config, x_BTD.dtype
        init = nn.initializers.normal(cfg.init_stddev)
        shape = (cfg.model_width, cfg.feed_forward_width)
        w_gate_DF = self.param("w_gate_DF", init, shape, jnp.float32).astype(dtype)
        w_up_DF = self.param("w_up_DF", init, shape, jnp.float32).astype(dtype)
        w_down_FD = self.param("w_down_FD", residual_init(cfg), shape[::-1], jnp.float32).astype(dtype)
        linear = functools.partial(project, partitioner=self.partitioner)
        hidden_BTF = nn.silu(linear(x_BTD, w_gate_DF)) * linear(x_BTD, w_up_DF)
        return linear(self.partitioner.constrain(hidden_BTF, "BTF"), w_down_FD)


def residual_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Init of projections that write to the residual stream: scaled by 1/sqrt(2 L) (ARCH-12)."""
    return nn.initializers.normal(config.init_stddev / (2 * config.num_layers) ** 0.5)
