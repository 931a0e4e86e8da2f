"""A model as it decodes: a parameter per layer, in the compute dtype, whole on every device.

Training splits weights over devices and gathers them layer by layer, which is little beside its products;
decoding would gather all of them for one token per row (20 times slower in the paper, PPO-8).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llama2_jax.model.transformer import Transformer, decoding_model, unstack
from llama2_jax.sharding.placement import place_tree
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params


class Sampler(NamedTuple):
    """The model that decodes, and how to lay out a trained one's weights for it."""

    model: Transformer
    weights: Callable[[Params], Params]


def make_sampler(model: Transformer, partitioner: Partitioner) -> Sampler:
    """A sampler for ``model``, whose weights and rows lie as ``partitioner`` says."""
    decoder = decoding_model(model).clone(partitioner=partitioner)
    return Sampler(decoder, lambda params: place_tree(partitioner, decoding_params(model, params)))


@functools.partial(jax.jit, static_argnums=0)
def decoding_params(model: Transformer, params: Params) -> Params:
    """The layers apart (``unstack``), weights rounded to the compute dtype: a step reads half as much."""
    return rounded(unstack(params), model.config.compute_dtype)


def rounded(params: Params, compute_dtype: str) -> Params:
    """Weights in the compute dtype. Each use of them rounds, so results stay the same to the bit.

    Those in a narrower dtype stay.
    """
    dtype = jnp.dtype(compute_dtype)

    def one(leaf: Any) -> Any:
        return leaf.astype(dtype) if leaf.dtype.itemsize > dtype.itemsize else leaf

    return jax.tree.map(one, params)
