"""Small random models for the interop tests: a few shapes, and weights from a numpy seed."""

import functools
import operator
from typing import Any

import jax
import ml_dtypes
import numpy as np

from llama2_jax.interop.mapping import our_shape, rows
from llama2_jax.model.config import ModelConfig

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def _shape(**changes: Any) -> ModelConfig:
    base: dict[str, Any] = {
        "vocab_size": 96,
        "model_width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "feed_forward_width": 64,
        "max_context": 64,
    }
    return ModelConfig(**(base | changes))


SHAPES = {
    "plain": _shape(),
    "gqa": _shape(num_kv_heads=2),
    "tied": _shape(tie_embeddings=True, num_layers=3),
    "rope_500k": _shape(rope_base=500_000.0, norm_epsilon=1e-6),
    "wide_heads": _shape(num_kv_heads=1, head_dim=12),
    "all": _shape(tie_embeddings=True, num_kv_heads=2, head_dim=16, rope_base=5e5, num_layers=1),
}


def random_params(config: ModelConfig, *, seed: int = 0, dtype: str = "float32") -> dict[str, Any]:
    """The same weights on every machine: one numpy stream, leaves in table order."""
    generator = np.random.default_rng(seed)
    params: dict[str, Any] = {}
    for row in rows(config):
        *folders, name = row.path.split("/")
        node = functools.reduce(lambda tree, folder: tree.setdefault(folder, {}), folders, params)
        centre = 1.0 if name == "scale_D" else 0.0
        leaf = centre + 0.2 * generator.standard_normal(our_shape(row, config))
        node[name] = leaf.astype(np.float32).astype(DTYPES[dtype])
    return params


def leaf(params: dict[str, Any], path: str) -> np.ndarray:
    return functools.reduce(operator.getitem, path.split("/"), params)


def read_whole(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that lie in the files of a checkpoint, as arrays."""
    return jax.tree.map(np.asarray, params)


def assert_same_params(found: dict[str, Any], wanted: dict[str, Any], config: ModelConfig) -> None:
    """Same leaves, dtypes and bits."""
    for row in rows(config):
        a, b = np.asarray(leaf(found, row.path)), np.asarray(leaf(wanted, row.path))
        assert (a.shape, a.dtype) == (b.shape, b.dtype), row.path
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes(), row.path
