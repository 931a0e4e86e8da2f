"""Word problems with one number as the answer: ASDiv, SVAMP, MAWPS (Llama 2, section 5.1, Table 15; DISC-5).

An answer is right by the rule of Toolformer (Schick et al., 2023), whose numbers the table compares with:
its first number is the answer, or, where it writes an equation, the first number after "=".
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.data.jsonl import read_json_file, read_rows
from llama2_jax.data.records import DataError, check, is_number, text_of

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "OPT 66B": {"asdiv": 6.0, "svamp": 4.9, "mawps": 7.9},
    "GPT-J": {"asdiv": 7.5, "svamp": 5.2, "mawps": 9.9},
    "GPT-J + CC": {"asdiv": 9.6, "svamp": 5.0, "mawps": 9.3},
    "GPT-3": {"asdiv": 14.0, "svamp": 10.0, "mawps": 19.8},
    "Toolformer": {"asdiv": 40.4, "svamp": 29.4, "mawps": 44.0},
    "Llama 2-Chat": {"asdiv": 67.1, "svamp": 69.2, "mawps": 82.4},
}
"""Table 15: percent of the answers that are right, all zero-shot; of which size is not said."""

NUMBER = re.compile(
    r"(?:(?<![\w)])[-\u2212])?\$?"  # "10-5" begins with 10, and goes on with 5
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?"
)
TOLERANCE = 1e-4  # files and calculators round 1/3 to a few digits


class Problem(NamedTuple):
    """A problem and the number that answers it."""

    name: str
    question: str
    answer: float


class Problems(NamedTuple):
    """The problems of a file; left out are those whose answer is not one number."""

    used: list[Problem]
    left_out: int


def read_problems(path: Path, benchmark: str) -> Problems:
    """The problems of an official file, or of JSONL rows {"question", "answer"} ("own").

    Raises:
      DataError: another form (which entry, reason), or no problem with a number as its answer.
    """
    entries = list(READERS[benchmark](path))
    used = [Problem(name, _one_line(text), float(n)) for name, text, n in entries if n is not None]
    if not used:
        raise DataError(f"{path} has {len(entries)} problems, none of which has one number as its answer")
    return Problems(used, len(entries) - len(used))


Entry = tuple[str, str, float | None]
"""Name, question, and the answer if it is one number."""


def _asdiv(path: Path) -> Iterator[Entry]:
    """ASDiv.xml: an answer is a number before its unit, ``9 (apples)``; or a ratio, a word, several."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not XML: {error}; give the official ASDiv.xml") from error
    for number, problem in enumerate(root.iter("Problem"), start=1):
        body, question, answer = (problem.findtext(tag) for tag in ("Body", "Question", "Answer"))
        if body is None or question is None or answer is None:
            raise DataError(
                f"{path}, problem {number} lacks Body, Question or Answer; give the official file"
            )
        name = problem.get("ID") or str(number)
        yield name, f"{body} {question}", sole_number(re.sub(r"\s*\([^()]*\)\s*$", "", answer))


def _svamp(path: Path) -> Iterator[Entry]:
    """SVAMP.json: [{"ID", "Body", "Question", "Answer"}, ...]."""

    def entry(row: dict[str, Any]) -> Entry:
        return text_of(row, "ID"), f"{text_of(row, 'Body')} {text_of(row, 'Question')}", _given(row["Answer"])

    return _json_entries(path, entry)


def _mawps(path: Path) -> Iterator[Entry]:
    """A file of MAWPS: [{"iIndex", "sQuestion", "lSolutions": [number]}, ...]."""

    def entry(row: dict[str, Any]) -> Entry:
        solutions = row["lSolutions"]
        check(isinstance(solutions, list), f"lSolutions is {type(solutions).__name__}, not a list")
        answer = _given(solutions[0]) if len(solutions) == 1 else None
        return str(row["iIndex"]), text_of(row, "sQuestion"), answer

    return _json_entries(path, entry)


def _own(path: Path) -> Iterator[Entry]:
    return _entries(path, read_rows(path), lambda row: ("", text_of(row, "question"), _given(row["answer"])))


READERS: Mapping[str, Callable[[Path], Iterator[Entry]]] = {
    "asdiv": _asdiv, "svamp": _svamp, "mawps": _mawps, "own": _own,
}  # fmt: skip


def _json_entries(path: Path, entry: Callable[[dict[str, Any]], Entry]) -> Iterator[Entry]:
    rows = read_json_file(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} is {type(rows).__name__}, not a list of problems; give the official file")
    return _entries(path, rows, entry)


def _entries(path: Path, rows: Iterable[Any], entry: Callable[[dict[str, Any]], Entry]) -> Iterator[Entry]:
    for number, row in enumerate(rows, start=1):
        try:
            check(isinstance(row, dict), f"it is {type(row).__name__}, not an object")
            yield entry(row)
        except KeyError as error:
            raise DataError(f"{path}, problem {number} has no {error}; it has {', '.join(row)}") from error
        except ValueError as error:
            raise DataError(f"{path}, problem {number}: {error}") from error


def _given(answer: Any) -> float | None:
    """A number as files have it: JSON's, or as text."""
    check(is_number(answer) or isinstance(answer, str), f"the answer is {answer!r}, neither number nor text")
    return sole_number(str(answer))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def sole_number(text: str) -> float | None:
    """The number that a text is and nothing else, but for "%"; None if it is none."""
    text = text.strip().removesuffix("%").strip()
    return _as_float(text) if NUMBER.fullmatch(text) else None


def predicted(answer: str) -> float | None:
    """The number that an answer is taken for: its first, or the first after "=" if there is one."""
    first = NUMBER.search(answer.partition("=")[2]) or NUMBER.search(answer)
    return _as_float(first[0]) if first else None


def is_right(answer: str, problem: Problem) -> bool:
    """Toolformer's rule. Commas between thousands, "$" and "%" do not count; 1/4 is 0.25."""
    number = predicted(answer)
    return number is not None and abs(number - problem.answer) <= TOLERANCE


def _as_float(number: str) -> float | None:
    top, _, bottom = re.sub(r"[$,\s]", "", number.replace("\u2212", "-")).partition("/")
    return None if bottom and not float(bottom) else float(top) / float(bottom or 1)
