"""RMSNorm, rotary embedding and SwiGLU, exact to the reference code (ARCH-3, 4, 7)."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.model.config import ModelConfig
from llama2_jax.precision import product_precision
from llama2_jax.sharding.rules import Partitioner


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def look_up(table_VD: jax.Array, ids_BT: jax.Array, dtype: Any, partitioner: Partitioner) -> jax.Array:
    """Rows of the table in ``dtype``, (B, T, D). The gradient sums over tokens, and over devices, in float32.

    By itself JAX would add up in that dtype: in bfloat16 a sum of equal terms stands still after
    256 of them, and the gradient of a frequent token is too small. Other sums over tokens are those
    of matrix products, which are float32 inside.
    """
    # gathered over fsdp like any other weight, else the look-up would be split along D; here, because
    # outside the gradient would be whole on every device too
    return partitioner.constrain(jnp.asarray(table_VD, dtype), "VD")[ids_BT]


def _look_up_forward(
    table_VD: jax.Array, ids_BT: jax.Array, dtype: Any, partitioner: Partitioner
) -> tuple[jax.Array, Any]:
    like_V0 = jnp.zeros((len(table_VD), 0), table_VD.dtype)
    return look_up.fun(table_VD, ids_BT, dtype, partitioner), (ids_BT, like_V0)  # .fun: jvp of grad works


def _look_up_backward(
    dtype: Any, partitioner: Partitioner, kept: Any, d_rows_BTD: jax.Array
) -> tuple[jax.Array, None]:
    ids_BT, like_V0 = kept
    sums_VD = jnp.zeros((len(like_V0), d_rows_BTD.shape[-1]), jnp.float32)
    sums_VD = sums_VD.at[ids_BT].add(d_rows_BTD.astype(jnp.float32))
    # every device adds up its own tokens; else XLA may send all of them to all
    return partitioner.constrain(sums_VD, "VD").astype(like_V0.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


@jax.custom_vjp
def scaled(x: jax.Array, scale_D: jax.Array) -> jax.Array:
    """x times the scale, in the dtype of x; like ``look_up`` its gradient sums over tokens in float32."""
    return x * scale_D.astype(x.dtype)


def _scaled_forward(x: jax.Array, scale_D: jax.Array) -> tuple[jax.Array, Any]:
    cast_D = scale_D.astype(x.dtype)  # kept so, its parts are gathered once: see ``multiply``
    return scaled.fun(x, cast_D), (x, cast_D, jnp.zeros((), scale_D.dtype))


def _scaled_backward(kept: Any, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale_D, like = kept
    over_tokens = tuple(range(x.ndim - 1))
    d_scale_D = (d_out.astype(jnp.float32) * x.astype(jnp.float32)).sum(over_tokens)
    return d_out * scale_D, d_scale_D.astype(like.dtype)


scaled.defvjp(_scaled_forward, _scaled_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def multiply(
    x: jax.Array, weight: jax.Array, contract: int, out_dtype: Any, keep_cast: bool = True
) -> jax.Array:
    """The last ``contract`` dims of ``x`` times the first of ``weight``, which is cast to the dtype of ``x``.

    The gradient of a float32 weight comes in float32, before devices add up their parts of it. By itself
    JAX would give it the dtype of ``x``: in bfloat16 a sum over devices loses digits with each of them.
    The gradient of the result is rounded to the dtype of ``x`` first, also that of float32 logits.

    Args:
      keep_cast: the backward pass finds the cast weight, for which XLA gathers its parts once, where the
        product is recomputed shortly before or its gradient follows at once. Else it finds the weight
        itself, which takes no memory from the forward pass to the backward pass.
    """
    precision = product_precision(x.dtype)
    return jnp.tensordot(
        x, weight.astype(x.dtype), contract, precision=precision, preferred_element_type=out_dtype
    )


def _multiply_forward(
    x: jax.Array, weight: jax.Array, contract: int, out_dtype: Any, keep_cast: bool
) -> tuple[jax.Array, Any]:
    cast = weight.astype(x.dtype)
    like = jnp.zeros((), weight.dtype)
    return multiply.fun(x, cast, contract, out_dtype), (x, cast if keep_cast else weight, like)


def _multiply_backward(
    contract: int, out_dtype: Any, keep_cast: bool, kept: Any, d_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight, like = kept
    d_out = d_out.astype(x.dtype)
    outputs, rows = list(range(contract - weight.ndim, 0)), list(range(x.ndim - contract))
    product = functools.partial(jnp.tensordot, precision=product_precision(x.dtype))
    d_x = product(d_out, weight.astype(x.dtype), (outputs, outputs))
    # outputs first, then turned, as JAX does: in float32 results stay the same to the bit
    d_weight = product(d_out, x, (rows, rows), preferred_element_type=jnp.float32)
    d_weight = jnp.moveaxis(d_weight, range(-contract, 0), range(contract))
    return d_x, d_weight.astype(like.dtype)


multiply.defvjp(_multiply_forward, _multiply_backward)


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then times the scale (ARCH-3)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last dim."""
        scale_D = self.param("scale_D", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return scaled(normed.astype(x.dtype), scale_D)


def rotary_angles(positions_BT: jax.Array, *, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 (B, T, H/2), of position * base^(-2i/H)."""
    inverse_frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BT[..., None].astype(jnp.float32) * inverse_frequency
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array, *, platform: str = "cpu") -> jax.Array:
    """Rotate the pairs (2i, 2i+1) of each head by their angle: Meta's interleaved layout (ARCH-4).

    A TPU cannot take every second number of a row without copies of the whole array; there neighbours change
    places in a product with a permutation, which is exact.
    """
    if platform == "tpu" and x_BTNH.dtype.itemsize == 2:
        return _rotated_by_product(x_BTNH, cos, sin)
    pairs = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x_BTNH.shape).astype(x_BTNH.dtype)


@jax.custom_vjp
def _rotated_by_product(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    place_H = np.arange(x_BTNH.shape[-1])
    swap_HH = np.zeros((len(place_H), len(place_H)), x_BTNH.dtype)
    swap_HH[place_H ^ 1, place_H] = np.where(place_H % 2, 1, -1)  # -odd, even, -odd, even, ...
    swapped_BTNH = jnp.einsum("BTNH,HJ->BTNJ", x_BTNH, swap_HH, preferred_element_type=jnp.float32)
    cos, sin = (jnp.repeat(angle, 2, axis=-1)[:, :, None, :] for angle in (cos, sin))
    return (x_BTNH.astype(jnp.float32) * cos + swapped_BTNH * sin).astype(x_BTNH.dtype)


_rotated_by_product.defvjp(
    lambda x_BTNH, cos, sin: (_rotated_by_product.fun(x_BTNH, cos, sin), (cos, sin)),
    lambda angles, d_out: (_rotated_by_product.fun(d_out, angles[0], -angles[1]), None, None),  # back again
)


def projection(
    module: Any, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
) -> Callable[[jax.Array], jax.Array]:
    """A weight of ``module``, declared in the layout that it says, as the function that multiplies by it.

    Args:
      module: with ``config``, ``partitioner`` and ``outputs_first``.
      name: of the layout for training, inputs first, as ``shape``.
    """
    inputs = input_dims(name)
    if module.outputs_first:
        name, shape = outputs_first_name(name), (*shape[inputs:], *shape[:inputs])
    weight = module.param(name, init, shape, jnp.float32)

    def multiplied(x: jax.Array) -> jax.Array:
        product = project(
            x,
            weight,
            partitioner=module.partitioner,
            contract=inputs,
            outputs_first=module.outputs_first,
            keep_cast=module.config.remat_policy != "none",
        )
        return checkpoint_name(product, "product")  # what the remat policy "dots" keeps

    return multiplied


def input_dims(name: str) -> int:
    """How many dims of the weight of that name are summed over."""
    return 2 if name == "w_o_NHD" else 1


def outputs_first_name(name: str) -> str:
    """``w_q_DNH`` -> ``w_q_NHD``."""
    stem, _, dims = name.rpartition("_")
    inputs = input_dims(name)
    return f"{stem}_{dims[inputs:]}{dims[:inputs]}"


def project(
    x: jax.Array,
    weight: jax.Array,
    *,
    partitioner: Partitioner,
    contract: int = 1,
    outputs_first: bool = False,
    out_dtype: Any = None,
    keep_cast: bool = True,
) -> jax.Array:
    """The last ``contract`` dims of ``x`` (B, T, ...) times the first of ``weight``, in the dtype of ``x``.

    Rows are flattened to one 2-D product where a device holds whole rows: XLA:CPU would copy and
    transpose the operands of the weight gradient otherwise (a quarter of the time of the layer), and in
    bfloat16 it has no such product unless a sum over devices follows. XLA:TPU would where they are.

    Args:
      outputs_first: with the last of ``weight``. Where rows are few, as when decoding, XLA:CPU takes
        half the time with the weight on the left, whose rows it then reads once and in order; the
        barriers keep it from turning the product around again.
      keep_cast: as in ``multiply``.
    """
    out_dtype = out_dtype or x.dtype
    kept = weight.shape[:-contract] if outputs_first else weight.shape[contract:]
    trains_on_tpu = partitioner.platform == "tpu" and not outputs_first
    if trains_on_tpu or partitioner.axis_size("sequence") > 1:
        if outputs_first:
            weight = jnp.moveaxis(weight, range(-contract, 0), range(contract))
        return multiply(x, weight, contract, out_dtype, keep_cast)
    rows = x.reshape(-1, math.prod(x.shape[-contract:]))
    if not outputs_first:
        product = multiply(rows, weight.reshape(rows.shape[1], -1), 1, out_dtype, keep_cast)
    elif x.shape[1] == 1:
        weight = weight.astype(x.dtype).reshape(-1, rows.shape[1])
        turned = jnp.matmul(
            weight,
            jax.lax.optimization_barrier(rows.T),
            precision=product_precision(x.dtype),
            preferred_element_type=out_dtype,
        )
        product = jax.lax.optimization_barrier(turned).T
    else:
        product = multiply(rows, weight.reshape(-1, rows.shape[1]).T, 1, out_dtype, keep_cast)
    return product.reshape(*x.shape[:2], *kept)


class FeedForward(nn.Module):
    """w_down(silu(w_gate x) * w_up x) (ARCH-7)."""

    config: ModelConfig
    partitioner: Partitioner
    outputs_first: bool = False  # layout of the weights

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        cfg = self.config
        init = nn.initializers.normal(cfg.init_stddev)
        shape = (cfg.model_width, cfg.feed_forward_width)
        gate = projection(self, "w_gate_DF", init, shape)
        up = projection(self, "w_up_DF", init, shape)
        down = projection(self, "w_down_FD", residual_init(cfg), shape[::-1])
        hidden_BTF = nn.silu(gate(x_BTD)) * up(x_BTD)
        return down(self.partitioner.constrain(hidden_BTF, "BTF"))


def residual_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Init of projections that write to the residual stream: scaled by 1/sqrt(2 L) (ARCH-12)."""
    return nn.initializers.normal(config.init_stddev / (2 * config.num_layers) ** 0.5)
