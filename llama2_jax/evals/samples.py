"""Text the model writes, kept beside the numbers: ``samples.jsonl``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.generate.decode import generate, row_ids
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.structs import Params


def complete(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    *,
    stop_ids: Sequence[int],
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """Completions as text, without the stop token."""
    completions = generate(model, params, prompts, sampling, stop_ids=stop_ids, seeds=seeds)
    return [tokenizer.decode(row_ids(completions, row)[1]) for row in range(len(prompts))]


def append_samples(workdir: Path, step: int, prompts: Sequence[str], completions: Sequence[str]) -> None:
    """Add one line per prompt to ``workdir/samples.jsonl``."""
    with (workdir / "samples.jsonl").open("a", encoding="utf-8") as file:
        for prompt, completion in zip(prompts, completions, strict=True):
            line = {"step": step, "prompt": prompt, "completion": completion}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_samples(workdir: Path) -> dict[int, dict[str, str]]:
    """step -> prompt -> completion; a step that ran twice (after a resume) counts once."""
    samples: dict[int, dict[str, str]] = {}
    path = workdir / "samples.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        record: dict[str, Any] = json.loads(line)
        samples.setdefault(record["step"], {})[record["prompt"]] = record["completion"]
    return samples
