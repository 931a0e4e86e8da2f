"""Sheets for people (CSV): columns that they are shown, and empty ones that they fill in.

The first column that is shown names the row. A text that a spreadsheet would take for a formula, such
as an answer that begins with a list ("- "), gets an apostrophe in front.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from llama2_jax.data.chat import Message
from llama2_jax.data.sources import DataError
from llama2_jax.files import written_whole

FORMULA = ("=", "+", "-", "@")
NAMED = 5  # rows that an error names

T = TypeVar("T")
Row = dict[str, str]


def dialogue_cell(messages: Iterable[Message]) -> str:
    """A dialogue as people read it."""
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def write_sheet(path: str | Path, shown: Sequence[Mapping[str, str]], filled_in: Sequence[str]) -> None:
    """Write the sheet; it appears when it is complete.

    Raises:
      DataError: there is a sheet already, which somebody may have filled in.
    """
    target = Path(path)
    if target.exists():
        raise DataError(f"{target} exists and may have been filled in; move it away first")
    with written_whole(target) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        sheet = csv.DictWriter(file, (*shown[0], *filled_in), restval="")
        sheet.writeheader()
        sheet.writerows({key: _cell(text) for key, text in row.items()} for row in shown)


def read_sheet(path: str | Path, shown: Sequence[Mapping[str, str]], filled_in: Sequence[str]) -> list[Row]:
    """The rows of a filled sheet, in the order of ``shown``.

    Raises:
      DataError: no such columns, or rows that are missing, unknown, twice or changed.
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, restval=""))
    lacking = [column for column in (*shown[0], *filled_in) if not rows or column not in rows[0]]
    if lacking:
        raise DataError(f"{path} has no column {', '.join(lacking)}, or no rows; write the sheet again")
    name = next(iter(shown[0]))
    known = {row[name]: row for row in shown}
    _check_rows(path, rows, known, name)
    by_name = {row[name]: row for row in rows}
    return [by_name[one] for one in known]


def read_column(path: str | Path, rows: Sequence[Row], column: str, choices: Mapping[str, T]) -> list[T]:
    """What the texts of a column stand for; capitals and space around them do not matter.

    Raises:
      DataError: texts that are not one of ``choices``: how many, in which rows, and what may stand there.
    """
    found = [row[column].strip().lower() for row in rows]
    wrong = [index for index, text in enumerate(found) if text not in choices]
    if wrong:
        name = next(iter(rows[0]))
        places = ", ".join(f"{name} {rows[index][name]} has {found[index]!r}" for index in wrong[:NAMED])
        raise DataError(
            f"{path}: {len(wrong)} of {len(rows)} rows have no valid {column}: {places}; it must be one of "
            f"{', '.join(choices)}"
        )
    return [choices[text] for text in found]


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _check_rows(
    path: str | Path, rows: Sequence[Row], known: Mapping[str, Mapping[str, str]], name: str
) -> None:
    counts = Counter(row[name] for row in rows)
    found = {
        "unknown": [one for one in counts if one not in known],
        "twice": sorted(one for one, count in counts.items() if count > 1),
        "missing": [one for one in known if one not in counts],
        "changed": [row[name] for row in rows if not _same(row, known.get(row[name], {}))],
    }
    wrong = [f"{len(those)} {fault} ({', '.join(those[:NAMED])})" for fault, those in found.items() if those]
    if wrong:
        raise DataError(
            f"{path} has {len(rows)} rows: by {name} {'; '.join(wrong)}; it must have each of the "
            f"{len(known)} rows once, with its texts as they were written"
        )


def _same(row: Row, expected: Mapping[str, str]) -> bool:
    """Whether the texts are those that were shown; spreadsheets may change line ends."""
    return all(row[key].split() == _cell(text).split() for key, text in expected.items())
