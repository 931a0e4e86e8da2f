"""Scores of the answers to a safety benchmark: by VADER, by judges, or from a file of the user's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import checkpoint_flags
from llama2_jax.config import ConfigError, require
from llama2_jax.data.jsonl import append_rows, read_appended
from llama2_jax.evals.bold import joined
from llama2_jax.evals.truthfulqa import JUDGED, judge_prompt, verdicts
from llama2_jax.sharding.processes import files_at_rest, wait_for_all

MEASURES = {
    "truthfulqa": {"truth": 0, "info": 0},
    "toxigen": {"toxicity": 0},
    "bold": {"sentiment": -1},
}
"""What is scored in each benchmark, and the lowest score; the highest is 1."""


def rows_so_far(path: Path) -> list[dict[str, Any]]:
    """What this run has appended to ``path`` before, the same on every process."""
    with files_at_rest(path):
        rows = read_appended(path)
    wait_for_all(f"{path}: {len(rows)} rows")
    return rows


def score_sentiments(
    answers: Sequence[dict[str, Any]], sentiment: Callable[[str], float]
) -> list[dict[str, Any]]:
    """A row per answer with the sentiment of prompt and completion as one text."""
    texts = [joined(row["text"], row["completion"], is_answer="messages" in row) for row in answers]
    return [{"id": row["id"], "sentiment": sentiment(text)} for row, text in zip(answers, texts, strict=True)]


def judge_answers(
    output: Path, answers: Sequence[dict[str, Any]], judges: Mapping[str, str], *, batch_size: int
) -> list[dict[str, Any]]:
    """A row per answer and judge, with the probability of " yes"; those missing are computed and kept.

    Args:
      output: gets ``truth_judged.jsonl`` and ``info_judged.jsonl``.
      judges: checkpoints, by what they judge.
    """
    return [
        row
        for judged, checkpoint in judges.items()
        for row in _judge(output / f"{judged}_judged.jsonl", judged, checkpoint, answers, batch_size)
    ]


def _judge(
    path: Path, judged: str, checkpoint: str, answers: Sequence[dict[str, Any]], batch_size: int
) -> list[dict[str, Any]]:
    """The rows of one judge, which is loaded if any are missing."""
    done = [row for row in rows_so_far(path) if row["judge"] == checkpoint]
    known = {row["id"] for row in done}
    missing = [row for row in answers if row["id"] not in known]
    judge = checkpoint_flags.load_checkpoint(path=checkpoint) if missing else None
    while judge and missing:
        batch, missing = missing[:batch_size], missing[batch_size:]
        prompts = [judge_prompt(judged, row["text"], row["answer"]) for row in batch]
        found = verdicts(judge, prompts, batch_size=batch_size)
        rows = [
            {"id": row["id"], judged: verdict.yes, "yes_or_no": verdict.yes_or_no, "judge": checkpoint}
            for row, verdict in zip(batch, found, strict=True)
        ]
        append_rows(path, rows)
        done += rows
    return done


def yes_or_no(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each judge, by what it judges: the mean probability of " yes" or " no" in its rows."""
    own = {name: [row["yes_or_no"] for row in rows if name in row] for name in JUDGED}
    return {name: sum(found) / len(found) for name, found in own.items()}


def checked_scores(
    given: Sequence[Mapping[str, Any]], measures: Mapping[str, float], ids: Sequence[int]
) -> list[dict[str, Any]]:
    """One row per answer with all its measures, in the order of ``ids``; others are passed over.

    Args:
      given: rows with an ``id`` and one or more measures.
      measures: their names and lowest values.

    Raises:
      ConfigError: an answer without a score, or a score outside its range.
    """
    scores: dict[str, dict[Any, float]] = {name: {} for name in measures}
    for number, row in enumerate(given):
        require("id" in row, f"row {number} of the scores has no id; it has {', '.join(row) or 'nothing'}")
        for name in measures.keys() & row.keys():
            scores[name][row["id"]] = _checked(
                row[name], measures[name], where=f"{name} of answer {row['id']}"
            )
    for name, own in scores.items():
        lacking = [one for one in ids if one not in own]
        if lacking:
            raise ConfigError(
                f"{len(ids) - len(lacking)} of {len(ids)} answers have a score {name!r}; id {lacking[0]} has "
                "none. Give a row for each answer"
            )
    return [{"id": one, **{name: scores[name][one] for name in measures}} for one in ids]


def _checked(value: Any, lowest: float, *, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= 1
    require(number, f"{where} is {value!r}; it must be a number from {lowest} to 1")
    return float(value)
