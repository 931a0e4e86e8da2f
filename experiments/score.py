"""Log-probabilities of given text under any checkpoint, or the scores of answers by a reward model.

python -m experiments.score --checkpoint=PATH --input=in.jsonl --output=out.jsonl

Rows of the input: {"prompt": text, "completion": text} or {"tokens": [ids]}. Texts are joined and
encoded once, after BOS if the model read its texts so, or if the prompt is empty. The completion begins
where these ids stop being those of the prompt alone: a token that spans both counts as completion, because
the model has to produce it, and so do spaces at the prompt's end. An empty completion has 0 tokens and the
sum 0; a text without a token that can be scored is refused. A row with all three keys is scored by its
texts. Each output row is the input row with these keys set: "tokens", the ids that were scored; "logprobs",
natural log of each token given all before it, null for the first; "sum" over all tokens; with texts also
"completion_sum" and "completion_tokens", the sum over the completion and its number of tokens. So output
rows can be scored again, with the same result.

If PATH is a reward model, rows are {"messages": [...]} that end with an answer, and "score", the raw one of
that answer, is all that is added.
"""

from typing import Any

from absl import flags

from experiments import checkpoint_flags
from experiments.row_fields import refuse_overwriting, row_text, row_tokens
from llama2_jax.config import ConfigError
from llama2_jax.data.jsonl import read_rows, write_rows
from llama2_jax.data.preference_batches import encode_response
from llama2_jax.data.sources import to_messages
from llama2_jax.data.tokenizer import encode_pair
from llama2_jax.generate.score import score
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel
from llama2_jax.rlhf.reward_checkpoint import is_reward_model
from llama2_jax.rlhf.reward_model import RewardModel, score_rows


def main() -> None:
    """Read, score, write."""
    refuse_overwriting(flags.FLAGS.input, flags.FLAGS.output)
    rows = read_rows(flags.FLAGS.input)
    if is_reward_model(flags.FLAGS.checkpoint):
        scored = add_scores(
            checkpoint_flags.load_reward_checkpoint(), rows, batch_size=flags.FLAGS.batch_size
        )
    else:
        scored = add_logprobs(checkpoint_flags.load_checkpoint(), rows, batch_size=flags.FLAGS.batch_size)
    write_rows(flags.FLAGS.output, scored)


def add_scores(
    reward_model: RewardModel, rows: list[dict[str, Any]], *, batch_size: int
) -> list[dict[str, Any]]:
    """The rows with the raw score of their last message added, in order."""
    ids = [_answer_ids(row, reward_model, where=f"row {index}") for index, row in enumerate(rows)]
    scores = score_rows(reward_model, ids, batch_size=batch_size)
    return [{**row, "score": float(one)} for row, one in zip(rows, scores, strict=True)]


def _answer_ids(row: dict[str, Any], reward_model: RewardModel, *, where: str) -> list[int]:
    if "messages" not in row:
        raise ConfigError(f"{where} has no 'messages', which a reward model reads; it has {', '.join(row)}")
    try:
        return encode_response(to_messages(row["messages"]), reward_model.tokenizer, reward_model.template)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def add_logprobs(loaded: LoadedModel, rows: list[dict[str, Any]], *, batch_size: int) -> list[dict[str, Any]]:
    """The rows with log-probabilities added, in order."""
    encoded = [_encode(row, loaded, where=f"row {index}") for index, row in enumerate(rows)]
    scores = score(loaded.model, loaded.params, [ids for ids, _ in encoded], batch_size=batch_size)
    return [
        _result(row, ids, prompt_length, [float(x) for x in logprobs])
        for row, (ids, prompt_length), logprobs in zip(rows, encoded, scores, strict=True)
    ]


def _encode(row: dict[str, Any], loaded: LoadedModel, *, where: str) -> tuple[list[int], int]:
    """Ids of a row, and how many of them are the prompt (0 when the row is plain tokens)."""
    if _has_texts(row):
        prompt, completion = (row_text(row, key, where=where) for key in ("prompt", "completion"))
        own, rest = encode_pair(prompt, completion, loaded.require_tokenizer())
        ids, prompt_length = own + rest, len(own)
        if completion and len(ids) <= max(prompt_length, 1):  # the first token of all has no probability
            raise ConfigError(
                f"{where}: its completion has no token to score (tokens after the prompt: "
                f"{len(ids) - prompt_length}, and the first of a row has no probability); give it text, or "
                "leave the row out"
            )
        return ids, prompt_length
    if "tokens" in row:
        return row_tokens(row, where=where), 0
    raise ConfigError(
        f"{where} needs 'tokens', or 'prompt' and 'completion'; it has {', '.join(row) or 'nothing'}"
    )


def _has_texts(row: dict[str, Any]) -> bool:
    return "prompt" in row and "completion" in row


def _result(row: dict[str, Any], ids: list[int], prompt_length: int, logprobs: list[float]) -> dict[str, Any]:
    result = {**row, "tokens": ids, "logprobs": [None, *logprobs], "sum": sum(logprobs)}
    if _has_texts(row):
        counted = logprobs[max(prompt_length - 1, 0) :]
        result |= {"completion_sum": sum(counted), "completion_tokens": len(counted)}
    return result


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_string("input", None, "JSONL to score.")
    flags.DEFINE_string("output", None, "JSONL to write.")
    flags.DEFINE_integer("batch_size", 8, "Rows scored together.", lower_bound=1)
    flags.mark_flags_as_required(["input", "output"])
    launch(main, several_processes=True)
