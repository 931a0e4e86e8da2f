"""Sheets for people (CSV): columns that they are shown, and empty ones that they fill in.

The first column that is shown names the row. A text that a spreadsheet would take for a formula, such as an
answer that begins with a list ("- "), or for a date or another number ("1/2", "007"), gets an apostrophe in
front. People may share a sheet: each gets some of its rows, with the first line, and ``sheet.csv`` comes back
as ``sheet.part1.csv``, ``sheet.part2.csv`` and so on, which are read in its place.
"""

import csv
import glob
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from llama2_jax.data.chat import Message
from llama2_jax.data.records import DataError
from llama2_jax.data.tokenizer import shared_prefix
from llama2_jax.files import written_whole

FORMULA = ("=", "+", "-", "@")
NUMBER_THAT_STAYS = re.compile(r"0|[1-9]\d{0,14}")
TAKEN_FOR_ANOTHER = re.compile(  # numbers, dates and truth values, one line
    r"[$€£(]?[.\d].{0,30}|true|false|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[\W_]{0,2}\d.{0,20}",
    re.IGNORECASE,
)
NAMED = 5  # rows that an error names
SHOWN = 80  # characters of a text in an error
DELIMITERS = (",", ";", "\t")

T = TypeVar("T")
Row = dict[str, str]


def dialogue_cell(messages: Iterable[Message]) -> str:
    """A dialogue as people read it."""
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def is_there(path: str | Path) -> bool:
    """Whether the sheet, or a part of it, exists."""
    return any(part.exists() for part in _parts(Path(path)))


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
    """The rows of a filled sheet, in the order of ``shown``; ";" or tabs may stand between its cells.

    Raises:
      DataError: no sheet, no CSV in UTF-8, no such columns, or rows that are missing, unknown, twice or
      changed.
    """
    if not is_there(path):
        raise DataError(f"{path} does not exist, nor any part of it; put the filled sheet there")
    columns = (*shown[0], *filled_in)
    name = columns[0]
    rows = [row for part in _parts(Path(path)) for row in _csv_rows(part, columns)]
    if not rows:
        raise DataError(f"{path} has no rows; put back the {len(shown)} that were written")
    rows = [row | {name: _name(row[name])} for row in rows]
    known = {_name(row[name]): row for row in shown}
    _check_rows(path, rows, known, name)
    _check_cells(path, rows, known, name)
    by_name = {row[name]: row for row in rows}
    return [by_name[one] for one in known]


def read_column(path: str | Path, rows: Sequence[Row], column: str, choices: Mapping[str, T]) -> list[T]:
    """What the texts of a column stand for; capitals, space around them and "_" for space do not matter.

    Raises:
      DataError: texts that are not one of ``choices``: how many, in which rows, and what may stand there.
    """
    found = ["_".join(row[column].lower().split()) for row in rows]
    wrong = [index for index, text in enumerate(found) if text not in choices]
    if wrong:
        name = next(iter(rows[0]))
        places = ", ".join(f"{name} {rows[index][name]} has {found[index]!a}" for index in wrong[:NAMED])
        raise DataError(
            f"{path}: {len(wrong)} of {len(rows)} rows have no valid {column}: {places}; it must be one of "
            f"{', '.join(choices)}"
        )
    return [choices[text] for text in found]


def _cell(text: str) -> str:
    turned = TAKEN_FOR_ANOTHER.fullmatch(text) and not NUMBER_THAT_STAYS.fullmatch(text)
    return f"'{text}" if turned or text.startswith(FORMULA) else text


def _name(cell: str) -> str:
    """A row's name, with or without the apostrophe of ``_cell``."""
    return cell.removeprefix("'").strip()


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.part*.[cC][sS][vV]")) or [path]


def _csv_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows as a spreadsheet saved them, which takes the delimiter from the country it is set to.

    Rows without any text, which spreadsheets leave where cells were touched, are left out.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        delimiter = max(DELIMITERS, key=(text.splitlines() or [""])[0].count)
        sheet = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
        rows = [row for row in sheet if any(isinstance(text, str) and text.strip() for text in row.values())]
        names = list(sheet.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not CSV in UTF-8 ({error}); open it in the program that saved it and save it as "
            "'CSV UTF-8'"
        ) from error
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise DataError(f"{path} has several columns {', '.join(twice)}; leave the one that counts")
    lacking = [column for column in columns if column not in names]
    if lacking:
        raise DataError(
            f"{path} has no column {', '.join(lacking)}; put its first line back: {','.join(columns)}"
        )
    return rows


def _check_rows(path: str | Path, rows: Sequence[Row], known: Collection[str], name: str) -> None:
    counts = Counter(row[name] for row in rows)
    found = {
        "unknown": [one for one in counts if one not in known],
        "twice": sorted(one for one, count in counts.items() if count > 1),
        "missing": [one for one in known if one not in counts],
    }
    wrong = [f"{len(those)} {fault} ({', '.join(those[:NAMED])})" for fault, those in found.items() if those]
    if wrong:
        raise DataError(
            f"{path} has {len(rows)} rows: by {name} {'; '.join(wrong)}; it must have each of the "
            f"{len(known)} rows once"
        )


def _check_cells(
    path: str | Path, rows: Sequence[Row], known: Mapping[str, Mapping[str, str]], name: str
) -> None:
    """Refuse texts that are not those that were shown; spreadsheets make dates and numbers of some."""
    changed = [
        f"{column} of {name} {row[name]} is {_from_difference(row[column], text)}, it was "
        f"{_from_difference(text, row[column])}"
        for row in rows
        for column, text in known[row[name]].items()
        if _words(row[column]) != _words(text)
    ]
    if changed:
        raise DataError(
            f"{path}: {len(changed)} changed: {'; '.join(changed[:NAMED])}; format these cells as text, then "
            "write back what it was"
        )


def _words(cell: str) -> list[str]:
    """What must not change: spreadsheets may change line ends, and take away the apostrophe of ``_cell``."""
    return cell.removeprefix("'").split()


def _from_difference(text: str, other: str) -> str:
    """A text as an error shows it: if it is long, from a little before it differs from the other one."""
    begin = max(0, shared_prefix(text, other) - SHOWN // 2)
    shown = text[begin : begin + SHOWN]
    return ("..." if begin else "") + repr(shown) + ("..." if begin + SHOWN < len(text) else "")
