"""A model small enough for explicit loops, with weights large enough that every term matters."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer, abstract_params
from llama2_jax.structs import TokenBatch

CONFIG = ModelConfig(
    vocab_size=56,
    model_width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    feed_forward_width=48,
    max_context=64,
)
MODEL = Transformer(CONFIG)


@functools.cache
def params(config: ModelConfig = CONFIG, seed: int = 0) -> Any:
    """Numpy weights far from their init: norm scales differ from 1, attention is not uniform."""
    generator = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale_D" else 0.0
        return (centre + 0.3 * generator.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def with_config(**changes: Any) -> Transformer:
    return Transformer(dataclasses.replace(CONFIG, **changes))


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape).astype(np.int32)


def pack(rows: Sequence[Sequence[Sequence[int]]], length: int, *, padding: int = 0) -> TokenBatch:
    """Rows of documents as a batch; every token but the last of a document is trained to predict the next."""
    shape = (len(rows), length)
    ids, targets = np.full(shape, padding, np.int32), np.full(shape, padding, np.int32)
    mask, segments, positions = (
        np.zeros(shape, np.float32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
    )
    for b, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents, start=1):
            for t, token in enumerate(document):
                ids[b, at], segments[b, at], positions[b, at] = token, number, t
                if t + 1 < len(document):
                    targets[b, at], mask[b, at] = document[t + 1], 1.0
                at += 1
    return TokenBatch(ids, targets, mask, segments, positions, np.zeros(len(rows), np.int32))


def assert_gradients_close(found: Any, wanted: Any, tolerance: float) -> None:
    """‖found - wanted‖ / ‖wanted‖ of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, a), b in zip(leaves, jax.tree.leaves(wanted), strict=True):
        error = np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b)
        assert error < tolerance, jax.tree_util.keystr(path)


def assert_trees_close(found: Any, wanted: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
        )
