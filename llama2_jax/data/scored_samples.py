"""Evaluation samples as text, each with its metric: JSONL of one of two forms.

Our own, of which other keys are ignored:

    {"id": "q17", "text": "the whole sample as the model reads it", "dataset": "mmlu", "metric": 1}

and the ``samples_TASK_TIME.jsonl`` that ``lm_eval --log_samples`` writes, or the ``samples_TASK.jsonl`` of
``experiments.evaluate_benchmarks``. Of the latter the dataset is TASK, and the text is the prompt with the
right continuation: of a multiple choice the right answer as it is scored, of a generated answer the target,
the first one if there are several.

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
from llama2_jax.data.records import DataError, Paths, check, expand_paths, text_of

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
        rows = parse_rows(file, parse)
        samples += _of_one_filter(file, rows)
        if not fewshot_delimiter and any(name is not None for name, _ in rows):
            log.warning(
                "%s: prompts are kept whole; if they hold examples, give their fewshot_delimiter, such as %r",
                file,
                "\n\n",
            )
    _check_unique(samples)
    return samples


def _parse(row: dict[str, Any], *, task: str, **lm_eval: str) -> tuple[str | None, ScoredSample]:
    """lm_eval's filter, or None if the row is our own, and the sample."""
    if "arguments" not in row:
        name, text, dataset = str(row["id"]), text_of(row, "text"), text_of(row, "dataset")
        sample = ScoredSample(name, text, dataset, _number(row, "metric"))
        logged_filter = None
    else:
        sample = _lm_eval_sample(row, task, **lm_eval)
        logged_filter = str(row.get("filter", ""))
    check(text_of(sample._asdict(), "text").strip(), "the text is empty")
    return logged_filter, sample


def _lm_eval_sample(row: dict[str, Any], task: str, *, metric: str, fewshot_delimiter: str) -> ScoredSample:
    prompt, *rest = _right_request(_requests(row), row)
    if fewshot_delimiter:
        check(fewshot_delimiter in prompt, f"the prompt has no {fewshot_delimiter!r} before its own question")
        prompt = prompt.rpartition(fewshot_delimiter)[2]
    metrics = [metric] if metric else row["metrics"]
    check(
        isinstance(metrics, list) and metrics and isinstance(metrics[0], str),
        f"'metrics' is {metrics!r}; it must name one or more",
    )
    value = _number(row, metrics[0])
    return ScoredSample(f"{task}/{row['doc_id']}", prompt + _continuation(prompt, rest, row), task, value)


def _requests(row: dict[str, Any]) -> list[list[Any]]:
    """What the model was asked: a prompt alone, or with a continuation, or with how to generate one."""
    arguments = row["arguments"]
    check(isinstance(arguments, dict) and arguments, "'arguments' is not an object, as newer lm_eval logs it")
    for name, request in arguments.items():
        check(
            isinstance(request, dict) and request,
            f"{name!r} of 'arguments' is {request!r}, not an object with the arguments of a request",
        )
    requests = [list(request.values()) for request in arguments.values()]
    for prompt, *_ in requests:
        check(isinstance(prompt, str), f"the prompt is {type(prompt).__name__}, not text")
    return requests


def _right_request(requests: list[list[Any]], row: dict[str, Any]) -> list[Any]:
    """Of the requests that with the right continuation; ``target`` is its number or its text."""
    if len(requests) == 1:
        return requests[0]
    check(
        all(len(request) > 1 and isinstance(request[1], str) for request in requests),
        f"there are {len(requests)} requests, but not all have a continuation",
    )
    (prompt, continuation, *_), (other, same, *_) = requests[:2]
    if len(requests) == 2 and prompt and other and continuation == same:
        return _right_of_two_prompts(requests, row)
    target = _target(row)
    if target.isdecimal() and int(target) < len(requests):
        return requests[int(target)]
    right = [request for request in requests if request[0] and request[1].strip() == target.strip()]
    check(
        len(right) == 1,
        f"{len(right)} of {len(requests)} continuations are the target {target!r}, so the right one is not "
        "known; write these samples as rows with id, text, dataset and metric",
    )
    return right[0]


def _right_of_two_prompts(requests: list[list[Any]], row: dict[str, Any]) -> list[Any]:
    """Of two prompts with one continuation, as WinoGrande has: the likelier one if ``acc`` says so.

    The target is that continuation and names neither; of equal ones lm_eval takes the first as the likelier.
    """
    answers, right = row["filtered_resps"], _number(row, "acc")
    check(
        isinstance(answers, list) and [isinstance(one, list) and len(one) for one in answers] == [2, 2],
        f"'filtered_resps' is {answers!r}; it must be two pairs of a log-likelihood and whether it is greedy",
    )
    check(right in (0, 1), f"'acc' is {right}; of two prompts with one continuation it must be 0 or 1")
    first, second = (float(str(log_likelihood)) for log_likelihood, _ in answers)  # logged as text
    check(not math.isnan(first + second), f"'filtered_resps' is {answers!r}; a log-likelihood is no number")
    return requests[(second > first) == bool(right)]


def _continuation(prompt: str, rest: list[Any], row: dict[str, Any]) -> str:
    if not rest:  # the log-likelihood of a whole text
        return ""
    if isinstance(rest[0], str):
        return rest[0]
    target = _first_of_several(_target(row))
    return target if prompt.endswith((" ", "\n")) or target.startswith((" ", "\n")) else f" {target}"


def _target(row: dict[str, Any]) -> str:
    """The target as lm_eval's own logs have it, a text; others have numbers and lists, of which the first."""
    target = row["target"]
    if type(target) is int:
        return str(target)
    first = target[0] if isinstance(target, list) and target else target
    check(
        isinstance(first, str),
        f"'target' is {target!r}; it must be a text, a list of texts or the number of the right continuation",
    )
    return first


def _first_of_several(target: str) -> str:
    """The first text of a list that was logged as text; "[-2,7]" is an answer of its own."""
    try:
        found = ast.literal_eval(target) if target.startswith("[") else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what it raises on other texts
        return target
    if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
        return found[0]
    return target


def _number(row: dict[str, Any], key: str) -> float:
    value = row[key]  # true or false too: lm_eval logs IFEval's accuracies so
    check(isinstance(value, int | float) and math.isfinite(value), f"{key!r} is {value!r}, not a number")
    return float(value)


def _task(file: Path) -> str:
    """TASK of ``samples_TASK_TIME.jsonl`` and ``samples_TASK.jsonl``."""
    name = Path(file.name.removesuffix(".gz")).stem
    found = re.fullmatch(r"samples_(.+?)(_\d{4}-\d\d-\d\dT.*)?", name)
    return found[1] if found else name


def _of_one_filter(file: Path, rows: list[tuple[str | None, ScoredSample]]) -> Iterable[ScoredSample]:
    """lm_eval logs a sample once for each filter of its answer; the first filter is taken."""
    filters = list(dict.fromkeys(name for name, _ in rows if name is not None))
    if len(filters) > 1:
        log.warning("%s: metrics of filter %r; not of %s", file, filters[0], ", ".join(filters[1:]))
    return [sample for name, sample in rows if name in (None, *filters[:1])]


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
