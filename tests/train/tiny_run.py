"""A training run of milliseconds: a model of one thin layer on batches made from the step number."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.rules import Partitioner, make_partitioner
from llama2_jax.structs import TokenBatch
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.run import TrainConfig, TrainRun
from llama2_jax.train.step import next_token_loss

MODEL = ModelConfig(
    vocab_size=32,
    model_width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    feed_forward_width=32,
    max_context=8,
)
BATCH, LENGTH = 8, 8
RATES = ("train/tokens_per_sec", "train/mfu_full_no_embed", "train/mfu_causal_no_embed")


def partitioner(preset: str = "single", **sizes: int) -> Partitioner:
    return make_partitioner(MeshConfig(preset, **sizes))


def batch(step: int) -> TokenBatch:
    """Batch ``step`` with rows of two sources, the second padded at the end."""
    generator = np.random.default_rng(step)
    tokens = generator.integers(1, MODEL.vocab_size, (BATCH, LENGTH + 1)).astype(np.int32)
    source = np.arange(BATCH, dtype=np.int32) % 2
    segments = np.ones((BATCH, LENGTH), np.int32)
    segments[source == 1, -2:] = 0
    return TokenBatch(
        tokens_BT=tokens[:, :-1],
        targets_BT=tokens[:, 1:],
        loss_mask_BT=(segments > 0).astype(np.float32),
        segment_ids_BT=segments,
        positions_BT=np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        source_ids_B=source,
    )


def batches(start: int) -> Iterator[TokenBatch]:
    while True:
        yield batch(start)
        start += 1


def make_run(**changes: Any) -> TrainRun:
    model = Transformer(MODEL, changes.get("partitioner", partitioner()))
    fields: dict[str, Any] = {
        "name": "test",
        "model": model,
        "loss": next_token_loss(model, num_sources=2),
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        "partitioner": partitioner(),
        "batch_size": BATCH,
        "items_per_step": BATCH,
        "sequence_length": LENGTH,
        "batches": batches,
        "source_names": ("even", "odd"),
        "meta": {"tokenizer_hash": "abc"},
        "evaluate": lambda step, params: {"eval/heldout/loss": float(params["embedding_VD"].sum())},
    }
    fields["config"] = {"train": {"num_steps": 12}}
    return TrainRun(**{**fields, **changes})


def make_config(**changes: Any) -> TrainConfig:
    fields = {"num_steps": 12, "log_every_steps": 3, "checkpoint_every_steps": 4, "peak_flops": 1e12}
    return TrainConfig(**{**fields, **changes})


def without_rates(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl apart from what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in RATES} for line in lines]


def assert_bitwise_equal(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, twin in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        leaf, twin = np.asarray(leaf), np.asarray(twin)
        assert leaf.dtype == twin.dtype
        assert leaf.shape == twin.shape
        assert leaf.tobytes() == twin.tobytes()
