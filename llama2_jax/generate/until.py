"""Completions that end at texts, as evaluations ask for them: "\\n\\n", "Question:"."""

from collections.abc import Callable, Sequence

import numpy as np

from llama2_jax.generate.decode import advance, check_logprobs, few_lengths, fill_rows, room, start
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.processes import on_host
from llama2_jax.structs import Params

CHUNK = 16  # tokens made between two looks at the texts


def generate_until(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    is_complete: Callable[[int, list[int]], bool],
    stop_ids: Sequence[int],
    seeds: Sequence[int],
) -> list[list[int]]:
    """The ids that ``generate`` makes for each prompt, ended early where ``is_complete`` says so.

    Args:
      is_complete: whether row i (the first argument) needs no more than the ids it has made (the second);
        asked after every 16 tokens, so that up to 15 ids may follow what it waited for.
      stop_ids: as of ``generate``; the one that ended a row is its last.

    Raises:
      PromptError, ConfigError, LogitsError: as ``generate``.
    """
    made: list[list[int]] = [[] for _ in prompts]
    num_chunks = -(-few_lengths(room(model, prompts, sampling), sampling) // CHUNK)
    filled = fill_rows(model, prompts, seeds)
    state = start(model, params, filled[0], max_new_tokens=num_chunks * CHUNK, seeds=filled[1])
    for _ in range(num_chunks):
        state, part = advance(
            model, params, state, sampling.numbers, stop_ids=tuple(stop_ids), num_tokens=CHUNK
        )
        part = on_host(part)
        check_logprobs(part.raw_logprobs_BC)
        ended_B = np.array(part.stopped_B)
        for row, ids in enumerate(made):
            ids += part.tokens_BC[row, : part.lengths_B[row]].tolist()
            ended_B[row] = ended_B[row] or is_complete(row, ids)
        ended_B[len(made) :] = True
        if ended_B.all():
            break
        state = state._replace(stopped_B=ended_B)
    return [ids[: sampling.max_new_tokens] for ids in made]
