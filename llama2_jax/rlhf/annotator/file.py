"""Annotation by people: a sheet (CSV) of blind pairs to fill in, and its reading.

Each row has a dialogue and two answers, a and b, in random order; no model is named. People fill in
preferred (a or b), rating, on the safety track unsafe_a and unsafe_b (yes or no), and annotator_id.
"""

from collections.abc import Sequence
from pathlib import Path

from llama2_jax.data import sheets
from llama2_jax.data.preferences import RATINGS
from llama2_jax.data.records import DataError
from llama2_jax.rlhf.annotator.comparison import Comparison, Judgement

FILLED_IN = ("preferred", "rating", "unsafe_a", "unsafe_b", "annotator_id")
PREFERRED = {"a": True, "b": False}
UNSAFE = {"yes": True, "no": False}


def write_sheet(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write the sheet; it appears when it is complete.

    Raises:
      DataError: there is a sheet already, which somebody may have filled in.
    """
    sheets.write_sheet(path, [_shown(comparison) for comparison in comparisons], FILLED_IN)


def read_sheet(path: str | Path, comparisons: Sequence[Comparison]) -> list[Judgement]:
    """The judgements of a filled sheet, in the order of ``comparisons``.

    Raises:
      DataError: rows that are missing, unknown, twice or changed, or fields without a valid answer
        (file, row, field, and what may stand there).
    """
    rows = sheets.read_sheet(path, [_shown(comparison) for comparison in comparisons], FILLED_IN)
    preferred = sheets.read_column(path, rows, "preferred", PREFERRED)
    ratings = sheets.read_column(path, rows, "rating", {rating: rating for rating in RATINGS})
    on_safety = [row for row in rows if row["track"] == "safety"]
    labels = [sheets.read_column(path, on_safety, f"unsafe_{side}", UNSAFE) for side in "ab"]
    unsafe = dict(zip((row["comparison_id"] for row in on_safety), zip(*labels, strict=True), strict=True))
    annotators = [row["annotator_id"].strip() for row in rows]
    if "" in annotators:
        unnamed = rows[annotators.index("")]["comparison_id"]
        raise DataError(f"{path}: comparison {unnamed}: annotator_id is empty; say who compared")
    return [
        Judgement(first, rating, unsafe.get(row["comparison_id"]), annotator)
        for row, first, rating, annotator in zip(rows, preferred, ratings, annotators, strict=True)
    ]


def _shown(comparison: Comparison) -> dict[str, str]:
    return {
        "comparison_id": comparison.comparison_id,
        "track": comparison.track,
        "dialogue": sheets.dialogue_cell(comparison.prompt.messages),
        "a": comparison.first,
        "b": comparison.second,
    }
