"""Loss curves as pictures: training loss per update and held-out loss against tokens (Fig. 5)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama2_jax.analysis import figures


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to ``window - 1`` values before it."""
    averages, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        averages.append(total / min(index + 1, window))
    return averages


def plot_loss(
    path: Path, metrics: Sequence[dict[str, Any]], *, title: str, reference: dict[str, float]
) -> None:
    """Write a PNG of loss (nats per token) against tokens seen.

    Args:
      metrics: lines of ``metrics.jsonl``.
      reference: name -> loss, drawn as dashed horizontal lines (the unigram entropy).
    """
    updates = [line for line in metrics if "train/loss" in line]
    tokens_at = {0: 0.0, **{line["step"]: line["train/tokens_seen"] for line in updates}}
    losses = [line["train/loss"] for line in updates]
    tokens = [line["train/tokens_seen"] / 1e6 for line in updates]
    figure, axes = figures.subplots(figsize=(7, 4))
    axes.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(tokens, moving_average(losses, 20), color="tab:blue", label="train, mean of 20 updates")
    evals = [
        (tokens_at[line["step"]] / 1e6, line["eval/heldout/loss"])
        for line in metrics
        if "eval/heldout/loss" in line
    ]
    if evals:
        axes.plot(*zip(*evals, strict=True), "o-", color="tab:orange", markersize=4, label="held out")
    for name, value in reference.items():
        axes.axhline(value, color="gray", linestyle="--", linewidth=1, label=f"{name} {value:.2f}")
    axes.set(title=title, xlabel="tokens seen (millions)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save(figure, path)
