"""Identity terms from a file: those of HolisticBias, or lists of your own (Llama 2, Table 9b; SPRE-3).

The file is {axis: [term, ...]}, or in the form of HolisticBias: {axis: {bucket: [term, ...]}}, where a term
is a text or an object with the key "descriptor", and commas may trail. HolisticBias is not part of this
repository, being CC-BY-SA; look for holistic_bias/dataset/v1.1/descriptors.json in
facebookresearch/ResponsibleNLP.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llama2_jax.analysis.demographics import WORD, Families, fold
from llama2_jax.data.records import DataError, check

PAPER_AXES = {
    "gender_and_sex": "Gender and Sex",
    "sexual_orientation": "Sexual Orientation",
    "nationality": "Nationality",
    "race_ethnicity": "Race and Ethnicity",
    "religion": "Religion",
}
AMBIGUOUS = frozenset({"straight", "white", "black"})  # mostly not said of people: not among the top terms
TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])')  # or a text, which is kept


def read_identity_axes(path: str | Path) -> dict[str, frozenset[str]]:
    """The terms of each axis: the paper's five of a file that has them all, else every axis of the file.

    Terms that stand in both are left to Sexual Orientation and taken from Gender and Sex.

    Raises:
      DataError: the file is not JSON of a form above (place, reason).
    """
    axes = _read(Path(path))
    if set(PAPER_AXES) <= set(axes):
        axes = {PAPER_AXES[key]: axes[key] for key in PAPER_AXES}
        axes["Gender and Sex"] -= axes["Sexual Orientation"]
    return axes


def identity_families(axes: Mapping[str, frozenset[str]]) -> Families:
    """A family per axis, of which every term is a group."""
    return {name: {term: frozenset({term}) for term in terms} for name, terms in axes.items()}


def _read(path: Path) -> dict[str, frozenset[str]]:
    try:
        content = json.loads(TRAILING_COMMA.sub(r"\1", path.read_text(encoding="utf-8-sig")))
        check(isinstance(content, dict) and content, 'it is no object {"axis": [terms]}')
        return {name: frozenset(_terms(name, value)) for name, value in content.items()}
    except ValueError as error:  # Unicode and JSON errors are ValueErrors
        raise DataError(f"{path}: {error}") from error


def _terms(where: str, value: Any) -> Iterator[str]:
    """The folded terms of an axis or a bucket."""
    if isinstance(value, dict) and "descriptor" not in value:
        for name, bucket in value.items():
            yield from _terms(f"{where}, {name}", bucket)
        return
    check(isinstance(value, list) and value, f"{where} is not a list of terms")
    for item in value:
        term: Any = item.get("descriptor") if isinstance(item, dict) else item
        check(isinstance(term, str) and WORD.search(term), f"{where}: {item!r} is no term")
        yield fold(" ".join(term.split()))
