"""How exactly products are computed: in float32 exactly, on every device.

By itself XLA rounds float32 operands to bfloat16 on TPUs, and to TF32 on GPUs. Who wants speed takes
bfloat16 for the model, which rounds everywhere alike.
"""

from typing import Any

import jax
import jax.numpy as jnp


def product_precision(dtype: Any) -> jax.lax.Precision | None:
    """Of products of operands of that dtype. What ``jax_default_matmul_precision`` says, if set, holds."""
    by_default = jax.config.jax_default_matmul_precision is None
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 and by_default else None


def kernel_precision(dtype: Any) -> jax.lax.Precision:
    """The same within a Pallas kernel, whatever jax's default says: before jax 0.12 it knows no others."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def float32_dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """``jnp.einsum`` of operands of one dtype, with float32 sums and result."""
    return jnp.einsum(spec, a, b, precision=product_precision(a.dtype), preferred_element_type=jnp.float32)
