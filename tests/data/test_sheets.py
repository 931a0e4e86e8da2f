import csv

import pytest

from llama2_jax.data.sheets import read_column, read_sheet, write_sheet
from llama2_jax.data.sources import DataError

SHOWN = [
    {"name": "1", "text": "- a\n- b"},
    {"name": "2", "text": "=1+1"},
    {"name": "3", "text": 'say "x", then'},
]


@pytest.fixture
def sheet(tmp_path):
    write_sheet(tmp_path / "sheet.csv", SHOWN, ("mark",))
    return tmp_path / "sheet.csv"


def write(path, rows):
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_cell_is_a_formula(sheet):
    assert [row["text"] for row in read(sheet)] == ["'- a\n- b", "'=1+1", 'say "x", then']
    assert len(read_sheet(sheet, SHOWN, ("mark",))) == 3


def test_a_column_stands_for_values(sheet):
    rows = [{**row, "mark": mark} for row, mark in zip(read(sheet), ("1", " B ", "b"), strict=True)]
    write(sheet, rows[::-1])
    found = read_sheet(sheet, SHOWN, ("mark",))
    assert [row["name"] for row in found] == ["1", "2", "3"]
    assert read_column(sheet, found, "mark", {"1": 10, "b": 20}) == [10, 20, 20]
    with pytest.raises(
        DataError, match="2 of 3 rows have no valid mark: name 2 has 'b', name 3 has 'b'; .* one of 1$"
    ):
        read_column(sheet, found, "mark", {"1": 10})


def test_rows_are_those_that_were_written(sheet):
    rows = read(sheet)
    write(sheet, [rows[0], rows[0], {**rows[1], "text": "another"}, {**rows[2], "name": "4"}])
    message = (
        r"has 4 rows: by name 1 unknown \(4\); 1 twice \(1\); 1 missing \(3\); 1 changed \(2\); "
        "it must have each of the 3 rows once"
    )
    with pytest.raises(DataError, match=message):
        read_sheet(sheet, SHOWN, ("mark",))
    with pytest.raises(DataError, match="no column rank, or no rows"):
        read_sheet(sheet, SHOWN, ("rank",))
