"""Grouped-query self-attention with rotary positions and an optional key/value cache."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from llama2_jax.kernels import dispatch, reference
from llama2_jax.model.cache import write_slots
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.layers import apply_rotary, projection, residual_init
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import KVCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenInfo:
    """What every layer needs to know about the new tokens."""

    cos: jax.Array  # (B, T, H/2)
    sin: jax.Array  # (B, T, H/2)
    segment_ids_BT: jax.Array
    positions_BT: jax.Array
    # they attend to one another alone, though there is a cache: it was empty
    is_prompt: bool = dataclasses.field(metadata={"static": True})


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

        if cache is not None:
            cache, k_BKSH, v_BKSH = write_slots(cache, layer, k_BTKH, v_BTKH)
        if cache is None or info.is_prompt:
            out_BTNH = self._attend(q_BTNH, k_BTKH, v_BTKH, info.segment_ids_BT)
        else:
            out_BTNH = self._decode(q_BTNH, k_BKSH, v_BKSH, _mask(info, cache))
        if self.is_mutable_collection("intermediates"):
            probs = reference.attention_probs(q_BTNH, k_BTKH, _mask(info))
            self.sow("intermediates", "attention_probs_BNTS", _merge_groups(probs))
        return to_out(self.partitioner.constrain(out_BTNH, "BTNH")), cache

    def _attend(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segment_ids_BT: jax.Array
    ) -> jax.Array:
        part = self.partitioner
        return dispatch.attention(
            q_BTNH,
            _per_shard(k_BTKH, 2, part),
            _per_shard(v_BTKH, 2, part),
            segment_ids_BT=segment_ids_BT,
            impl=self.config.attention_impl,
            platform=part.platform,
            shard=part.map_shards,
        ).out_BTNH

    def _decode(
        self, q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array
    ) -> jax.Array:
        part = self.partitioner
        return dispatch.decode(
            q_BTNH,
            _per_shard(k_BKSH, 1, part),
            _per_shard(v_BKSH, 1, part),
            mask_BTS,
            impl=self.config.attention_impl,
            platform=part.platform,
            shard=part.map_shards,
        )


def _per_shard(x: jax.Array, axis: int, partitioner: Partitioner) -> jax.Array:
    """Keys or values with a head for every shard of query heads, repeated where there are fewer.

    Every device then holds the heads that its query heads read, and no other.
    """
    shards = partitioner.activation_shards("N")
    heads = x.shape[axis]
    return x if heads % shards == 0 else jnp.repeat(x, math.lcm(heads, shards) // heads, axis=axis)


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
