"""Evaluation samples as text, each with its metric: JSONL of one of two forms.

Our own, of which other keys are ignored:

    {"id": "q17", "text": "the whole sample as the model reads it", "dataset": "mmlu", "metric": 1}

and the ``samples_TASK_TIME.jsonl`` that ``lm_eval --log_samples`` writes. Of the latter the dataset is TASK,
and the text is the prompt with the right continuation: of a multiple choice the right answer as it is scored,
of a generated answer the target, the first one if there are several.

Examples of other samples before the question are not the sample's own text, and all samples that share one
would share its contamination. lm_eval does not log where they end: write the log with ``--num_fewshot 0``, or
name what separates them (``fewshot_delimiter``, in lm_eval a blank line): what follows its last occurrence is
kept. That cuts a question that itself holds the delimiter, hence the default keeps everything.
"""

import ast
import logging
import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.data.jsonl import parse_rows
from llama2_jax.data.sources import DataError, Paths, check, expand_paths, text_of

log = logging.getLogger(__name__)


class ScoredSample(NamedTuple):
    """One sample of an evaluation, with what the model under test achieved on it."""

    id: str
    text: str
    dataset: str
    metric: float


def read_scored_samples(paths: Paths, *, metric: str = "", fewshot_delimiter: str = "") -> list[ScoredSample]:
    """All samples of the files.

    Args:
      metric: of lm_eval's metrics, this one; the first if it is empty.
      fewshot_delimiter: in lm_eval's prompts, what ends each example; empty if there are none.

    Raises:
      DataError: a row of another form (file, line, reason), or a sample that is there twice.
    """
    samples: list[ScoredSample] = []
    for file in expand_paths(paths):
        parse = partial(_parse, task=_task(file), metric=metric, fewshot_delimiter=fewshot_delimiter)
        samples += _of_one_filter(file, parse_rows(file, parse))
    _check_unique(samples)
    return samples


def _parse(row: dict[str, Any], *, task: str, **lm_eval: str) -> tuple[str, ScoredSample]:
    """lm_eval's filter, which other rows do not have, and the sample."""
    if "arguments" not in row:
        name, text, dataset = str(row["id"]), text_of(row, "text"), text_of(row, "dataset")
        sample = ScoredSample(name, text, dataset, _number(row, "metric"))
    else:
        sample = _lm_eval_sample(row, task, **lm_eval)
    check(sample.text.strip(), "the text is empty")
    return row.get("filter", ""), sample


def _lm_eval_sample(row: dict[str, Any], task: str, *, metric: str, fewshot_delimiter: str) -> ScoredSample:
    check(isinstance(row["arguments"], dict), "'arguments' is not an object, as newer lm_eval logs it")
    requests = [list(arguments.values()) for arguments in row["arguments"].values()]
    prompt, *rest = _right_request(requests, text_of(row, "target"))
    check(isinstance(prompt, str), f"the prompt is {type(prompt).__name__}, not text")
    if fewshot_delimiter:
        check(fewshot_delimiter in prompt, f"the prompt has no {fewshot_delimiter!r} before its own question")
        prompt = prompt.rpartition(fewshot_delimiter)[2]
    value = _number(row, metric or row["metrics"][0])
    return ScoredSample(f"{task}/{row['doc_id']}", prompt + _continuation(prompt, rest, row), task, value)


def _right_request(requests: list[list[Any]], target: str) -> list[Any]:
    """Of what the model was asked, that with the right continuation; ``target`` is its number or its text."""
    if len(requests) == 1:
        return requests[0]
    if target.isdigit() and int(target) < len(requests):
        return requests[int(target)]
    right = [request for request in requests if request[0] and request[1].strip() == target.strip()]
    check(
        len(right) == 1,
        f"{len(right)} of {len(requests)} continuations are the target {target!r}, so the right one is not "
        "known; write these samples as rows with id, text, dataset and metric",
    )
    return right[0]


def _continuation(prompt: str, rest: list[Any], row: dict[str, Any]) -> str:
    if not rest:  # the log-likelihood of a whole text
        return ""
    if isinstance(rest[0], str):
        return rest[0]
    target = row["target"]
    if target.startswith("["):
        target = str(ast.literal_eval(target)[0])
    return target if prompt.endswith((" ", "\n")) or target.startswith((" ", "\n")) else f" {target}"


def _number(row: dict[str, Any], key: str) -> float:
    value = row[key]
    check(isinstance(value, int | float) and math.isfinite(value), f"{key!r} is {value!r}, not a number")
    return float(value)


def _task(file: Path) -> str:
    """TASK of ``samples_TASK_TIME.jsonl``."""
    found = re.fullmatch(r"samples_(.+)_\d{4}-\d\d-\d\dT.*", file.stem)
    return found[1] if found else file.stem


def _of_one_filter(file: Path, rows: list[tuple[str, ScoredSample]]) -> Iterable[ScoredSample]:
    """lm_eval logs a sample once for each filter of its answer; the first filter is taken."""
    filters = list(dict.fromkeys(name for name, _ in rows))
    if len(filters) > 1:
        log.warning("%s: metrics of filter %r; not of %s", file, filters[0], ", ".join(filters[1:]))
    return [sample for name, sample in rows if name == filters[0]]


def _check_unique(samples: list[ScoredSample]) -> None:
    seen = set()
    for sample in samples:
        key = (sample.dataset, sample.id)
        if key in seen:
            raise DataError(
                f"sample {sample.id!r} of {sample.dataset} is there twice, and would count twice; give each "
                "an id of its own, or one file of each run"
            )
        seen.add(key)
