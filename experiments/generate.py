"""Complete prompts from a file with any checkpoint.

python -m experiments.generate --checkpoint=PATH --input=prompts.jsonl --output=out.jsonl

Rows of the input: {"prompt": text} (continued as it is, after BOS if the model read its texts so),
{"tokens": [ids]} or {"messages": [{"role", "content"}]} (rendered with the checkpoint's chat template).
Errors and seeds count rows from 0. Each output row repeats the input row and adds "completion",
"completion_tokens", "logprobs" (natural log, of the untempered distribution) and "stopped". A
completion follows its prompt as it is, with the space between them if there is one, so that
experiments.score reads the output; an answer to messages, or to tokens, begins without. In a row with
several of the keys the first in this order counts: prompt, messages, tokens.

Rows that are done stand in OUTPUT.partial until all are; another start begins anew, and is refused as long
as the first one runs.
"""

from collections.abc import Iterator
from typing import Any

from absl import flags

from experiments import checkpoint_flags
from experiments.row_fields import refuse_overwriting, row_text, row_tokens
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import encode_prompt, stop_ids
from llama2_jax.data.jsonl import read_rows, write_rows
from llama2_jax.data.sources import to_messages
from llama2_jax.data.tokenizer import text_after, wants_bos
from llama2_jax.generate.decode import check_prompts, check_seeds, generate, row_ids
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel, for_decoding
from llama2_jax.shapes import filled
from llama2_jax.train.progress import counted


def main() -> None:
    """Read, complete, write."""
    refuse_overwriting(flags.FLAGS.input, flags.FLAGS.output)
    rows = read_rows(flags.FLAGS.input)
    loaded = for_decoding(checkpoint_flags.load_checkpoint())
    sampling = SamplingConfig(
        flags.FLAGS.max_new_tokens, flags.FLAGS.temperature, flags.FLAGS.top_p, flags.FLAGS.top_k
    )
    write_rows(
        flags.FLAGS.output,
        complete_rows(loaded, rows, sampling, batch_size=flags.FLAGS.batch_size, seed=flags.FLAGS.seed),
    )


def complete_rows(
    loaded: LoadedModel, rows: list[dict[str, Any]], sampling: SamplingConfig, *, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """The rows with completions added, in order, each as soon as its batch is done.

    Raises:
      ConfigError, PromptError: a row that cannot be continued, before anything is.
    """
    prompts = [prompt_ids(row, loaded, where=f"row {index}") for index, row in enumerate(rows)]
    check_prompts(loaded.model, prompts)
    check_seeds([seed, seed + len(rows) - 1])  # before the first batch, not after hours
    return _complete(loaded, rows, prompts, sampling, batch_size=batch_size, seed=seed)


def _complete(
    loaded: LoadedModel,
    rows: list[dict[str, Any]],
    prompts: list[list[int]],
    sampling: SamplingConfig,
    *,
    batch_size: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    stops = stop_ids(loaded.tokenizer, loaded.template) if loaded.tokenizer is not None else ()
    for chosen in counted("rows", range(len(rows)), size=batch_size):
        numbers = filled(chosen, min(batch_size, len(rows)))
        batch, seeds = [prompts[number] for number in numbers], [seed + number for number in numbers]
        out = generate(loaded.model, loaded.params, batch, sampling, stop_ids=stops, seeds=seeds)
        for index, number in enumerate(chosen):
            ids, text_ids = row_ids(out, index)
            result = {
                **rows[number],
                "completion_tokens": ids,
                "logprobs": [float(x) for x in out.raw_logprobs_BC[index, : len(ids)]],
                "stopped": bool(out.stopped_B[index]),
            }
            if loaded.tokenizer is not None:
                follows = batch[index] if "prompt" in result else []
                result["completion"] = text_after(follows, text_ids, loaded.tokenizer)
            yield result


def prompt_ids(row: dict[str, Any], loaded: LoadedModel, *, where: str) -> list[int]:
    """Token ids of one input row. Raises ``ConfigError`` that begins with ``where``."""
    if "prompt" in row:
        tokenizer, text = loaded.require_tokenizer(), row_text(row, "prompt", where=where)
        return tokenizer.encode(text, bos=wants_bos(text, tokenizer))
    if "messages" in row:
        try:
            return encode_prompt(to_messages(row["messages"]), loaded.require_tokenizer(), loaded.template)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    if "tokens" in row:
        return row_tokens(row, where=where)
    raise ConfigError(
        f"{where} has none of 'prompt', 'tokens', 'messages'; it has {', '.join(row) or 'nothing'}"
    )


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_string("input", None, "JSONL of prompts.")
    flags.DEFINE_string("output", None, "JSONL to write.")
    flags.DEFINE_integer("batch_size", 8, "Rows decoded together.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 256, "Longest completion.")
    flags.DEFINE_float("temperature", 0.6, "0 is greedy.")
    flags.DEFINE_float("top_p", 0.9, "Nucleus; 1 is off.")
    flags.DEFINE_integer("top_k", 0, "0 is off.")
    flags.DEFINE_integer("seed", 0, "Row i of the input samples with seed + i.")
    flags.mark_flags_as_required(["input", "output"])
    launch(main, several_processes=True)
