"""Grouped-query self-attention with rotary positions and an optional key/value cache."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax

from llama2_jax.kernels import dispatch, reference
from llama2_jax.model.cache import write_prompt, write_slots
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
    prefix_ids_BT: jax.Array | None
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
        cfg = self.config
        init = nn.initializers.normal(cfg.init_stddev)
        q_shape = (cfg.model_width, cfg.num_heads, cfg.head_dim)
        kv_shape = (cfg.model_width, cfg.num_kv_heads, cfg.head_dim)
        o_shape = (cfg.num_heads, cfg.head_dim, cfg.model_width)
        to_q = projection(self, "w_q_DNH", init, q_shape)
        to_k = projection(self, "w_k_DKH", init, kv_shape)
        to_v = projection(self, "w_v_DKH", init, kv_shape)
        to_out = projection(self, "w_o_NHD", residual_init(cfg), o_shape)

        rotate = functools.partial(
            apply_rotary, cos=info.cos, sin=info.sin, platform=self.partitioner.platform
        )
        q_BTNH, k_BTKH = rotate(to_q(x_BTD)), rotate(to_k(x_BTD))
        v_BTKH = to_v(x_BTD)
        q_BTNH = self.partitioner.constrain(q_BTNH, "BTNH")

        how: dict[str, Any] = {"impl": cfg.attention_impl, "placement": _placement(self.partitioner)}
        if cache is None or info.is_prompt:
            if cache is not None:
                cache, k_BTKH, v_BTKH = write_prompt(cache, layer, k_BTKH, v_BTKH)
            out_BTNH = dispatch.attention(
                q_BTNH,
                k_BTKH,
                v_BTKH,
                segment_ids_BT=info.segment_ids_BT,
                prefix_ids_BT=info.prefix_ids_BT,
                **how,
            ).out_BTNH
        else:
            cache, k_BKSH, v_BKSH = write_slots(cache, layer, k_BTKH, v_BTKH)
            out_BTNH = dispatch.decode(q_BTNH, k_BKSH, v_BKSH, _mask(info, cache), **how)
        if self.is_mutable_collection("intermediates"):
            probs = reference.attention_probs(q_BTNH, k_BTKH, _mask(info))
            self.sow("intermediates", "attention_probs_BNTS", _merge_groups(probs))
        return to_out(self.partitioner.constrain(out_BTNH, "BTNH")), cache


def serves_prefixes(config: ModelConfig, partitioner: Partitioner) -> bool:
    """Whether the implementation of attention serves prefixes, without a slower one in its place."""
    request = dispatch.Request(
        partitioner.platform, config.head_dim, config.compute_dtype, capability=partitioner.capability
    )
    return dispatch.choose(config.attention_impl, request).lse


def _placement(partitioner: Partitioner) -> dispatch.Placement:
    return dispatch.Placement(
        partitioner.platform,
        partitioner.map_shards,
        head_shards=partitioner.activation_shards("N"),
        query_shards=partitioner.activation_shards("T"),
        capability=partitioner.capability,
    )


def _mask(info: TokenInfo, cache: KVCache | None = None) -> jax.Array:
    """Who sees whom: the new tokens among themselves, or all slots of the cache."""
    return reference.attention_mask(
        query_segment_ids_BT=info.segment_ids_BT,
        query_positions_BT=info.positions_BT,
        key_segment_ids_BS=info.segment_ids_BT if cache is None else cache.segment_ids_BS,
        key_positions_BS=info.positions_BT if cache is None else cache.positions_BS,
        query_prefix_ids_BT=info.prefix_ids_BT,
    )


def _merge_groups(probs_BKGTS: jax.Array) -> jax.Array:
    batch, kv_heads, groups, *rest = probs_BKGTS.shape
    return probs_BKGTS.reshape(batch, kv_heads * groups, *rest)
