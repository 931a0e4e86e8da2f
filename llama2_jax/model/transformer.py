"""The Llama 2 decoder (ARCH-2): one function for training, scoring and cached decoding.

Parameters are a nested dict; layers are scanned, so every leaf under ``layers`` has L first::

    embedding_VD
    layers/attention_norm/scale_D, layers/attention/{w_q_DNH, w_k_DKH, w_v_DKH, w_o_NHD}
    layers/feed_forward_norm/scale_D, layers/feed_forward/{w_gate_DF, w_up_DF, w_down_FD}
    final_norm/scale_D
    unembedding_DV  (absent when the embedding is tied)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from llama2_jax.config import require
from llama2_jax.model.attention import Attention, TokenInfo, serves_prefixes
from llama2_jax.model.cache import claim_slots, fits
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.layers import (
    FeedForward,
    RMSNorm,
    input_dims,
    look_up,
    outputs_first_name,
    project,
    rotary_angles,
)
from llama2_jax.sharding.rules import Partitioner, single_device
from llama2_jax.structs import KVCache, ModelOutput, Params

Carry = tuple[jax.Array, KVCache | None]
UNROLLED_LAYERS = 8  # models of up to so many layers are compiled without a loop
NO_TOKEN = -1e9  # finite, so that entropies and gradients are


class Block(nn.Module):
    """h = x + attention(norm(x)); h + feed_forward(norm(h))."""

    config: ModelConfig
    partitioner: Partitioner
    outputs_first: bool = False  # layout of the weights

    @nn.compact
    def __call__(self, carry: Carry, layer: jax.Array | int, info: TokenInfo) -> tuple[Carry, None]:
        """One layer; the carry is the residual stream and the cache."""
        cfg, part = self.config, self.partitioner
        x_BTD, cache = carry
        normed = RMSNorm(cfg.norm_epsilon, name="attention_norm")(x_BTD)
        attention = Attention(cfg, part, self.outputs_first, name="attention")
        attended, cache = attention(normed, info, cache, layer)
        x_BTD = x_BTD + attended
        normed = RMSNorm(cfg.norm_epsilon, name="feed_forward_norm")(x_BTD)
        x_BTD = x_BTD + FeedForward(cfg, part, self.outputs_first, name="feed_forward")(normed)
        return (part.constrain(x_BTD, "BTD"), cache), None


def _remat(block: Any, policy: str) -> Any:
    """What the backward pass keeps: everything, layer inputs only, matrix products, or attention."""
    if policy == "none":
        return block
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.save_only_these_names("product"),
        "attention": jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse"),
    }
    return nn.remat(block, policy=policies[policy], prevent_cse=False)


class Transformer(nn.Module):
    """Token ids in, logits out."""

    config: ModelConfig
    partitioner: Partitioner = dataclasses.field(default_factory=single_device)
    stacked: bool = True  # False: the layout for decoding, see ``decoding_model``

    def setup(self) -> None:
        """Declare the parameters."""
        cfg, part = self.config, self.partitioner
        init = nn.initializers.normal(cfg.init_stddev)
        self.embedding_VD = self.param("embedding_VD", init, (cfg.vocab_size, cfg.model_width), jnp.float32)
        block = _remat(Block, cfg.remat_policy)
        if self.stacked:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=cfg.num_layers,
                unroll=self._unroll(),
            )
            self.layers = scanned(cfg, part)
        else:
            self.layer = [block(cfg, part, outputs_first=True) for _ in range(cfg.num_layers)]
        self.final_norm = RMSNorm(cfg.norm_epsilon)
        if not cfg.tie_embeddings:
            name, shape = "unembedding_DV", (cfg.model_width, cfg.vocab_size)
            if not self.stacked:
                name, shape = outputs_first_name(name), shape[::-1]
            self.unembedding = self.param(name, init, shape, jnp.float32)

    def _unroll(self) -> int:
        """Layers per turn of the loop.

        A loop copies weights and activations in and out of stacks, a tenth of an update of a small
        model on CPU. It stays where compile time would grow, and where layers are recomputed: without
        it XLA would merge the recomputation with the original.
        """
        few = self.config.num_layers <= UNROLLED_LAYERS and self.config.remat_policy == "none"
        return self.config.num_layers if few and not self.is_initializing() else 1

    @property
    def serves_prefixes(self) -> bool:
        """Whether ``prefix_ids_BT`` cost no other implementation of attention than without them."""
        return serves_prefixes(self.config, self.partitioner)

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        prefix_ids_BT: jax.Array | None = None,
        cache: KVCache | None = None,
        is_prompt: bool = False,
    ) -> tuple[jax.Array, KVCache | None]:
        """Final-norm output (B, T, D) in the compute dtype, and the cache advanced by T slots.

        Args:
          tokens_BT: ids, not checked, nor is T against ``max_context``: what reads people's input does that.
            Those of segment 0 (padding) may hold anything, even -1.
          segment_ids_BT: contiguous and ascending, 0 = padding; default one segment per row.
          positions_BT: default 0, 1, 2, ...; must restart in every segment, and go on from its prefix where
            it has one. Needed with prefixes, and with a cache that holds tokens already.
          prefix_ids_BT: an earlier segment of the row that a token sees besides its own, 0 for none: a prompt
            is computed once for several answers. Not with a cache.
          cache: earlier tokens. Slots ``index`` to ``index + T`` must be free.
          is_prompt: the cache is empty, so the tokens attend to one another alone.
        """
        cfg, part = self.config, self.partitioner
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones_like(tokens_BT)
        require(
            cache is None or is_prompt or positions_BT is not None,
            "positions_BT is missing: tokens after those in the cache have other positions than 0, 1, 2; "
            "give them, or is_prompt=True where the cache is empty",
        )
        require(
            prefix_ids_BT is None or (cache is None and positions_BT is not None),
            "prefix_ids_BT needs positions_BT, which go on from the prefix, and no cache",
        )
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        x_BTD = look_up(self.embedding_VD, jnp.maximum(tokens_BT, 0), cfg.compute_dtype, part)
        x_BTD = part.constrain(x_BTD, "BTD")
        if cache is not None:
            cache = claim_slots(cache, segment_ids_BT, positions_BT, is_prompt=is_prompt)
        angles = rotary_angles(positions_BT, head_dim=cfg.head_dim, base=cfg.rope_base)
        # computed once: XLA would take the cosines anew in every layer, for every head
        cos, sin = jax.lax.optimization_barrier(angles)
        info = TokenInfo(cos, sin, segment_ids_BT, positions_BT, prefix_ids_BT, is_prompt)
        x_BTD, cache = self._run_layers(x_BTD, cache, info)
        if cache is not None:
            cache = cache._replace(index=cache.index + tokens_BT.shape[1])
            # inside jit nothing can be raised; NaN is seen, tokens written over others are not
            x_BTD = jnp.where(fits(cache), x_BTD, jnp.nan)
        return self.final_norm(x_BTD), cache

    def _run_layers(self, x_BTD: jax.Array, cache: KVCache | None, info: TokenInfo) -> Carry:
        if self.stacked:
            return self.layers((x_BTD, cache), jnp.arange(self.config.num_layers), info)[0]
        for index, layer in enumerate(self.layer):
            (x_BTD, cache), _ = layer((x_BTD, cache), index, info)
        return x_BTD, cache

    def unembed(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits in float32, whatever the compute dtype."""
        logits_BTV = head_logits(
            self.embedding_VD if self.config.tie_embeddings else self.unembedding,
            jnp.arange(self.config.vocab_size),
            hidden_BTD,
            config=self.config,
            partitioner=self.partitioner,
            outputs_first=not self.stacked,
        )
        return self.partitioner.constrain(logits_BTV, "BTV")

    def __call__(self, tokens_BT: jax.Array, **kwargs: Any) -> ModelOutput:
        """Logits of every token; keyword arguments as in ``hidden``."""
        hidden_BTD, cache = self.hidden(tokens_BT, **kwargs)
        return ModelOutput(self.unembed(hidden_BTD), cache)


def head_logits(
    weight: jax.Array,
    ids_V: jax.Array,
    hidden_BTD: jax.Array,
    *,
    config: ModelConfig,
    partitioner: Partitioner,
    outputs_first: bool = False,
) -> jax.Array:
    """Logits (B, T, V) of the ids that the weight has, float32; of spare rows ``NO_TOKEN``: probability 0.

    Args:
      weight: (D, V), or (V, D) where it is tied or ``outputs_first``.
    """
    logits_BTV = project(
        hidden_BTD,
        weight,
        partitioner=partitioner,
        outputs_first=outputs_first or config.tie_embeddings,
        out_dtype=jnp.float32,
    )
    if config.tokenizer_size:
        logits_BTV = jnp.where(ids_V < config.num_ids, logits_BTV, NO_TOKEN)
    return logits_BTV


def init_params(model: Transformer, key: jax.Array) -> Params:
    """Random float32 parameters, every leaf made where it will live (shapes first, memory second)."""

    def init(key: jax.Array) -> Params:
        return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    return model.partitioner.make(init, key)


def decoding_model(model: Transformer) -> Transformer:
    """The same model in the layout for decoding, whose parameters ``unstack`` makes.

    There is no backward pass to save memory for, so ``remat_policy`` becomes "none".
    """
    return model.clone(config=dataclasses.replace(model.config, remat_policy="none"), stacked=False)


def unstack(params: Params) -> Params:
    """Parameters in the layout for decoding: a parameter per layer, weights with their outputs first.

    A scan over stacked layers copies every weight out of the stack before using it. Training hides
    that behind large products; a decode step is little more than reading the weights once, in the order
    that ``project`` wants for few rows. Training and checkpoints keep the stack, whose compile time does
    not grow with depth. Parameters in that layout already stay.
    """
    if "layers" not in params:
        return params

    def layer(index: int) -> Params:
        return _outputs_first(jax.tree.map(lambda leaf: leaf[index], params["layers"]))

    rest = _outputs_first({name: value for name, value in params.items() if name != "layers"})
    num_layers = max(map(len, jax.tree.leaves(params["layers"])), default=0)  # 0: the rest alone
    return rest | {f"layer_{index}": layer(index) for index in range(num_layers)}


def leaf_by_leaf(held: list[Params], lay_out: Callable[[Params], Params]) -> Params:
    """``lay_out``, which unstacks, of one leaf after another; each is freed before the next if it can be.

    Args:
      held: a list of the parameters alone, which are taken out of it.
    """
    leaves = flatten_dict(held.pop())
    # even of a leaf outside the layers ``unstack`` must see whether it is laid out already
    layers: Params = {"layers": {}} if any(path[0] == "layers" for path in leaves) else {}
    found: Params = {}
    while leaves:
        part = layers | unflatten_dict(dict([leaves.popitem()]))
        found |= jax.block_until_ready(flatten_dict(lay_out(part)))
        del part
    return unflatten_dict(found)


def _outputs_first(params: Params) -> Params:
    """Weights in the layout of ``projection`` with ``outputs_first``; norms and the embedding as they are."""
    moved: Params = {}
    for name, value in params.items():
        if isinstance(value, dict):
            moved[name] = _outputs_first(value)
        elif name.startswith(("w_", "unembedding_")):
            inputs = input_dims(name)
            moved[outputs_first_name(name)] = jnp.moveaxis(value, range(inputs), range(-inputs, 0))
        else:
            moved[name] = value
    return moved


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of all parameters, without allocating anything."""
    # shapes are the same on every machine, and with every implementation of attention
    model = Transformer(dataclasses.replace(config, attention_impl="reference"))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])


def attention_probabilities(
    model: Transformer, params: Params, tokens_BT: jax.Array, **kwargs: Any
) -> jax.Array:
    """Attention of every layer and head for analysis, float32 (L, B, N, T, S). Holds it all: small inputs."""
    _, state = model.apply({"params": params}, tokens_BT, mutable=["intermediates"], **kwargs)
    sown = state["intermediates"]
    if model.stacked:
        return sown["layers"]["attention"]["attention_probs_BNTS"][0]
    layers = [sown[f"layer_{index}"] for index in range(model.config.num_layers)]
    return jnp.stack([layer["attention"]["attention_probs_BNTS"][0] for layer in layers])
