"""The decoder with one number per token instead of logits: reward models and value models (RM-1, D32).

The paper replaces the head for next-token prediction by one for scalar regression; ours is linear
without bias (D32). Parameters::

    body/...  the tree of ``Transformer`` without ``unembedding_DV``
    w_score_D
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.precision import float32_dot
from llama2_jax.shapes import check_shapes
from llama2_jax.sharding.rules import Partitioner, single_device
from llama2_jax.structs import Params


class ScoreModel(nn.Module):
    """Token ids in, one float32 scalar per token out."""

    config: ModelConfig
    partitioner: Partitioner = dataclasses.field(default_factory=single_device)
    pad_id: int = -1  # where answers end is looked for before it (HFW-5); -1: every id of a row counts

    def setup(self) -> None:
        """Declare the parameters."""
        # tied: a Transformer that makes no unembedding
        config = dataclasses.replace(self.config, tie_embeddings=True)
        self.body = Transformer(config, self.partitioner)
        width = self.config.model_width
        self.w_score_D = self.param("w_score_D", _init_head, (width,), jnp.float32)

    def __call__(self, tokens_BT: jax.Array, **kwargs: Any) -> jax.Array:
        """Scores of every token, float32 (B, T); keyword arguments as in ``Transformer.hidden``."""
        hidden_BTD, _ = self.body.hidden(tokens_BT, **kwargs)
        # float32, whatever the compute dtype: differences of scores are what is learned
        return float32_dot("BTD,D->BT", hidden_BTD.astype(jnp.float32), self.w_score_D)


def _init_head(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """N(0, variance 1 / (D + 1)): scores of a normed hidden state then have a deviation of about 1."""
    return jax.random.normal(key, shape, dtype) / (shape[0] + 1) ** 0.5


def token_scores(model: ScoreModel, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Score of each token of rows padded on the right, float32 (B, T); what stands at padding is noise.

    Padding follows from the lengths alone: its ids may be anything, the id of EOS or -1.
    """
    check_shapes("token_scores", tokens_BT=tokens_BT, lengths_B=lengths_B)
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    segment_ids_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
    return model.apply(
        {"params": params}, tokens_BT, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT
    )


def last_token_scores(
    model: ScoreModel, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Score at the last token of each row, float32 (B,) (D32): the reward of a dialogue; 0 for empty rows.

    Of a model with a ``pad_id`` it is the last token that is not this one.
    """
    scores_BT = token_scores(model, params, tokens_BT, lengths_B)
    places_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    counts_BT = (places_BT < lengths_B[:, None]) & (tokens_BT != model.pad_id)
    last_B = jnp.where(counts_BT, places_BT, -1).max(axis=1)
    return scores_at(scores_BT, last_B[:, None])[:, 0]


def scores_at(scores_BT: jax.Array, places_BP: jax.Array) -> jax.Array:
    """Scores of the tokens at these places, (B, P); 0 for a place that is -1."""
    check_shapes("scores_at", scores_BT=scores_BT, places_BP=places_BP)
    # a comparison instead of a gather: it stays local when T is split over devices
    is_place_BPT = places_BP[..., None] == jnp.arange(scores_BT.shape[1])
    return jnp.where(is_place_BPT, scores_BT[:, None], 0.0).sum(axis=-1)


def score_params_from_chat(params: Params, *, key: jax.Array | None) -> Params:
    """Parameters of a ``ScoreModel`` from those of a chat model, without its unembedding (RM-1, D31).

    Args:
      key: of the new head, N(0, 1 / (D + 1)); None makes it zero, so that every score is 0 at first,
        which is what a value model wants.
    """
    body = {name: value for name, value in params.items() if name != "unembedding_DV"}
    shape = body["final_norm"]["scale_D"].shape
    head = jnp.zeros(shape, jnp.float32) if key is None else _init_head(key, shape, jnp.float32)
    return {"body": body, "w_score_D": head}
