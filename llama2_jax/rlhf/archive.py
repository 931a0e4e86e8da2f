"""The archive: every sample ever drawn, with its scores (Llama 2, section 3.2.3; RS-9).

A JSONL file that only grows. A sample is known by ``Sample.key``, never by its text; where a key
stands several times the last row counts, so new scores are new rows and a killed run loses nothing.
Scores are comparable only if the same reward models gave them: ``rescore`` brings the
samples of all rounds up to date before anything is picked.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llama2_jax.answers import model_version, sample_token_rows
from llama2_jax.config import require, to_plain
from llama2_jax.data.chat import DialogueError, Template, encode_prompt
from llama2_jax.data.jsonl import append_rows, read_appended
from llama2_jax.data.prompts import Prompt, prompt_from_row
from llama2_jax.data.records import DataError
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.generate.decode import check_prompts
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.pretrained import LoadedModel
from llama2_jax.rlhf.rewards import reward_of
from llama2_jax.sharding.processes import files_at_rest, wait_for_all
from llama2_jax.train.metrics import NonFiniteError
from llama2_jax.train.progress import counted

BATCHES_PER_WRITE = 8  # what a killed run draws or scores again, at most


class Sample(NamedTuple):
    """One answer that a model gave. Scores are raw scalars, sigmoid not applied."""

    prompt: Prompt
    round: int  # of alignment: 1 = the samples that RLHF-V1 is made from
    model: str  # ``model_version`` of the policy
    temperature: float
    seed: int  # 0, 1, ... among the samples of a prompt; see ``draw``
    tokens: tuple[int, ...]  # as sampled, with the stop token if there is one
    text: str  # without the stop token
    stopped: bool
    encoding: str  # what the ids mean: template and tokenizer
    scores: dict[str, float]  # safety, helpfulness, combined; empty until scored
    rm_versions: dict[str, str]  # of the reward models behind them

    @property
    def key(self) -> tuple[str, int, str, float, int]:
        """What makes this sample itself."""
        return self.prompt.prompt_id, self.round, self.model, self.temperature, self.seed


class Scorer(NamedTuple):
    """A reward model as the archive sees it."""

    version: str  # changes with its parameters
    score: Callable[[Sequence[Sequence[int]]], np.ndarray]  # rows of ids -> raw scalars


def encoding_name(tokenizer: Tokenizer, template: Template) -> str:
    """What token ids mean: the template and the first digits of the tokenizer's hash."""
    return f"{template.name}/{tokenizer.content_hash[:12]}"


def read_archives(paths: Iterable[str | Path], *, own: str | Path | None = None) -> list[Sample]:
    """The samples of several archives as one, sorted by key; of equal keys the last row counts.

    A last line that was cut off is passed over with a warning.

    Args:
      paths: of earlier runs.
      own: of this run, after the others; it may not have begun.

    Raises:
      DataError: an earlier archive that is not there, a line that is no sample (file, line, reason), or one
        ``prompt_id`` for two prompts.
    """
    given = [Path(path) for path in paths]
    missing = [str(path) for path in given if not path.is_file()]
    if missing:
        raise DataError(f"no archive is at {', '.join(missing)}; name those of earlier runs")
    if own is None:
        return _join(given)
    with files_at_rest(own):
        samples = _join([*given, Path(own)])
    wait_for_all(f"{own}: {len(samples)} samples")
    return samples


def _join(paths: Iterable[Path]) -> list[Sample]:
    samples: dict[Any, Sample] = {}
    prompts: dict[str, tuple[Prompt, Path]] = {}
    for path in paths:
        for sample in read_appended(path, _parse):
            known, where = prompts.setdefault(sample.prompt.prompt_id, (sample.prompt, path))
            if known != sample.prompt:
                raise DataError(
                    f"prompt_id {known.prompt_id!r} is one prompt in {where}, another in {path}; an archive "
                    "is keyed by it, so ids must be unique over all rounds"
                )
            samples[sample.key] = sample
    return sorted(samples.values(), key=lambda sample: sample.key)


def _parse(row: dict[str, Any]) -> Sample:
    prompt = prompt_from_row({name: row.pop(name) for name in Prompt._fields})
    try:
        return Sample(prompt=prompt, **{**row, "tokens": tuple(row["tokens"])})
    except TypeError as error:  # fields of something else
        raise ValueError(f"not a sample: {error}") from error


def append_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Add rows, see ``append_rows``."""
    append_rows(path, map(_row, samples))


def _row(sample: Sample) -> dict[str, Any]:
    row = {**to_plain(sample.prompt), **sample._asdict()}
    del row["prompt"]
    return row


def draw(
    path: str | Path,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    *,
    round: int,
    num_samples: int,
    batch_size: int,
    seed: int = 0,
) -> list[Sample]:
    """``num_samples`` samples of every prompt, by prompt; what the archive holds is not drawn again.

    Sample ``seed + i`` of a prompt is drawn with a random seed made from its id, the round and that number:
    independent of the other prompts, of how many samples there are, and of the batch. Temperatures share
    theirs, so that they can be compared; rounds do not, or a model that changed little would repeat itself.

    Args:
      path: the archive, appended to while samples are drawn; need not exist.
      loaded: from ``for_decoding``.
      round: of alignment; with the model, temperature and seed it makes a sample's key.

    Raises:
      DialogueError, PromptError, ConfigError: a prompt that cannot be rendered or is too long.
      DataError: a prompt whose id is another prompt's in the archive.
    """
    path = Path(path)
    tokenizer = loaded.require_tokenizer()
    model, encoding = model_version(loaded), encoding_name(tokenizer, loaded.template)
    wanted = [
        Sample(prompt, round, model, sampling.temperature, seed + i, (), "", False, encoding, {}, {})
        for prompt in prompts
        for i in range(num_samples)
    ]
    held = {sample.key: sample for sample in read_archives([], own=path)}
    for prompt_id in changed_prompts(held.values(), prompts):
        raise DataError(
            f"prompt_id {prompt_id!r} is another prompt in {path}, whose answers are not this one's; ids "
            "must be unique: give another id, or another folder"
        )
    rows = checked_rows(loaded, prompts)
    missing = [sample for sample in wanted if sample.key not in held]
    missing.sort(key=lambda sample: len(rows[sample.prompt.prompt_id]))  # few shapes to compile
    done = len(wanted) - len(missing)
    for part in counted("samples", missing, size=BATCHES_PER_WRITE * batch_size, done=done):
        answers = sample_token_rows(
            loaded,
            [rows[sample.prompt.prompt_id] for sample in part],
            sampling,
            seeds=[_random_seed(sample) for sample in part],
            batch_size=batch_size,
            shown_as="",
        )
        drawn = [
            sample._replace(tokens=tuple(answer.tokens), text=answer.text, stopped=answer.stopped)
            for sample, answer in zip(part, answers, strict=True)
        ]
        append_samples(path, drawn)
        held |= {sample.key: sample for sample in drawn}
    return [held[sample.key] for sample in wanted]


def _random_seed(sample: Sample) -> int:
    return zlib.crc32(f"{sample.prompt.prompt_id} {sample.round} {sample.seed}".encode())


def changed_prompts(held: Iterable[Sample], prompts: Iterable[Prompt]) -> list[str]:
    """Ids of the prompts that are others among the samples, which are keyed by them."""
    known = {sample.prompt.prompt_id: sample.prompt for sample in held}
    return [one.prompt_id for one in prompts if known.get(one.prompt_id, one) != one]


def rescore(
    path: str | Path,
    samples: Sequence[Sample],
    scorers: Mapping[str, Scorer],
    tokenizer: Tokenizer,
    template: Template,
    *,
    threshold: float,
    batch_size: int,
) -> list[Sample]:
    """The samples with the scores of these reward models; only rows of another version are scored.

    Args:
      path: the archive that new scores are appended to, and samples that it does not hold yet: it then holds
        all of them.
      scorers: ``helpfulness``, and ``safety`` if there is one.
      threshold: of the combination (PPO-3), a probability.

    Raises:
      ConfigError: samples whose ids mean something else than ``tokenizer`` and ``template`` say.
      NonFiniteError: a score is NaN or infinite; the scores before it are kept.
    """
    _require_encoding(samples, encoding_name(tokenizer, template))
    rows = prompt_rows([sample.prompt for sample in samples], tokenizer, template)
    versions = {kind: scorer.version for kind, scorer in scorers.items()}
    held = {sample.key for sample in read_archives([], own=path)}
    results: list[Sample] = []
    for part in counted("", samples, size=BATCHES_PER_WRITE * batch_size):
        scores = {kind: np.array([sample.scores.get(kind, np.nan) for sample in part]) for kind in scorers}
        for kind in scorers:
            stale = [i for i, sample in enumerate(part) if sample.rm_versions.get(kind) != versions[kind]]
            ids = [[*rows[part[i].prompt.prompt_id], *part[i].tokens] for i in stale]
            if stale:
                scores[kind][stale] = scorers[kind].score(ids)
            _require_finite(scores[kind], part, versions[kind])
        is_safety = np.array([sample.prompt.is_safety for sample in part])
        table = {**scores, "combined": np.asarray(reward_of(scores, is_safety, threshold=threshold))}
        scored = [
            sample._replace(
                scores={kind: float(values[i]) for kind, values in table.items()}, rm_versions=versions
            )
            for i, sample in enumerate(part)
        ]
        pairs = zip(scored, part, strict=True)
        append_samples(path, [new for new, old in pairs if new != old or new.key not in held])
        results += scored
    return results


def prompt_rows(prompts: Iterable[Prompt], tokenizer: Tokenizer, template: Template) -> dict[str, list[int]]:
    """Ids of every prompt, by its id.

    Raises:
      DialogueError: a prompt that cannot be rendered, by its id.
    """
    rows: dict[str, list[int]] = {}
    for prompt in prompts:
        if prompt.prompt_id not in rows:
            try:
                rows[prompt.prompt_id] = encode_prompt(prompt.messages, tokenizer, template)
            except DialogueError as error:
                raise DialogueError(f"prompt {prompt.prompt_id!r}: {error}") from error
    return rows


def checked_rows(loaded: LoadedModel, prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """``prompt_rows`` of prompts that the model can answer: the longest would come last, hours later.

    Args:
      loaded: also without its parameters.

    Raises:
      DialogueError, PromptError, ConfigError: a prompt that cannot be rendered or is too long, by its id.
    """
    rows = prompt_rows(prompts, loaded.require_tokenizer(), loaded.template)
    check_prompts(loaded.model, list(rows.values()), list(rows))
    return rows


def require_scored(samples: Iterable[Sample]) -> None:
    """Refuse samples whose scores cannot be compared.

    Raises:
      ConfigError: one has no combined score, or they are of several versions of the reward models.
    """
    versions = set()
    for sample in samples:
        require("combined" in sample.scores, f"sample {sample.key} has no combined score; call rescore first")
        versions.add(tuple(sorted(sample.rm_versions.items())))
    require(
        len(versions) <= 1,
        f"the samples were scored by {len(versions)} versions of the reward models, whose scores cannot be "
        "compared; call rescore first",
    )


def _require_encoding(samples: Iterable[Sample], encoding: str) -> None:
    for sample in samples:
        require(
            sample.encoding == encoding,
            f"sample {sample.key} holds ids of {sample.encoding}, the models read {encoding}; archives can "
            "be joined only over models with one template and tokenizer",
        )


def _require_finite(scores: np.ndarray, samples: Sequence[Sample], version: str) -> None:
    for score, sample in zip(scores, samples, strict=True):
        if not math.isfinite(score):
            raise NonFiniteError(
                f"reward model {version} gives {score} to sample {sample.key}; all samples and the scores "
                "before it are kept: repair or retrain the reward model and run again"
            )
