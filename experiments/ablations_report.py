"""``report.md`` of an ablation: variants beside the baseline, on the same held-out documents."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.ablation_readings import STRETCHES, Losses, Reading, heldout_path, read_losses
from experiments.ablation_results import (
    by_position,
    compare,
    describe,
    num_tokens,
    seed_repeats,
    variant_changes,
)
from experiments.benchmark_report import metric_rows
from experiments.report import table, write_report_file
from llama2_jax.analysis.curves import plot_by_position
from llama2_jax.config import read_json, write_json
from llama2_jax.data.records import is_number
from llama2_jax.evals.intervals import Interval, bracketed

PAPER = {
    "context": (
        ("context", "NarrativeQA", "Qasper", "QuALITY", "QMSum R-1/2/L", "ContractNLI", "SQuAD EM/F1",
         "HellaSwag", "NQ, 64 shots", "TriviaQA, 64 shots", "GSM8K, 8 shots", "HumanEval"),
        ("2k", "0.21", "0.71", "26.1", "0.13/0.01/0.12", "11.76", "57.23/62.89",
         "75.1", "25.5", "53.7", "4.9", "7.9"),
        ("4k", "17.26", "18.52", "29.6", "15.08/3.55/12.16", "16.33", "57.99/64.46",
         "74.8", "25.5", "52.2", "6.5", "7.3"),
    ),
    "attention": (
        ("attention", "BoolQ", "PIQA", "SIQA", "HellaSwag", "ARC-e", "ARC-c", "NQ", "TriviaQA",
         "MMLU, 5 shots", "GSM8K, 8 shots", "HumanEval"),
        ("MHA", "71.0", "79.3", "48.2", "75.1", "71.2", "43.0", "12.4", "44.7", "28.0", "4.9", "7.9"),
        ("MQA", "70.6", "79.0", "47.9", "74.5", "71.6", "41.9", "14.5", "42.8", "26.5", "4.8", "7.3"),
        ("GQA", "69.4", "78.8", "48.6", "75.4", "72.1", "42.5", "14.0", "46.2", "26.9", "5.3", "7.9"),
    ),
}  # fmt: skip
"""Tables 16 and 17 (context), and 18 (attention): the header, then a row per variant."""


def write_report(
    workdir: Path,
    config: Any,
    variants: Mapping[str, Any],
    readings: Mapping[str, Reading],
    *,
    tasks: Mapping[str, Any],
) -> None:
    """Write ``report.md``, ``results.json`` and ``loss_by_position.png`` from what the stages left.

    Args:
      variants: resolved configs of the pretraining of each, the baseline first.
    """
    losses = {name: read_losses(heldout_path(workdir, name)) for name in readings}
    longest = max(variant.data.sequence_length for variant in variants.values())
    described = {name: describe(workdir / "variants" / name, one) for name, one in variants.items()}
    compared, positions = compare(losses, readings), by_position(losses, readings, longest)
    write_json(
        workdir / "results.json", {"variants": described, "readings": compared, "positions": positions}
    )
    tokens = num_tokens(next(iter(variants.values())))
    lines = [
        f"# Ablation: {config.kind}", "",
        "Llama 2, A.2.1. Every variant is trained on "
        f"{tokens:,} tokens; what differs is in the table. Intervals are of 95 %.", "",
        *_models(config, described), "",
        *_readings(compared, losses, seed_repeats(config)), "",
        *_positions(workdir, positions, readings),
        *_tasks(workdir, list(variants), list(tasks)),
        *_paper(config.kind),
    ]  # fmt: skip
    write_report_file(workdir, lines)


def _models(config: Any, described: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first = next(iter(described.values()))["parameters"]
    header = ("variant", "differs by", "parameters", "to the baseline", "cache, bytes per token",
              "cache of a full context", "training, s", "tokens per second")  # fmt: skip
    rows = [
        (
            name,
            ", ".join(f"{path} {_shown(value)}" for path, value in variant_changes(config, name).items()),
            f"{own['parameters']:,}",
            f"{100 * (own['parameters'] / first - 1):+.2f} %",
            f"{own['cache_bytes_per_token']:,}",
            f"{own['cache_bytes_per_token'] * own['context']:,}",
            f"{own['secs']:,.0f}",
            f"{own['tokens_per_sec']:,.0f}",
        )
        for name, own in described.items()
    ]
    return [
        *table(header, rows), "",
        "Bytes of keys and values in bfloat16. Seconds are of the updates alone, at their median rate.",
    ]  # fmt: skip


def _shown(value: Any) -> str:
    """A field of a config, which may be a text or a switch as well."""
    return f"{value:,}" if is_number(value) else str(value)


def _readings(
    compared: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Losses], repeats: Sequence[str]
) -> list[str]:
    noise = max((abs(compared[name]["difference"].value) for name in repeats), default=0.0)
    baseline, first = next(iter(losses.items()))
    header = ("model", "window", "nats per token", "perplexity", f"difference from {baseline}", "")
    rows = [
        (
            name,
            f"{own['window']:,}",
            _four(own["loss"]),
            f"{math.exp(own['loss'].value):.2f}",
            _four(own["difference"]) if own["difference"] else "",
            "seeds alone" if name in repeats else _verdict(own["difference"], noise),
        )
        for name, own in compared.items()
    ]
    return [
        "## Held-out text", "",
        f"{first.tokens_D.sum():,} tokens of {len(first.tokens_D):,} documents, each read alone from its "
        "beginning. A document longer than the window is read on through the window's length, moved by half "
        "of it: no model is run beyond the positions that it was trained on.", "",
        *table(header, rows), "",
        "Intervals are over documents, not over trainings, of which there is one each. "
        + (f"Other seeds alone made {noise:.4f}." if repeats else "What other seeds make was not measured."),
    ]  # fmt: skip


def _verdict(difference: Interval | None, noise: float) -> str:
    if difference is None:
        return ""
    if difference.low <= 0 <= difference.high:
        return "not told apart"
    if abs(difference.value) <= noise:
        return "no more than seeds"
    return "higher" if difference.value > 0 else "lower"


def _four(interval: Interval) -> str:
    return bracketed(interval, ".4f")


def _positions(workdir: Path, found: dict[str, Any] | None, readings: Mapping[str, Reading]) -> list[str]:
    lines = ["## Loss by position", ""]
    if found is None:
        return [*lines, "Too few held-out documents fill the longest context.", ""]
    baseline = next(iter(readings))
    plot_by_position(
        workdir / "loss_by_position.png", found["edges"], found["loss"], found["difference"],
        baseline=baseline,
    )  # fmt: skip
    header = ["tokens before", *found["loss"]]
    header += [f"{name} - {baseline}" for name in found["difference"]]
    rows = [
        [
            f"{found['edges'][part]:,} to {found['edges'][part + 1] - 1:,}",
            *(f"{own[part].value:.4f}" for own in found["loss"].values()),
            *(_four(own[part]) for own in found["difference"].values()),
        ]
        for part in range(STRETCHES)
    ]
    lines += [f"Of the {found['documents']:,} documents that fill the longest context.", ""]
    lines += [*table(header, rows), "", "![loss by position](loss_by_position.png)", ""]
    return [*lines, *(_lost(readings[name].variant, own) for name, own in found["farther"].items()), ""]


def _lost(variant: str, farther: Mapping[str, Any]) -> str:
    lost = farther["lost"]
    use = "it uses the farther context" if lost.low > 0 else "of a use of the farther context nothing is seen"
    return (
        f"{variant}, read through the shorter window, loses {_four(lost)} nats per token after "
        f"{farther['beyond']:,} tokens: {use}."
    )


def _tasks(workdir: Path, variants: Sequence[str], tasks: Sequence[str]) -> list[str]:
    if not tasks:
        return []
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for name in variants:
        for task in tasks:
            path = workdir / "benchmarks" / name / task / "results.json"
            for *key, value, error in metric_rows(read_json(path)):
                cells.setdefault(tuple(key), {})[name] = f"{value} ± {error}" if error else value
    rows = [(*key, *(own[name] for name in variants)) for key, own in cells.items()]
    header = ("task", "shots", "questions", "metric", *variants)
    return [
        "## Tasks",
        "",
        "As lm_eval computes them, with its standard errors.",
        "",
        *table(header, rows),
        "",
    ]


def _paper(kind: str) -> list[str]:
    header, *rows = PAPER[kind]
    return [
        "## The paper", "",
        "Of its own models, data and prompts, after 150B tokens: compare how they move.", "",
        *table(header, rows),
    ]  # fmt: skip
