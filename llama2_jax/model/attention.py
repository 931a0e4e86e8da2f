"""Grouped-query self-attention with rotary positions and an optional key/value cache."""

from typing import NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from llama2_jax.kernels import cached, chunked, reference
from llama2_jax.model.cache import write_slots
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.layers import apply_rotary, projection, residual_init
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import KVCache


class TokenInfo(NamedTuple):
    """What every layer needs to know about the new tokens."""

    cos: jax.Array  # (B, T, H/2)
    sin: jax.Array  # (B, T, H/2)
    segment_ids_BT: jax.Array
    positions_BT: jax.Array


class Attention(nn.Module):
    """Self-attention of one layer."""

    config: ModelConfig
    partitioner: Partitioner
    outputs_first: bool = False  # layout of the weights

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, info: TokenInfo, cache: KVCache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, KVCache | None]:
        """(B, T, D) -> (B, T, D) and the cache with this layer's keys and values written."""
        cfg, dtype = self.config, x_BTD.dtype
        init = nn.initializers.normal(cfg.init_stddev)
        q_shape = (cfg.model_width, cfg.num_heads, cfg.head_dim)
        kv_shape = (cfg.model_width, cfg.num_kv_heads, cfg.head_dim)
        o_shape = (cfg.num_heads, cfg.head_dim, cfg.model_width)
        to_q = projection(self, "w_q_DNH", init, q_shape, dtype)
        to_k = projection(self, "w_k_DKH", init, kv_shape, dtype)
        to_v = projection(self, "w_v_DKH", init, kv_shape, dtype)
        to_out = projection(self, "w_o_NHD", residual_init(cfg), o_shape, dtype)

        q_BTNH = apply_rotary(to_q(x_BTD), info.cos, info.sin)
        k_BTKH = apply_rotary(to_k(x_BTD), info.cos, info.sin)
        v_BTKH = to_v(x_BTD)
        q_BTNH = self.partitioner.constrain(q_BTNH, "BTNH")

        if cache is None:
            out_BTNH = chunked.attention(q_BTNH, k_BTKH, v_BTKH, info.segment_ids_BT, info.positions_BT)
            out_BTNH = checkpoint_name(out_BTNH, "attention_out")
        else:
            cache, k_BKSH, v_BKSH = write_slots(cache, layer, k_BTKH, v_BTKH)
            out_BTNH = cached.attention(q_BTNH, k_BKSH, v_BKSH, _mask(info, cache))
        if self.is_mutable_collection("intermediates"):
            probs = reference.attention_probs(q_BTNH, k_BTKH, _mask(info))
            self.sow("intermediates", "attention_probs_BNTS", _merge_groups(probs))
        return to_out(self.partitioner.constrain(out_BTNH, "BTNH")), cache


def _mask(info: TokenInfo, cache: KVCache | None = None) -> jax.Array:
    """Who sees whom: the new tokens among themselves, or all slots of the cache."""
    return reference.attention_mask(
        query_segment_ids_BT=info.segment_ids_BT,
        query_positions_BT=info.positions_BT,
        key_segment_ids_BS=info.segment_ids_BT if cache is None else cache.segment_ids_BS,
        key_positions_BS=info.positions_BT if cache is None else cache.positions_BS,
    )


def _merge_groups(probs_BKGTS: jax.Array) -> jax.Array:
    batch, kv_heads, groups, *rest = probs_BKGTS.shape
    return probs_BKGTS.reshape(batch, kv_heads * groups, *rest)
