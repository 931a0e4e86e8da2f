"""Grouped-query self-attention with rotary positions and an optional key/value cache."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.kernels import reference
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.layers import apply_rotary, residual_init
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import KVCache


class TokenInfo(NamedTuple):
    """What every layer needs to know about the tokens: angles of the queries and who sees whom."""

    cos: jax.Array  # (B, T, H/2)
    sin: jax.Array  # (B, T, H/2)
    mask_BTS: jax.Array  # True where the query may see the key (S = T without a cache)


class Attention(nn.Module):
    """Self-attention of one layer."""

    config: ModelConfig
    partitioner: Partitioner

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, info: TokenInfo, cache: KVCache | None, layer: jax.Array
    ) -> tuple[jax.Array, KVCache | None]:
        """(B, T, D) -> (B, T, D) and the cache with this layer's keys and values written."""
        cfg, dtype = self.config, x_BTD.dtype
        init = nn.initializers.normal(cfg.init_stddev)
        q_shape = (cfg.model_width, cfg.num_heads, cfg.head_dim)
        kv_shape = (cfg.model_width, cfg.num_kv_heads, cfg.head_dim)
        w_q_DNH = self.param("w_q_DNH", init, q_shape, jnp.float32).astype(dtype)
        w_k_DKH = self.param("w_k_DKH", init, kv_shape, jnp.float32).astype(dtype)
        w_v_DKH = self.param("w_v_DKH", init, kv_shape, jnp.float32).astype(dtype)
        w_o_shape = (cfg.num_heads, cfg.head_dim, cfg.model_width)
        w_o_NHD = self.param("w_o_NHD", residual_init(cfg), w_o_shape, jnp.float32).astype(dtype)

        q_BTNH = apply_rotary(jnp.einsum("BTD,DNH->BTNH", x_BTD, w_q_DNH), info.cos, info.sin)
        k_BTKH = apply_rotary(jnp.einsum("BTD,DKH->BTKH", x_BTD, w_k_DKH), info.cos, info.sin)
        v_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, w_v_DKH)
        q_BTNH = self.partitioner.constrain(q_BTNH, "BTNH")

        if cache is None:
            k_BSKH, v_BSKH = k_BTKH, v_BTKH
        else:
            cache, k_BSKH, v_BSKH = _write(cache, layer, k_BTKH, v_BTKH)
            k_BSKH, v_BSKH = k_BSKH.astype(dtype), v_BSKH.astype(dtype)

        if self.is_mutable_collection("intermediates"):
            probs = reference.attention_probs(q_BTNH, k_BSKH, info.mask_BTS)
            self.sow("intermediates", "attention_probs_BNTS", probs.reshape(probs.shape[0], -1, *probs.shape[3:]))
        out_BTNH = checkpoint_name(reference.attention(q_BTNH, k_BSKH, v_BSKH, info.mask_BTS), "attention_out")
        out_BTNH = self.partitioner.constrain(out_BTNH, "BTNH")
        return jnp.einsum("BTNH,NHD->BTD", out_BTNH, w_o_NHD), cache


def _write(
    cache: KVCache, layer: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Write T new slots of one layer in place; return the cache and that layer's keys and values."""
    start = (layer, 0, cache.index, 0, 0)
    k_LBSKH = jax.lax.dynamic_update_slice(cache.k_LBSKH, k_BTKH[None].astype(cache.k_LBSKH.dtype), start)
    v_LBSKH = jax.lax.dynamic_update_slice(cache.v_LBSKH, v_BTKH[None].astype(cache.v_LBSKH.dtype), start)
    cache = cache._replace(k_LBSKH=k_LBSKH, v_LBSKH=v_LBSKH)
    return cache, k_LBSKH[layer], v_LBSKH[layer]
