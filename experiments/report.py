"""What the reports of all stages share: the file, and pieces of Markdown."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llama2_jax.evals.intervals import Interval
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


def percent(interval: Mapping[str, float]) -> str:
    """``12.3 % [10.1, 14.9]``, of a share with its interval as it stands in a ``results.json``."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def points(difference: Interval) -> str:
    """``+2.1 [-0.3, +4.5]``, a difference of shares in points of percent."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * end for end in difference))
