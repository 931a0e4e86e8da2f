"""Numbers of an ablation, from what its stages left: sizes, losses, differences from the baseline."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablation_readings import STRETCHES, Losses, Reading, stretch_sizes
from llama2_jax.config import build, read_json
from llama2_jax.evals.document_loss import position_edges
from llama2_jax.evals.intervals import Interval, mean_of_groups
from llama2_jax.model.config import ModelConfig, kv_cache_bytes_per_token, parameter_count
from llama2_jax.sharding.processes import files_at_rest


def num_tokens(variant: Any) -> int:
    """Tokens that a variant is trained on."""
    return variant.train.num_steps * variant.data.batch_size * variant.data.sequence_length


def variant_changes(config: Any, name: str) -> dict[str, Any]:
    """What one variant has of its own, by dotted paths."""
    return {
        f"{section}.{field}": value
        for section, fields in config.variants[name].items()
        for field, value in fields.items()
    }


def describe(workdir: Path, config: Any) -> dict[str, Any]:
    """Size of a trained variant, and how long its updates took at their median rate."""
    model = build(ModelConfig, config.model, name="model")
    with files_at_rest(workdir):
        took = read_json(workdir / "results.json")  # see training_report.py
    rate = took.get("tokens_per_sec", math.nan)
    return {
        "parameters": parameter_count(model),
        "cache_bytes_per_token": kv_cache_bytes_per_token(model),
        "context": config.data.sequence_length,
        "tokens_per_sec": rate,
        "secs": took["tokens_seen"] / rate,
    }


def compare(losses: Mapping[str, Losses], readings: Mapping[str, Reading]) -> dict[str, dict[str, Any]]:
    """Means over all held-out tokens, and differences from the baseline in the same documents."""
    base = next(iter(losses.values()))
    return {
        name: {
            **readings[name]._asdict(),
            "loss": mean_of_groups(own.nats_D, own.tokens_D),
            "difference": None if own is base else mean_of_groups(own.nats_D - base.nats_D, own.tokens_D),
        }
        for name, own in losses.items()
    }


def by_position(
    losses: Mapping[str, Losses], readings: Mapping[str, Reading], longest: int
) -> dict[str, Any] | None:
    """The same by the number of tokens before, in the documents that fill the longest context."""
    sizes, base = stretch_sizes(longest), next(iter(losses.values()))
    count = len(base.by_position)
    if count < 2:
        return None
    means: dict[str, Any] = {"documents": count, "edges": position_edges(longest, STRETCHES)}
    means["loss"] = {name: _stretches(own.by_position, sizes) for name, own in losses.items()}
    means["difference"] = {
        name: _stretches(own.by_position - base.by_position, sizes)
        for name, own in losses.items()
        if own is not base
    }
    means["farther"] = {
        name: farther
        for name, one in readings.items()
        if name != one.variant
        and (farther := _farther(losses[one.variant], losses[name], means["edges"], one.window))
    }
    return means


def _stretches(sums: np.ndarray, sizes: np.ndarray) -> list[Interval]:
    return [mean_of_groups(sums[:, part], np.full(len(sums), sizes[part])) for part in range(STRETCHES)]


def _farther(whole: Losses, cut: Losses, edges: list[int], window: int) -> dict[str, Any]:
    """What a model loses that is read through a shorter window, in the stretches that begin beyond it."""
    first = next(part for part, edge in enumerate(edges) if edge >= window)
    if first == STRETCHES:  # the window reaches into the last stretch
        return {}
    lost = (cut.by_position - whole.by_position)[:, first:].sum(axis=1)
    tokens = np.full(len(lost), edges[-1] - edges[first])
    return {"beyond": edges[first], "lost": mean_of_groups(lost, tokens)}


def seed_repeats(config: Any) -> list[str]:
    """Variants that differ from the baseline in their seeds alone."""

    def without_seeds(name: str) -> dict[str, Any]:
        return {path: v for path, v in variant_changes(config, name).items() if not path.endswith(".seed")}

    baseline = without_seeds(config.baseline)
    return [name for name in config.variants if name != config.baseline and without_seeds(name) == baseline]
