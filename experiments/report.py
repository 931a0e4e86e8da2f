"""What the reports of all stages share: the file, and pieces of Markdown."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama2_jax.evals.intervals import Interval, Share, bracketed
from llama2_jax.files import write_text


def write_report_file(workdir: Path, lines: Iterable[str]) -> None:
    """Write ``report.md``, whole or not at all: other reports include it."""
    write_text(workdir / "report.md", "\n".join(lines) + "\n")


def included(report: Path, folder: Path) -> list[str]:
    """A report for one in ``folder``: no title, headings two levels lower, links to where they led."""
    own = os.path.relpath(report.parent, folder)
    _, *lines = report.read_text(encoding="utf-8").splitlines()
    lines = [re.sub(r"\]\((?!\w+:)", lambda _: f"]({own}/", line) for line in lines]  # but no https:
    return ["##" + line if line.startswith("#") else line for line in lines]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, its columns left aligned.

    Cells may hold markup; line ends in them become spaces, and a "|" is one of the text.
    """
    return [_row(header), "|---" * len(header) + "|", *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {_cell(cell)} |" if cell else " |" for cell in cells)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.splitlines()))  # those that ``quote`` escaped stay


def quote(text: str) -> str:
    """Text on one line of Markdown, its markup taken literally."""
    text = " ".join(text.split())
    for mark in "\\*_<`|":
        text = text.replace(mark, "\\" + mark)
    return text or "(nothing)"


def settings_table(settings: Mapping[str, Any]) -> list[str]:
    """The lines of a table of how something was made: texts, numbers, and lists or mappings of them."""
    return table(("setting", "value"), [(name, quote(_plain(value))) for name, value in settings.items()])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: Interval | Share) -> str:
    """``12.3 % [10.1, 14.9]``, a share in [0, 1] with its interval."""
    return bracketed(share, ".1f", scale=100, unit=" %")


def points(difference: Interval) -> str:
    """``+2.1 [-0.3, +4.5]``, a difference of shares in points of percent."""
    return bracketed(difference, "+.1f", scale=100)
