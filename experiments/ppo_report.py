"""What a person sees of a PPO run: ``samples.jsonl``, ``ppo.png`` and ``report.md``."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.rlhf_plots import plot_ppo
from llama2_jax.data.jsonl import read_rows
from llama2_jax.train.checkpoint import read_meta
from llama2_jax.train.metrics import read_metrics

HELDOUT = {
    "reward": "eval/reward",
    "helpfulness score": "eval/helpfulness",
    "safety score": "eval/safety",
    "score of the guard": "eval/guard",
    "answers that ended": "eval/stopped",
}
"""Of answers to the same prompts, so that they can be compared."""
MEASURES = {
    "KL to the reference, nats per answer": "ppo/kl_per_answer",
    "KL to the reference, nats per token": "ppo/kl_per_token",
    "entropy, nats per token": "ppo/entropy",
    "sigma of the scores": "ppo/sigma",
    "beta x sigma: beta in units of raw scores": "ppo/beta_sigma",
    "explained variance of the value model": "ppo/explained_variance",
    "sampler against trainer, mean difference of probabilities": "ppo/sampler_probability_error",
}


def write_ppo_report(workdir: Path) -> None:
    """Write ``ppo.png`` and ``report.md`` from what the run left."""
    metrics = read_metrics(workdir)
    plot_ppo(workdir / "ppo.png", metrics)
    _, meta = read_meta(workdir)
    iterations = [line for line in metrics if "ppo/score" in line]
    evaluations = {line["step"]: line for line in metrics if "eval/reward" in line}
    best_step = meta["progress"]["best_step"]
    first, last = iterations[0], iterations[-1]
    start, kept = evaluations[0], evaluations[best_step]
    rows = [
        ("iterations", str(last["step"])),
        ("kept: the best on held-out prompts", f"iteration {best_step}"),
    ]
    rows += [
        (f"held-out prompts, {title}, before and kept", f"{start[name]:.3f} to {kept[name]:.3f}")
        for title, name in HELDOUT.items()
        if name in start.keys() & kept.keys()
    ]
    rows += [
        (f"{title}, first and last iteration", f"{first[name]:.4g} to {last[name]:.4g}")
        for title, name in MEASURES.items()
    ]
    lines = ["# PPO", "", "Llama 2, section 3.2.3.", "", *table(("", ""), rows)]
    lines += ["", "![curves](ppo.png)", "", *_times(iterations), "", *_samples(workdir)]
    write_report_file(workdir, lines)


def _times(iterations: Sequence[dict[str, Any]]) -> list[str]:
    """Where an iteration's time goes; the first one compiles and is left out if there are others."""
    timed = iterations[1:] or iterations
    phases = [name for name in timed[-1] if name.startswith("secs/")]
    rows = [
        (name.removeprefix("secs/").replace("_", " "), f"{median(line[name] for line in timed):.3f}")
        for name in phases
    ]
    rate = median(line["rate/generated_tokens_per_sec"] for line in timed)
    return table(("phase", "median seconds"), [*rows, ("generated tokens per second", f"{rate:,.0f}")])


def _samples(workdir: Path) -> list[str]:
    """A few answers of the first and the last iteration; one that ran twice after a resume counts once."""
    path = workdir / "samples.jsonl"
    by_step: dict[int, dict[str, dict[str, Any]]] = {}
    for row in read_rows(path) if path.exists() else []:
        by_step.setdefault(row["step"], {})[row["prompt"]] = row
    lines = ["## Samples", ""] if by_step else []
    for step in sorted({min(by_step), max(by_step)}) if by_step else []:
        rows = [
            (quote(row["prompt"]), quote(row["completion"]), f"{row['reward']:.3f}")
            for row in list(by_step[step].values())[:4]
        ]
        lines += [f"Iteration {step}:", "", *table(("prompt", "answer", "reward"), rows), ""]
    return lines
