"""Records of files of any kind: JSONL (plain, .gz or .zst), JSON, Parquet, text, ArrayRecord.

Every mistake in a file is a ``DataError`` that names file, line and reason, or, with
``on_bad_line="skip"``, is counted in ``BadLines``; nothing is dropped silently.
"""

import codecs
import glob
import gzip
import importlib
import io
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

from llama2_jax.config import UserError, require_choice

OnBadLine = Literal["error", "skip"]
Paths = str | Path | Iterable[str | Path]
T = TypeVar("T")

JSON_LINES = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst")  # .json.gz is the name of C4's and Dolma's

RECORDS_PER_READ = 1024  # of an ArrayRecord file

log = logging.getLogger(__name__)

# What the readers raise on a file that is damaged or cannot be read: gzip, pyarrow, ArrayRecord.
_DAMAGE = (EOFError, OSError, zlib.error, RuntimeError, ValueError, KeyError, TypeError)


class DataError(UserError, ValueError):
    """Data that cannot be used; the message names the file, the line and the reason."""


@dataclass
class BadLines:
    """Count of skipped records, with the reasons of the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    max_examples: int = 10

    def add(self, reason: str) -> None:
        """Count one record."""
        self.count += 1
        if len(self.examples) < self.max_examples:
            self.examples.append(reason)

    def __str__(self) -> str:
        return "\n".join([f"{self.count} bad record(s) skipped", *self.examples])


@dataclass(frozen=True)
class Record:
    """Where a record stands, and how to get its row of named fields (may raise)."""

    where: str
    load: Callable[[], dict[str, Any]]
    is_ended: bool = True  # False: a line without a line end

    def parsed(self, parse: Callable[[dict[str, Any]], T]) -> T:
        """What ``parse`` makes of the row.

        Raises:
          DataError: it cannot be loaded or parsed (place, reason).
        """
        try:
            return parse(self.load())
        except (ValueError, KeyError, RecursionError) as error:  # Unicode and JSON errors are ValueErrors
            raise DataError(f"{self.where}: {_reason(error)}") from error


def split_paths(text: str) -> list[str]:
    """The paths of a config field, which commas separate; none if it is empty."""
    return [path.strip() for path in text.split(",")] if text.strip() else []


def expand_paths(paths: Paths) -> list[Path]:
    """Files behind paths and glob patterns: patterns in sorted order, the rest as given.

    A file that several of them match is listed once, where it is met first.

    Raises:
      DataError: a path or pattern that matches no file.
    """
    items = [paths] if isinstance(paths, str | Path) else list(paths)
    files: dict[Path, Path] = {}  # by the resolved path
    for item in items:
        found = [str(item)] if Path(item).is_file() else sorted(glob.glob(str(item), recursive=True))
        found = [name for name in found if Path(name).is_file()]
        if not found:
            raise DataError(
                f"no file matches {item}; check the path (folders need a pattern such as {item}/*.jsonl)"
            )
        for path in map(Path, found):
            if path.resolve() in files:
                log.warning("%s was given before, as %s; it is read once", path, files[path.resolve()])
            files.setdefault(path.resolve(), path)
    if not files:
        raise DataError("no input files were given")
    return list(files.values())


def text_of(row: dict[str, Any], key: str) -> str:
    """``row[key]``.

    Raises:
      KeyError: it is not there.
      ValueError: it is not text that UTF-8 can express.
    """
    text = row[key]
    check(isinstance(text, str), f"{key!r} is {type(text).__name__}, not text")
    check_characters(text)
    return text


def check_characters(text: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no tokenizer can read. Raises ``ValueError``."""
    text.encode("utf-8")


def check(condition: object, reason: str) -> None:
    """Refuse a row.

    Raises:
      ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError(reason)


def check_keys(row: Iterable[str], known: Sequence[str], *, hint: str = "") -> None:
    """Refuse a row with a key that is none of those known.

    Args:
      hint: added to the message.

    Raises:
      ValueError: with what is unknown and what is known.
    """
    unknown = sorted(set(row) - set(known))
    check(not unknown, f"unknown key(s) {', '.join(unknown)}; known: {', '.join(known)}{hint}")


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_records(
    paths: Paths,
    parse: Callable[[dict[str, Any]], T],
    *,
    keys: tuple[str, ...],
    on_bad_line: OnBadLine,
    bad_lines: BadLines | None = None,
) -> Iterator[T]:
    """Parse every record of every file, with one rule for bad ones.

    Args:
      keys: what ``parse`` looks at; a Parquet file must have the first as a column.
    """
    require_choice("on_bad_line", on_bad_line, ("error", "skip"))
    bad_lines = BadLines() if bad_lines is None else bad_lines
    files = expand_paths(paths)
    good = 0
    for record in (record for file in files for record in _intact(file, _open(file, keys))):
        try:
            value = record.parsed(parse)
        except DataError as error:
            if on_bad_line == "error":
                raise DataError(
                    f"{error}; fix it, or set on_bad_line=skip to count and pass over it"
                ) from error
            bad_lines.add(str(error))
            continue
        good += 1
        yield value
    if bad_lines.count:
        log.warning("%s", bad_lines)
    if not good:
        raise DataError(
            f"{', '.join(map(str, files))}: no usable record ({bad_lines.count} bad); the corpus is empty"
        )


def json_lines(file: Path) -> Iterator[Record]:
    """The lines of a JSONL file, whatever its name but for .gz or .zst at its end; no blank ones.

    Raises:
      DataError: the file cannot be read, or not any further.
    """
    return _intact(file, _json_lines(file))


def _intact(file: Path, records: Iterator[Record]) -> Iterator[Record]:
    """The records of one file; where a damaged one cannot be read any further, DataError says so."""
    last = ""
    try:
        for record in records:
            yield record
            last = f" after {record.where.removeprefix(f'{file}, ')}"
    except DataError:
        raise
    except _DAMAGE as error:
        fix = "it is damaged or incomplete, copy or download it again"
        if "too much memory for decoding" in str(error):
            fix = "its window is larger than 128 MB: compress it again, without --long or --ultra"
        if isinstance(error, PermissionError):
            fix = "take the right to read it, or name a copy"
        raise DataError(f"{file} cannot be read{last}: {_reason(error)}; {fix}") from error


def _open(file: Path, keys: tuple[str, ...]) -> Iterator[Record]:
    """Records of one file, by its suffix; a text as a whole is the field ``keys[0]``."""
    name = file.name
    if name.endswith(JSON_LINES):
        yield from _json_lines(file)
    elif name.endswith(".json"):
        yield from _json_file(file)
    elif name.endswith(".parquet"):
        yield from _parquet_rows(file, keys)
    elif name.endswith((".txt", ".md")):
        yield Record(str(file), partial(_text_row, _without_bom(file.read_bytes()), keys[0]))
    elif name.endswith(".array_record"):
        yield from _array_records(file, keys[0])
    else:
        raise DataError(
            f"{file}: unknown kind of file; known: {', '.join(JSON_LINES)}, .json, .parquet, .txt, .md, "
            ".array_record"
        )


def _json_lines(file: Path) -> Iterator[Record]:
    with _open_bytes(file) as lines:
        for number, line in enumerate(lines, start=1):
            content = _without_bom(line) if number == 1 else line
            if content.strip():
                is_ended = content.endswith(b"\n")
                yield Record(f"{file}, line {number}", partial(_json_row, content), is_ended)


def _json_file(file: Path) -> Iterator[Record]:
    """The objects of one list, read as a whole; or lines, which some projects give this ending too."""
    with file.open("rb") as content:
        is_list = _without_bom(content.read(1024)).lstrip().startswith(b"[")
    if not is_list:
        yield from _json_lines(file)
        return
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    for number, row in enumerate(rows, start=1):
        yield Record(f"{file}, item {number}", partial(_object, row))


def _open_bytes(file: Path) -> BinaryIO:
    """What a file holds, decompressed."""
    if file.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.name.endswith(".zst"):
        return io.BufferedReader(_pyarrow(file, "").input_stream(str(file), compression="zstd"))
    return file.open("rb")


def _pyarrow(file: Path, module: str) -> Any:
    """A module of pyarrow, by its name after the dot."""
    try:
        return importlib.import_module(f"pyarrow{module}")
    except ImportError as error:
        raise DataError(
            f"{file} needs pyarrow; install it with: pip install 'llama2_jax[parquet]'"
        ) from error


def _json_row(line: bytes) -> dict[str, Any]:
    return _object(json.loads(line.decode("utf-8")))


def _object(row: Any) -> dict[str, Any]:
    check(isinstance(row, dict), f"the row is {type(row).__name__}, not an object")
    return row


def _parquet_rows(file: Path, keys: tuple[str, ...]) -> Iterator[Record]:
    table = _pyarrow(file, ".parquet").ParquetFile(file)
    names = table.schema_arrow.names
    if keys[0] not in names:
        raise DataError(f"{file}: no column {keys[0]!r}; it has {', '.join(names)}")
    number = 0
    columns = [key for key in keys if key in names]
    for batch in table.iter_batches(columns=columns, batch_size=1024):
        for values in zip(*(batch.column(name) for name in columns), strict=True):
            number += 1
            yield Record(f"{file}, row {number}", partial(_parquet_row, columns, values))


def _parquet_row(columns: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    return {name: value.as_py() for name, value in zip(columns, values, strict=True)}


def _array_records(file: Path, key: str) -> Iterator[Record]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(file))
    try:
        total = reader.num_records()
        for first in range(0, total, RECORDS_PER_READ):  # each read unpacks the groups that it touches anew
            for number, content in enumerate(reader.read(first, min(first + RECORDS_PER_READ, total)), first):
                yield Record(f"{file}, record {number}", partial(_text_row, content, key))
    finally:
        reader.close()


def _text_row(content: bytes, key: str) -> dict[str, Any]:
    return {key: content.decode("utf-8")}


def _without_bom(content: bytes) -> bytes:
    """The start of a file without the mark that some editors put before UTF-8 text."""
    return content.removeprefix(codecs.BOM_UTF8)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"key {error} is missing"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}: {error.reason}"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"character {error.start} is a lone surrogate ({error.object[error.start]!a}), which is no text"
        )
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"malformed JSON at column {error.colno}: {error.msg}"
    return str(error)
