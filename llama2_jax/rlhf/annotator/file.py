"""Annotation by people: a sheet (CSV) of blind pairs to fill in, and its reading.

Each row has a dialogue and two answers, a and b, in random order; no model is named. People fill in
preferred (a or b), rating, on the safety track unsafe_a and unsafe_b (yes or no), and annotator_id.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llama2_jax.data.preferences import RATINGS
from llama2_jax.data.sources import DataError
from llama2_jax.files import written_whole
from llama2_jax.rlhf.annotator.comparison import Comparison, Judgement

SHOWN = ("comparison_id", "track", "dialogue", "a", "b")
FILLED_IN = ("preferred", "rating", "unsafe_a", "unsafe_b", "annotator_id")
ANSWERS = {
    "preferred": {"a": True, "b": False},
    "unsafe_a": {"yes": True, "no": False},
    "unsafe_b": {"yes": True, "no": False},
}


def write_sheet(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write the sheet; it appears when it is complete.

    Raises:
      DataError: there is a sheet already, which somebody may have filled in.
    """
    target = Path(path)
    if target.exists():
        raise DataError(f"{target} exists and may have been filled in; move it away first")
    with written_whole(target) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        sheet = csv.DictWriter(file, (*SHOWN, *FILLED_IN), restval="")
        sheet.writeheader()
        sheet.writerows(_row(comparison) for comparison in comparisons)


def read_sheet(path: str | Path, comparisons: Sequence[Comparison]) -> list[Judgement]:
    """The judgements of a filled sheet, in the order of ``comparisons``.

    Raises:
      DataError: rows that are missing, unknown, twice or changed, or fields without a valid answer
        (file, row, field, and what may stand there).
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, restval=""))
    known = {comparison.comparison_id: comparison for comparison in comparisons}
    _check_rows(path, rows, known)
    by_id = {row["comparison_id"]: row for row in rows}
    return [_parse(path, by_id[comparison.comparison_id], comparison) for comparison in comparisons]


def _row(comparison: Comparison) -> dict[str, str]:
    dialogue = "\n".join(f"{message.role}: {message.content}" for message in comparison.prompt.messages)
    shown = (comparison.comparison_id, comparison.track, dialogue, comparison.first, comparison.second)
    return dict(zip(SHOWN, shown, strict=True))


def _check_rows(path: str | Path, rows: list[dict[str, str]], known: dict[str, Comparison]) -> None:
    lacking = [column for column in (*SHOWN, *FILLED_IN) if not rows or column not in rows[0]]
    if lacking:
        raise DataError(f"{path} has no column {', '.join(lacking)}, or no rows; write the sheet again")
    counts = Counter(row["comparison_id"] for row in rows)
    found = {
        "unknown": [one for one in counts if one not in known],
        "twice": sorted(one for one, count in counts.items() if count > 1),
        "missing": [one for one in known if one not in counts],
        "changed": [row["comparison_id"] for row in rows if not _same(row, known.get(row["comparison_id"]))],
    }
    wrong = [
        f"{len(several)} {fault} ({', '.join(several[:5])})" for fault, several in found.items() if several
    ]
    if wrong:
        raise DataError(
            f"{path}: comparison(s) {'; '.join(wrong)}; the sheet must have each of the {len(known)} pairs "
            "once, with its texts as they were written"
        )


def _same(row: dict[str, str], comparison: Comparison | None) -> bool:
    """Whether the texts are those that were shown; spreadsheets may change line ends."""
    expected = _row(comparison) if comparison else {}
    return all(row[key].split() == text.split() for key, text in expected.items())


def _parse(path: str | Path, row: dict[str, str], comparison: Comparison) -> Judgement:
    def answer(column: str) -> bool:
        value = row[column].strip().lower()
        _require_answer(path, row, column, value, ANSWERS[column])
        return ANSWERS[column][value]

    rating, annotator = row["rating"].strip(), row["annotator_id"].strip()
    _require_answer(path, row, "rating", rating, RATINGS)
    if not annotator:
        raise DataError(f"{path}: comparison {row['comparison_id']}: annotator_id is empty; say who compared")
    is_safety = comparison.track == "safety"
    unsafe = (answer("unsafe_a"), answer("unsafe_b")) if is_safety else None
    return Judgement(answer("preferred"), rating, unsafe, annotator)


def _require_answer(
    path: str | Path, row: dict[str, str], column: str, value: str, choices: Sequence[str] | dict[str, bool]
) -> None:
    if value not in choices:
        raise DataError(
            f"{path}: comparison {row['comparison_id']}: {column} is {value!r}; it must be one of "
            f"{', '.join(choices)}"
        )
