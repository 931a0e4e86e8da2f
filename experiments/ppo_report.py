"""What a person sees of a PPO run: ``samples.jsonl``, ``ppo.png`` and ``report.md``."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.report import quote
from llama2_jax.analysis.rlhf_plots import plot_ppo
from llama2_jax.data.jsonl import read_rows
from llama2_jax.train.checkpoint import read_meta
from llama2_jax.train.metrics import read_metrics


def write_ppo_report(workdir: Path) -> None:
    """Write ``ppo.png`` and ``report.md`` from what the run left."""
    metrics = read_metrics(workdir)
    plot_ppo(workdir / "ppo.png", metrics)
    _, meta = read_meta(workdir)
    iterations = [line for line in metrics if "ppo/score" in line]
    evaluations = [line for line in metrics if "eval/reward" in line]
    progress = meta["progress"]
    lines = ["# PPO", "", "Llama 2, section 3.2.3.", "", "| | |", "|---|---|"]
    lines += [
        f"| iterations | {iterations[-1]['step']} |",
        f"| kept: the best on held-out prompts | iteration {progress['best_step']} |",
        f"| held-out reward, before and best | {evaluations[0]['eval/reward']:.3f} to "
        f"{progress['best_reward']:.3f} |",
    ]
    for title, name in (
        ("score of sampled answers", "ppo/score"),
        ("KL to the reference, nats per answer", "ppo/kl_per_answer"),
        ("KL to the reference, nats per token", "ppo/kl_per_token"),
        ("entropy, nats per token", "ppo/entropy"),
        ("answers that ended", "ppo/stopped_fraction"),
        ("sigma of the scores", "ppo/sigma"),
        ("beta x sigma, beta in units of raw scores", "ppo/beta_sigma"),
        ("explained variance of the value model", "ppo/explained_variance"),
        ("sampler against trainer, mean difference of probabilities", "ppo/sampler_probability_error"),
    ):
        lines.append(
            f"| {title}, first and last iteration | {iterations[0][name]:.4g} to {iterations[-1][name]:.4g} |"
        )
    lines += ["", "![curves](ppo.png)", "", *_times(iterations), "", *_samples(workdir)]
    (workdir / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _times(iterations: Sequence[dict[str, Any]]) -> list[str]:
    """Where an iteration's time goes; the first one compiles and is left out if there are others."""
    timed = iterations[1:] or iterations
    phases = [name for name in timed[-1] if name.startswith("secs/")]
    lines = ["| phase | median seconds |", "|---|---|"]
    lines += [
        f"| {name.removeprefix('secs/').replace('_', ' ')} | {median(line[name] for line in timed):.3f} |"
        for name in phases
    ]
    rate = median(line["rate/generated_tokens_per_sec"] for line in timed)
    return [*lines, f"| generated tokens per second | {rate:,.0f} |"]


def _samples(workdir: Path) -> list[str]:
    """A few answers of the first and the last iteration; one that ran twice after a resume counts once."""
    path = workdir / "samples.jsonl"
    by_step: dict[int, dict[str, dict[str, Any]]] = {}
    for row in read_rows(path) if path.exists() else []:
        by_step.setdefault(row["step"], {})[row["prompt"]] = row
    lines = ["## Samples", ""] if by_step else []
    for step in sorted({min(by_step), max(by_step)}) if by_step else []:
        lines += [f"Iteration {step}:", "", "| prompt | answer | reward |", "|---|---|---|"]
        for row in list(by_step[step].values())[:4]:
            lines.append(f"| {quote(row['prompt'])} | {quote(row['completion'])} | {row['reward']:.3f} |")
        lines.append("")
    return lines
