"""Annotation by people: a sheet (CSV) of blind pairs to fill in, and its reading.

Each row has a dialogue and two answers, a and b, in random order; no model is named. ``INSTRUCTIONS`` says
what people fill in.
"""

from collections.abc import Sequence
from pathlib import Path

from llama2_jax.data import sheets
from llama2_jax.data.preferences import RATINGS
from llama2_jax.data.records import DataError
from llama2_jax.rlhf.annotator.comparison import Comparison, Judgement

FILLED_IN = ("preferred", "rating", "unsafe_a", "unsafe_b", "annotator_id")
SKIP = "skip"
PREFERRED = {"a": True, "b": False, SKIP: None}
RATED = {**{rating: rating for rating in RATINGS}, "negligibly_better": "unsure"}  # one level, "/ unsure"
UNSAFE = {"yes": True, "no": False}
INSTRUCTIONS = f"""\
Each row has a dialogue and two answers, a and b, to its last message. Write into the columns

preferred: a or b, the answer that you prefer; you must choose, also where they are alike.
  Track helpfulness: which answer is more helpful, that is, does more fully what was asked, and truthfully?
  Track safety: which answer is safer? Of two safe ones: which is more helpful?
  {SKIP} only where a row cannot be judged at all; then leave its other columns empty.
rating: how much better it is, one of
  {", ".join(text.replace("_", " ") for text in RATED)} (the last two mean the same)
unsafe_a, unsafe_b: on the track safety only, whether the answer is unsafe: yes or no
annotator_id: who you are, in every row

Change nothing else, and save the sheet as CSV in UTF-8.
"""
"""What people are asked (PREF-2 to PREF-4)."""


def write_sheet(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write the sheet; it appears when it is complete.

    Raises:
      DataError: there is a sheet already, which somebody may have filled in.
    """
    sheets.write_sheet(path, [_shown(comparison) for comparison in comparisons], FILLED_IN)


def read_sheet(path: str | Path, comparisons: Sequence[Comparison]) -> list[Judgement | None]:
    """The judgements of a filled sheet, in the order of ``comparisons``; None for one that was skipped.

    Raises:
      DataError: rows that are missing, unknown, twice or changed, or fields without a valid answer
        (file, row, field, and what may stand there).
    """
    rows = sheets.read_sheet(path, [_shown(comparison) for comparison in comparisons], FILLED_IN)
    preferred = sheets.read_column(path, rows, "preferred", PREFERRED)
    judged = iter(_judgements(path, rows, preferred))
    return [None if first is None else next(judged) for first in preferred]


def _judgements(
    path: str | Path, rows: Sequence[sheets.Row], preferred: Sequence[bool | None]
) -> list[Judgement]:
    """Of the rows that were not skipped."""
    judged = [(row, first) for row, first in zip(rows, preferred, strict=True) if first is not None]
    rows = [row for row, _ in judged]
    ratings = sheets.read_column(path, rows, "rating", RATED)
    on_safety = [row for row in rows if row["track"] == "safety"]
    labels = [sheets.read_column(path, on_safety, f"unsafe_{side}", UNSAFE) for side in "ab"]
    unsafe = dict(zip((row["comparison_id"] for row in on_safety), zip(*labels, strict=True), strict=True))
    annotators = [row["annotator_id"].strip() for row in rows]
    if "" in annotators:
        unnamed = rows[annotators.index("")]["comparison_id"]
        raise DataError(f"{path}: comparison {unnamed}: annotator_id is empty; say who compared")
    return [
        Judgement(first, rating, unsafe.get(row["comparison_id"]), annotator)
        for (row, first), rating, annotator in zip(judged, ratings, annotators, strict=True)
    ]


def _shown(comparison: Comparison) -> dict[str, str]:
    return {
        "comparison_id": comparison.comparison_id,
        "track": comparison.track,
        "dialogue": sheets.dialogue_cell(comparison.prompt.messages),
        "a": comparison.first,
        "b": comparison.second,
    }
