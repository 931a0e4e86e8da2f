"""``report.md`` of a next-token stage: numbers, curve and samples, read back from its workdir."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax

from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.curves import WINDOW, moving_average, plot_loss
from llama2_jax.config import write_json
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
    num_devices: int,
    peak: tuple[float, str],
) -> None:
    """Write ``report.md``, ``results.json`` and ``loss.png`` into a finished stage's workdir.

    Args:
      num_devices: of the mesh.
    """
    metrics = read_metrics(workdir)
    plot_loss(workdir / "loss.png", metrics, title=title, reference=reference or {})
    results = _results(metrics, num_devices)
    write_json(workdir / "results.json", results)
    rows = _numbers(metrics, results, peak)
    rows += [(name, f"{value:.3f} nats per token") for name, value in (reference or {}).items()]
    lines = [f"# {title}", "", f"Llama 2, {paper}.", "", *table(("", ""), rows), ""]
    lines += [f"- {note}" for note in [*notes, *_from_checkpoint(workdir)]]
    lines += ["", "![loss](loss.png)", "", *_samples(workdir)]
    write_report_file(workdir, lines)


def _results(metrics: Sequence[dict[str, Any]], num_devices: int) -> dict[str, Any]:
    """What the run took, for programs that read it: tokens, and the hours and carbon of its updates."""
    updates = [line for line in metrics if "train/loss" in line]
    found = {"updates": updates[-1]["step"], "tokens_seen": updates[-1]["train/tokens_seen"]}
    rates = [line["train/tokens_per_sec"] for line in updates if "train/tokens_per_sec" in line]
    if not rates:
        return found
    kind = jax.devices()[0].device_kind
    hours = found["tokens_seen"] / median(rates) * num_devices / 3600
    found |= {"tokens_per_sec": median(rates), "device": kind}
    found |= {"num_devices": num_devices, "device_hours": hours}
    return found | ({"tonnes_co2eq": carbon_tonnes(hours, WATTS[kind])} if kind in WATTS else {})


def _numbers(
    metrics: Sequence[dict[str, Any]], results: dict[str, Any], peak: tuple[float, str]
) -> list[tuple[str, str]]:
    losses = [line["train/loss"] for line in metrics if "train/loss" in line]
    rows = [
        ("updates", f"{results['updates']:,}"),
        ("tokens seen", f"{results['tokens_seen']:,}"),
        (
            f"training loss, first update and mean of the last {min(WINDOW, len(losses))}",
            f"{losses[0]:.3f} to {moving_average(losses, WINDOW)[-1]:.3f} nats per token",
        ),
    ]
    for name, unit in (("loss", "nats per token"), ("bits_per_byte", "bits per byte")):
        values = [line[f"eval/heldout/{name}"] for line in metrics if f"eval/heldout/{name}" in line]
        if values:
            rows.append(
                (
                    f"held-out {name.replace('_', ' ')}, before and after",
                    f"{values[0]:.3f} to {values[-1]:.3f} {unit}",
                )
            )
    return rows + (_speed(metrics, results, peak) if "device_hours" in results else [])


def _speed(
    metrics: Sequence[dict[str, Any]], results: dict[str, Any], peak: tuple[float, str]
) -> list[tuple[str, str]]:
    """How fast the updates were, and what they cost (Table 2)."""
    rows = [("tokens per second, median", f"{results['tokens_per_sec']:,.0f}")]
    for kind in ("causal_no_embed", "full_no_embed"):
        shares = [line[f"train/mfu_{kind}"] for line in metrics if f"train/mfu_{kind}" in line]
        rows.append((f"MFU ({kind}), median", f"{100 * median(shares):.1f} %"))
    flops, origin = peak
    devices = f"{results['num_devices']} device(s)"
    rows += [
        ("peak that MFU refers to", f"{flops / 1e12:.3f} TFLOP/s per device ({origin}), {devices}"),
        ("device hours in updates", f"{results['device_hours']:,.2f}"),
    ]
    if "tonnes_co2eq" in results:
        power = f"{WATTS[results['device']]} W per device, power usage effectiveness {PUE}"
        carbon = f"{results['tonnes_co2eq']:,.3g} tCO2eq: {power}, {TONNES_PER_MWH} t/MWh"
        rows.append(("carbon (Table 2's formula)", carbon))
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
