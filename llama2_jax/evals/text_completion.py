"""Completions as text, each up to the first of some texts that end it."""

from collections.abc import Sequence

from llama2_jax.data.chat import stop_ids
from llama2_jax.data.tokenizer import text_after
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.until import generate_until
from llama2_jax.pretrained import LoadedModel


def complete_batch(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    *,
    until: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
) -> list[str]:
    """What the model writes after each prompt, before the first of ``until``.

    A completion is what the joined text adds to its prompt; decoded alone, SentencePiece would lose a leading
    space (TOK-5), which is indentation where code is asked for. But one space between a prompt and its
    completion is left out: it separates the two, and metrics compare literally.

    Args:
      loaded: from ``for_decoding``, with a tokenizer.
      prompts: ids, at most ``batch_size`` of them. The batch is filled with copies of the last one, so that
        there is one compiled shape for all batches.
      seeds: one per prompt; the completion depends on the prompt and its seed alone.

    Raises:
      PromptError, ConfigError, LogitsError: as ``generate_until``.
    """
    tokenizer = loaded.require_tokenizer()
    missing = [-1] * (batch_size - len(prompts))
    filled = [*prompts, *(prompts[place] for place in missing)]
    befores = [tokenizer.decode(prompt) for prompt in prompts]
    befores += [befores[place] for place in missing]

    def text(row: int, ids: list[int]) -> str:
        completion = text_after(filled[row], ids, tokenizer)
        return completion if befores[row][-1:].isspace() else completion.removeprefix(" ")

    def is_complete(row: int, ids: list[int]) -> bool:
        written = text(row, ids) if until else ""
        return any(stop in written for stop in until)

    made = generate_until(
        loaded.model,
        loaded.params,
        filled,
        sampling,
        is_complete=is_complete,
        stop_ids=stop_ids(tokenizer, loaded.template),
        seeds=[*seeds, *(seeds[place] for place in missing)],
    )
    return [_before_any(until, text(row, made[row])) for row in range(len(prompts))]


def _before_any(stops: Sequence[str], text: str) -> str:
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
