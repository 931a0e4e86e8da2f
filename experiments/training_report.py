"""``report.md`` of a next-token stage: numbers, curve and samples, read back from its workdir."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax

from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.curves import plot_loss
from llama2_jax.evals.samples import read_samples
from llama2_jax.train.carbon import PUE, TONNES_PER_MWH, WATTS, carbon_tonnes
from llama2_jax.train.checkpoint import read_meta
from llama2_jax.train.metrics import read_metrics


def write_stage_report(
    workdir: Path,
    *,
    title: str,
    paper: str,
    notes: Sequence[str] = (),
    reference: dict[str, float] | None = None,
    peak: tuple[float, str],
) -> None:
    """Write ``report.md`` and ``loss.png`` into a finished stage's workdir."""
    metrics = read_metrics(workdir)
    plot_loss(workdir / "loss.png", metrics, title=title, reference=reference or {})
    rows = _numbers(metrics, peak)
    rows += [(name, f"{value:.3f} nats per token") for name, value in (reference or {}).items()]
    lines = [f"# {title}", "", f"Llama 2, {paper}.", "", *table(("", ""), rows), ""]
    lines += [f"- {note}" for note in [*notes, *_from_checkpoint(workdir)]]
    lines += ["", "![loss](loss.png)", "", *_samples(workdir)]
    write_report_file(workdir, lines)


def _numbers(metrics: Sequence[dict[str, Any]], peak: tuple[float, str]) -> list[tuple[str, str]]:
    updates = [line for line in metrics if "train/loss" in line]
    evals = [line for line in metrics if "eval/heldout/loss" in line]
    timed = [line for line in updates if "train/tokens_per_sec" in line]
    rows = [
        ("updates", f"{updates[-1]['step']:,}"),
        ("tokens seen", f"{updates[-1]['train/tokens_seen']:,}"),
        (
            "training loss, first and last update",
            f"{updates[0]['train/loss']:.3f} to {updates[-1]['train/loss']:.3f} nats per token",
        ),
    ]
    for name, unit in (("loss", "nats per token"), ("bits_per_byte", "bits per byte")):
        values = [line[f"eval/heldout/{name}"] for line in evals if f"eval/heldout/{name}" in line]
        if values:
            rows.append(
                (
                    f"held-out {name.replace('_', ' ')}, before and after",
                    f"{values[0]:.3f} to {values[-1]:.3f} {unit}",
                )
            )
    if timed:
        tokens_per_sec = median(line["train/tokens_per_sec"] for line in timed)
        rows += [
            ("tokens per second, median", f"{tokens_per_sec:,.0f}"),
            (
                "MFU (causal_no_embed), median",
                f"{100 * median(line['train/mfu_causal_no_embed'] for line in timed):.1f} %",
            ),
            (
                "MFU (full_no_embed), median",
                f"{100 * median(line['train/mfu_full_no_embed'] for line in timed):.1f} %",
            ),
        ]
        flops, origin = peak
        rows.append(
            (
                "peak that MFU refers to",
                f"{flops / 1e12:.3f} TFLOP/s per device ({origin}), {jax.device_count()} device(s)",
            )
        )
        rows += _carbon(updates[-1]["train/tokens_seen"] / tokens_per_sec * jax.device_count() / 3600)
    return rows


def _carbon(device_hours: float) -> list[tuple[str, str]]:
    """What Table 2 says of the paper's models, of updates at their median rate."""
    rows = [("device hours in updates", f"{device_hours:,.2f}")]
    watts = WATTS.get(jax.devices()[0].device_kind)
    if watts is not None:
        rows.append(
            (
                "carbon (Table 2's formula)",
                f"{carbon_tonnes(device_hours, watts):,.3g} tCO2eq: {watts} W per device, power usage "
                f"effectiveness {PUE}, {TONNES_PER_MWH} t/MWh",
            )
        )
    return rows


def _from_checkpoint(workdir: Path) -> list[str]:
    """Tokens of each source and spikes of the loss, as counted over all restarts."""
    _, meta = read_meta(workdir)
    spikes = [f"{loss:.3f} at update {step}" for step, loss in meta["loss_spikes"]]
    sources = [f"source {name}: {count:,} tokens seen" for name, count in meta["source_tokens"].items()]
    return [*sources, f"loss spikes: {', '.join(spikes) or 'none'}"]


def _samples(workdir: Path) -> list[str]:
    """The first, the middle and the last step that has samples."""
    samples = read_samples(workdir)
    steps = sorted(samples)
    lines = ["## Samples", ""] if steps else []
    for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []:
        lines += [f"After {step} updates:", ""]
        for prompt, completion in samples[step].items():
            lines += [f"> **{quote(prompt)}** {quote(completion)}", ""]
    return lines
