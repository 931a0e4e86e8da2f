"""Text the model writes; and such text kept beside the numbers: ``samples.jsonl``."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llama2_jax.data.chat import stop_ids as chat_stop_ids
from llama2_jax.data.jsonl import append_rows, read_rows
from llama2_jax.data.tokenizer import Tokenizer, text_after
from llama2_jax.generate.decode import generate, row_ids
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.until import generate_until
from llama2_jax.model.transformer import Transformer
from llama2_jax.pretrained import LoadedModel
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


def complete_until(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    is_complete: Callable[[str], bool],
    seeds: Sequence[int],
    batch_size: int,
) -> list[str]:
    """Completions as text, each ended soon after ``is_complete`` says so of what it has.

    A space between prompt and completion is no part of it.

    Args:
      loaded: from ``for_decoding(load(path))``.
      seeds: one per prompt.
      batch_size: prompts decoded together; a last batch is filled with copies of its last prompt.
    """
    texts: list[str] = []
    for first in range(0, len(prompts), batch_size):
        batch, own_seeds = prompts[first : first + batch_size], seeds[first : first + batch_size]
        missing = [-1] * (batch_size - len(batch))
        filled = [*batch, *(batch[place] for place in missing)]  # one compiled shape for all
        own_seeds = [*own_seeds, *(own_seeds[place] for place in missing)]
        texts += _batch_until(loaded, filled, sampling, is_complete, own_seeds)[: len(batch)]
    return texts


def _batch_until(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    is_complete: Callable[[str], bool],
    seeds: Sequence[int],
) -> list[str]:
    tokenizer = loaded.require_tokenizer()
    after_space = [tokenizer.decode(list(prompt))[-1:].isspace() for prompt in prompts]

    def text(row: int, ids: list[int]) -> str:
        completion = text_after(prompts[row], ids, tokenizer)
        return completion if after_space[row] else completion.removeprefix(" ")

    made = generate_until(
        loaded.model,
        loaded.params,
        prompts,
        sampling,
        is_complete=lambda row, ids: is_complete(text(row, ids)),
        stop_ids=chat_stop_ids(tokenizer, loaded.template),
        seeds=seeds,
    )
    return [text(row, ids) for row, ids in enumerate(made)]


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
