"""Text the model writes, kept beside the numbers: ``samples.jsonl``."""

from collections.abc import Sequence
from pathlib import Path

from llama2_jax.data.jsonl import append_rows, read_rows
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
) -> list[str]:
    """Completions as text, without the stop token."""
    completions = generate(model, params, prompts, sampling, stop_ids=stop_ids)
    return [tokenizer.decode(row_ids(completions, row)[1]) for row in range(len(prompts))]


def append_completions(workdir: Path, step: int, prompts: Sequence[str], completions: Sequence[str]) -> None:
    """Add one line per prompt to ``workdir/samples.jsonl``."""
    both = zip(prompts, completions, strict=True)
    append_rows(
        workdir / "samples.jsonl",
        ({"step": step, "prompt": prompt, "completion": completion} for prompt, completion in both),
    )


def read_samples(workdir: Path) -> dict[int, dict[str, str]]:
    """step -> prompt -> completion; a step that ran twice (after a resume) counts once."""
    samples: dict[int, dict[str, str]] = {}
    path = workdir / "samples.jsonl"
    for row in read_rows(path) if path.exists() else []:
        samples.setdefault(row["step"], {})[row["prompt"]] = row["completion"]
    return samples
