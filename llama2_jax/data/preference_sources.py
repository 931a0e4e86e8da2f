"""Public preference sets, those of Table 6 and a newer one, from their files to ``Preference``.

Files are JSON lines (``records.JSON_LINES``), lists in ``.json`` or Parquet with the fields that each
function names. What a set does not say stays empty; safety is never labelled. A score becomes one of the
four ratings by a table of ours (D34: the paper does not say), and where a set has no score the rating is
None, so its name must stand in ``unrated_sources`` for the margin loss.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.config import require_choice
from llama2_jax.data.chat import Message, Template
from llama2_jax.data.preferences import RATINGS, Preference, check_pair
from llama2_jax.data.records import (
    BadLines,
    DataError,
    OnBadLine,
    Paths,
    check,
    expand_paths,
    read_records,
    text_of,
)
from llama2_jax.data.sources import to_messages

NO_PREFERENCE = "no_preference"
"""Why a pair is left out on purpose: people found both answers equally good."""

SHP_RATIOS = (8.0, 4.0, 2.0)
"""Votes of the chosen answer over those of the rejected one, from which each of the best ratings holds."""

WEBGPT_GAPS = (1.5, 1.0, 0.5)
"""Differences of scores that lie in [-1, 1]."""

ULTRAFEEDBACK_GAPS = (3.0, 2.0, 1.0)
"""Differences of scores from 1 to 10."""

STACK_EXCHANGE_GAPS = (4, 3, 2)
"""Differences of scores that are log2(1 + votes), plus 1 for the accepted answer."""

_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


class PublicSet(NamedTuple):
    """How to read one public set."""

    keys: tuple[str, ...]  # fields of a row that are looked at
    parse: Callable[[dict[str, Any], Path], Preference | None]  # None: no preference


def read_public_set(
    name: str,
    paths: Paths,
    *,
    template: Template,
    on_bad_line: OnBadLine = "error",
    bad_lines: BadLines | None = None,
    excluded: Counter[str] | None = None,
) -> list[Preference]:
    """All usable pairs of the files of a public set, in order.

    Args:
      name: one of ``PUBLIC_SETS``.
      bad_lines: filled with the rows that are passed over, if given.
      template, on_bad_line, excluded: see ``read_preferences``.

    Raises:
      ConfigError: unknown name.
      DataError: a row that is not in the set's format (file, line, reason), or no usable pair.
    """
    require_choice("public preference set", name, PUBLIC_SETS)
    reader = PUBLIC_SETS[name]
    bad_lines = BadLines() if bad_lines is None else bad_lines
    pairs: list[Preference] = []
    for path in expand_paths(paths):

        def parse(row: dict[str, Any], path: Path = path) -> Preference | None:
            try:
                pair = reader.parse(row, path)
            except (TypeError, AttributeError) as error:  # a field holds another kind of value
                raise ValueError(f"not a row of {name}: {error}") from error
            if pair is not None:
                check_pair(pair, template)
            return pair

        read = list(read_records(path, parse, keys=reader.keys, on_bad_line=on_bad_line, bad_lines=bad_lines))
        kept = [pair for pair in read if pair is not None]
        if excluded is not None:
            excluded[NO_PREFERENCE] += len(read) - len(kept)
        pairs += kept
    if not pairs:
        raise DataError(
            f"{paths}: in no pair is one answer preferred, so there is nothing to learn; give another file"
        )
    return pairs


def transcript_messages(transcript: str) -> list[Message]:
    """Messages of "\\n\\nHuman: ... \\n\\nAssistant: ..." (Anthropic's format).

    Raises:
      ValueError: text before the first speaker.
    """
    before, *parts = _SPEAKER.split(transcript)
    if before.strip() or not parts:
        raise ValueError(f"a transcript begins with a speaker, this one with {transcript[:40]!r}")
    return [
        Message(_ROLES[speaker], text.strip()) for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def anthropic_hh(row: dict[str, Any], path: Path) -> Preference:
    """Anthropic Helpful and Harmless: two transcripts that differ in the last answer.

    The folder says what annotators were asked: its name begins with helpful or harmless.
    """
    chosen, rejected = (transcript_messages(text_of(row, key)) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1] or chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise ValueError("the transcripts do not differ in one last answer of the assistant alone")
    track = _hh_track(path)
    return Preference(
        messages=tuple(chosen[:-1]),
        chosen=chosen[-1].content,
        rejected=rejected[-1].content,
        track=track,
        source={"helpfulness": "anthropic_helpful", "safety": "anthropic_harmless"}[track],
    )


def openai_summarize(row: dict[str, Any], path: Path) -> Preference:
    """OpenAI Summarize: a post, two summaries, and the index of the better one. The request is ours."""
    info = row["info"]
    post = text_of(info, "post" if info["post"] else "article")
    title = f"{info['title']}\n\n" if info["title"] else ""
    choice = row["choice"]
    if choice not in (0, 1) or len(row["summaries"]) != 2:
        raise ValueError(f"choice is {choice!r} of {len(row['summaries'])} summaries; it must be 0 or 1 of 2")
    chosen, rejected = row["summaries"][choice], row["summaries"][1 - choice]
    return Preference(
        messages=_prompt(f"Summarize this text.\n\n{title}{post}"),
        chosen=text_of(chosen, "text"),
        rejected=text_of(rejected, "text"),
        track="helpfulness",
        chosen_model=text_of(chosen, "policy"),
        rejected_model=text_of(rejected, "policy"),
        annotator_id=text_of(row, "worker"),
        prompt_id=text_of(info, "id"),
        source="openai_summarize",
    )


def openai_webgpt(row: dict[str, Any], path: Path) -> Preference | None:
    """OpenAI WebGPT: two answers with scores in [-1, 1] that sum to 0; 0 is no preference."""
    gap = float(row["score_0"]) - float(row["score_1"])
    if gap == 0:
        return None
    best = 0 if gap > 0 else 1
    return Preference(
        messages=_prompt(text_of(row["question"], "full_text")),
        chosen=text_of(row, f"answer_{best}"),
        rejected=text_of(row, f"answer_{1 - best}"),
        track="helpfulness",
        rating=rating_from(abs(gap), WEBGPT_GAPS),
        prompt_id=text_of(row["question"], "id"),
        source="openai_webgpt",
    )


def stack_exchange(row: dict[str, Any], path: Path) -> Preference | None:
    """StackExchange: the best against the worst answer of a question, by score; of equals the first."""
    scores = [answer["pm_score"] for answer in row["answers"]]
    check(not math.isnan(sum(scores)), "a score is NaN")  # which the greatest and the least may pass over
    if len(set(scores)) < 2:
        return None
    best, worst = (row["answers"][scores.index(extreme(scores))] for extreme in (max, min))
    return Preference(
        messages=_prompt(text_of(row, "question")),
        chosen=text_of(best, "text"),
        rejected=text_of(worst, "text"),
        track="helpfulness",
        rating=rating_from(max(scores) - min(scores), STACK_EXCHANGE_GAPS),
        prompt_id=str(row["qid"]),
        source="stack_exchange",
    )


def stanford_shp(row: dict[str, Any], path: Path) -> Preference:
    """Stanford SHP: a post and two comments; ``labels`` is 1 where A has the more votes."""
    label = row["labels"]
    if label not in (0, 1):
        raise ValueError(f"labels is {label!r}; it must be 0 or 1")
    best, worst = ("A", "B") if label else ("B", "A")
    return Preference(
        messages=_prompt(text_of(row, "history")),
        chosen=text_of(row, f"human_ref_{best}"),
        rejected=text_of(row, f"human_ref_{worst}"),
        track="helpfulness",
        rating=rating_from(float(row["score_ratio"]), SHP_RATIOS),
        prompt_id=text_of(row, "post_id"),
        source="stanford_shp",
    )


def synthetic_gptj(row: dict[str, Any], path: Path) -> Preference:
    """Synthetic GPT-J: ``prompt``, ``chosen`` and ``rejected`` as they are."""
    return Preference(
        messages=_prompt(text_of(row, "prompt")),
        chosen=text_of(row, "chosen"),
        rejected=text_of(row, "rejected"),
        track="helpfulness",
        source="synthetic_gptj",
    )


def ultrafeedback(row: dict[str, Any], path: Path) -> Preference | None:
    """UltraFeedback, binarized: two dialogues that differ in the last answer, with a score each."""
    chosen, rejected = (to_messages(row[key]) for key in ("chosen", "rejected"))
    last = {message.role for message in (*chosen[-1:], *rejected[-1:])}
    if chosen[:-1] != rejected[:-1] or last != {"assistant"}:
        raise ValueError("the dialogues do not differ in one last answer of the assistant alone")
    gap = float(row["score_chosen"]) - float(row["score_rejected"])
    if gap < 0:
        raise ValueError(f"the rejected answer has the higher score, by {-gap:g}")
    if gap == 0:
        return None
    return Preference(
        messages=tuple(chosen[:-1]),
        chosen=chosen[-1].content,
        rejected=rejected[-1].content,
        track="helpfulness",
        rating=rating_from(gap, ULTRAFEEDBACK_GAPS),
        prompt_id=text_of(row, "prompt_id"),
        source="ultrafeedback",
    )


def rating_from(gap: float, least: Sequence[float]) -> str:
    """The best rating whose least gap is reached, else "unsure".

    Raises:
      ValueError: the gap is NaN.
    """
    check(not math.isnan(gap), "a score is NaN")
    reached = (rating for rating, bound in zip(RATINGS, least, strict=False) if gap >= bound)
    return next(reached, RATINGS[-1])


PUBLIC_SETS = {
    "anthropic_hh": PublicSet(("chosen", "rejected"), anthropic_hh),
    "openai_summarize": PublicSet(("info", "summaries", "choice", "worker"), openai_summarize),
    "openai_webgpt": PublicSet(("question", "answer_0", "score_0", "answer_1", "score_1"), openai_webgpt),
    "stack_exchange": PublicSet(("qid", "question", "answers"), stack_exchange),
    "stanford_shp": PublicSet(
        ("post_id", "history", "human_ref_A", "human_ref_B", "labels", "score_ratio"), stanford_shp
    ),
    "synthetic_gptj": PublicSet(("prompt", "chosen", "rejected"), synthetic_gptj),
    "ultrafeedback": PublicSet(
        ("chosen", "rejected", "score_chosen", "score_rejected", "prompt_id"), ultrafeedback
    ),
}


def _hh_track(path: Path) -> str:
    for start, track in (("helpful", "helpfulness"), ("harmless", "safety")):
        if path.resolve().parent.name.startswith(start):
            return track
    raise DataError(f"{path}: its folder must be called helpful-... or harmless-..., as in the published set")


def _prompt(text: str) -> tuple[Message, ...]:
    return tuple(to_messages([{"role": "user", "content": text}]))
