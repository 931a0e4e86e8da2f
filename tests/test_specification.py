"""docs/specification.md explains every code that the repository uses, and no other."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPECIFICATION = ROOT / "docs" / "specification.md"
FOLDERS = ("llama2_jax", "experiments", "configs", "tools", "benchmarks", "docs", "tests")
CODE = r"\b(?P<family>[A-Z]{2,5}-|D)(?P<first>\d+)\b"
RANGE = re.compile(CODE + r"(?:(?:\.\.|\s+to\s+)(?P=family)?(?P<last>\d+)\b)?")
NO_CODES = {"BLEU-4", "UTF-8", "GPT-2", "GPT-3", "GPT-4", "AVX-512"}


def codes(text: str) -> Iterator[str]:
    """Every code of a text; a range stands for all of its codes."""
    for found in RANGE.finditer(text):
        first, last = int(found["first"]), int(found["last"] or found["first"])
        yield from (f"{found['family']}{number}" for number in range(first, last + 1))


def test_codes_are_found_alone_and_in_ranges():
    assert list(codes("AB-1, AB-3..5; D7 to D9")) == ["AB-1", "AB-3", "AB-4", "AB-5", "D7", "D8", "D9"]


def test_every_code_has_one_row_and_every_row_a_use():
    paths = [
        path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")
    ]
    others = {*paths, ROOT / "README.md"} - {SPECIFICATION, Path(__file__)}
    used = {code: path for path in others for code in codes(path.read_text(encoding="utf-8"))}
    rows = re.findall(rf"^\| ({CODE}) \|", SPECIFICATION.read_text(encoding="utf-8"), re.MULTILINE)
    explained = [code for code, *_ in rows]
    unexplained = {code: path for code, path in used.items() if code not in {*explained, *NO_CODES}}
    assert not unexplained, "give it a row, or add it to NO_CODES if it is none"
    assert sorted(set(explained) - set(used)) == []
    assert len(explained) == len(set(explained))


def test_files_that_it_names_exist():
    named = re.findall(r"`([\w/]+\.py)`", SPECIFICATION.read_text(encoding="utf-8"))
    assert len(named) > 100
    missing = [name for name in named if not any((ROOT / top / name).is_file() for top in ("", "llama2_jax"))]
    assert missing == []


def numbers(text: str) -> set[int]:
    """Those of a text such as "1, 3 to 5 and 7"."""
    found = re.findall(r"(\d+)(?: to (\d+))?", text)
    return {number for first, last in found for number in range(int(first), int(last or first) + 1)}


def test_the_map_has_every_section():
    text = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8").split("## Every figure and table")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    named = {
        section
        for cell in cells
        for section in re.findall(r"\b(?:A\.)?\d(?:\.\d)*\b", re.split("Table|Figure|eq", cell)[0])
    }
    # the headings of the paper that have text of their own
    main = "1 2.1 2.2 2.2.1 2.3 3.1 3.2.1 3.2.2 3.2.3 3.3 3.4.1 3.4.2 4.1 4.2.1 4.2.2 4.2.3 4.2.4 4.3 4.4 5.1"
    main += " 5.2 5.3 6 7 A.1 A.6 A.7"
    parts = {2: 2, 3: 7, 4: 8, 5: 4}
    appendix = {f"A.{part}.{number}" for part, last in parts.items() for number in range(1, last + 1)}
    assert named == {*main.split(), *appendix}


def test_the_map_has_every_figure_and_table_and_its_programs_exist():
    text = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8").split("## Every figure and table")[1]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    (others,) = re.findall(r"Nothing is computed in\nTable (.*?)\.\n", text, re.DOTALL)
    figures, tables = (set.union(*(numbers(row[column]) for row in rows)) for column in (1, 2))
    assert figures == set(range(1, 34))
    assert tables | numbers(others) == set(range(1, 53))
    assert not tables & numbers(others)
    for name in re.findall(r"`([\w.]+)`", " ".join(row[0] for row in rows)):
        path = name.replace(".", "/") if "." in name else f"experiments/{name}"
        assert (ROOT / f"{path}.py").is_file(), name


def test_the_layers_of_the_design_are_those_of_the_contract():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    *layers, bottom, files = project["tool"]["importlinter"]["contracts"][0]["layers"]
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| \d (\|.*)$", text, re.MULTILINE)]
    assert table == [set(layer.split(" | ")) for layer in (*layers, f"{bottom} | {files}")]
