"""Attention of others behind our arguments: XLA, cuDNN, and the splash and Triton kernels of jax."""

import warnings

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from llama2_jax.config import ConfigError
from llama2_jax.kernels.ranges import KeyRanges, range_mask

MULTIPLE = 128  # of the length of a row, for splash and Triton


def xla(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, ranges: KeyRanges, *, scale: float
) -> jax.Array:
    """``jax.nn.dot_product_attention`` with a mask; holds all scores, memory O(T S)."""
    mask_B1TS = range_mask(ranges, k_BSKH.shape[1])[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, scale=scale, implementation="xla"
    )
    # where nothing is seen it gives the mean of all values
    is_seeing_BT = ranges.end_BT > ranges.first_BT
    return jnp.where(is_seeing_BT[:, :, None, None], out_BTNH, jnp.zeros((), out_BTNH.dtype))


def cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, scale: float, causal: bool
) -> jax.Array:
    """cuDNN's fused attention over rows that are one document each.

    Raises:
      ConfigError: cuDNN does not take these lengths; which it takes depends on its version and the GPU.
    """
    try:
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, scale=scale, is_causal=causal, implementation="cudnn"
        )
    except NotImplementedError as error:
        raise ConfigError(
            f"attention_impl 'cudnn' cannot serve this: {error} Use 'hopper' or 'xla'"
        ) from error


def splash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """The causal splash kernel that ships with jax; documents are masked, not skipped."""
    batch, length, heads, _ = q_BTNH.shape
    groups = heads // k_BTKH.shape[2]
    q_BTNH, k_BTKH, v_BTKH, segment_ids_BT = map(_padded, (q_BTNH * scale, k_BTKH, v_BTKH, segment_ids_BT))
    padded = q_BTNH.shape[1]
    q_BKGTH = q_BTNH.reshape(batch, padded, -1, groups, q_BTNH.shape[-1]).transpose(0, 2, 3, 1, 4)
    k_BKTH, v_BKTH = (array.swapaxes(1, 2) for array in (k_BTKH, v_BTKH))
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((padded, padded))] * groups)
    block = next(size for size in (512, 256, 128) if padded % size == 0)
    kernel = splash_kernel.make_splash_mqa(
        mask,
        block_sizes=splash_kernel.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention_out",
        interpret=interpret,
    )  # fmt: skip
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    ids = splash_kernel.SegmentIds(q=segment_ids_BT, kv=segment_ids_BT)
    out_BKGTH = jax.vmap(over_heads)(q_BKGTH, k_BKTH, v_BKTH, ids)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, padded, heads, -1)[:, :length]


def triton(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    scale: float,
    causal: bool,
    interpret: bool = False,
) -> jax.Array:
    """The Triton kernel that ships with jax; documents are masked, not skipped, and key heads repeated.

    It runs again in the backward pass wherever layers are recomputed: what it keeps has no name.
    """
    with warnings.catch_warnings():  # it says that it is deprecated; jax has no other for these GPUs
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu import attention as kernel

    length, groups = q_BTNH.shape[1], q_BTNH.shape[2] // k_BTKH.shape[2]

    def repeated(array: jax.Array) -> jax.Array:  # in float32: so are gradients of a head summed
        return jnp.repeat(array.astype(jnp.float32), groups, axis=2).astype(array.dtype)

    # the largest that spill no registers, by the compiler (tests/kernels/test_triton_gates.py)
    blocks = kernel.BlockSizes(
        block_q=128, block_k=64, block_q_dkv=32, block_kv_dkv=64, block_q_dq=64, block_kv_dq=32
    )
    out_BTNH = kernel.mha(
        *map(_padded, (q_BTNH, repeated(k_BTKH), repeated(v_BTKH), segment_ids_BT)),
        sm_scale=scale, causal=causal, block_sizes=blocks, num_warps=8, interpret=interpret,
    )  # fmt: skip
    return out_BTNH[:, :length]


def _padded(array: jax.Array) -> jax.Array:
    """Rows (axis 1) of zeros behind, up to a multiple of ``MULTIPLE``."""
    padding = -array.shape[1] % MULTIPLE
    return jnp.pad(array, ((0, 0), (0, padding), *[(0, 0)] * (array.ndim - 2)))
