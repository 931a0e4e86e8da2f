import csv

import pytest

from llama2_jax.data.records import DataError
from llama2_jax.data.sheets import read_column, read_sheet, write_sheet

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
        r"has 4 rows: by name 1 unknown \(4\); 1 twice \(1\); 1 missing \(3\); "
        "it must have each of the 3 rows once"
    )
    with pytest.raises(DataError, match=message):
        read_sheet(sheet, SHOWN, ("mark",))
    with pytest.raises(DataError, match="no column rank, or no rows"):
        read_sheet(sheet, SHOWN, ("rank",))
    sheet.write_text("")
    with pytest.raises(
        DataError, match="no column name, text, mark, or no rows; its first line must be name,text,mark"
    ):
        read_sheet(sheet, SHOWN, ("mark",))


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_delimiter_of_another_country(sheet, delimiter, quoting):
    rows = [{**row, "mark": "x"} for row in read(sheet)]
    with sheet.open("w", newline="", encoding="utf-8-sig") as file:
        out = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=quoting)
        out.writeheader()
        out.writerows(rows)
    assert read_sheet(sheet, SHOWN, ("mark",)) == rows


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_sheet_in_another_encoding(tmp_path, encoding):
    path = tmp_path / "sheet.csv"
    path.write_text("name,text,mark\n1,caf\u00e9,x\n", encoding=encoding)
    with pytest.raises(DataError, match="sheet.csv is not CSV in UTF-8 .*save it as 'CSV UTF-8'"):
        read_sheet(path, [{"name": "1", "text": "caf\u00e9"}], ("mark",))


def test_a_cell_that_csv_cannot_read(sheet):
    sheet.write_text(f"name,text,mark\n1,{'x' * 200_000},\n")
    with pytest.raises(DataError, match="field larger than field limit"):
        read_sheet(sheet, SHOWN, ("mark",))


def test_a_cell_that_a_spreadsheet_changed(tmp_path):
    long = "word " * 100
    shown = [
        {"name": "1", "text": "1/2"},
        {"name": "2", "text": f"{long}1/2 {long}"},
        {"name": "3", "text": "c"},
    ]
    path = tmp_path / "sheet.csv"
    write_sheet(path, shown, ("mark",))
    rows = read(path)
    write(path, [{**row, "text": row["text"].replace("1/2", "01-Feb")} for row in rows])
    with pytest.raises(DataError) as error:
        read_sheet(path, shown, ("mark",))
    message = str(error.value)
    assert "2 changed: text of name 1 is '01-Feb', it was '1/2'; text of name 2 is ...'" in message
    assert "word 01-Feb word" in message
    assert "word 1/2 word" in message
    assert "format these cells as text, then write back what it was" in message
    assert len(message) < 700


def test_an_apostrophe_that_a_spreadsheet_took_away(sheet):
    rows = [{**row, "text": row["text"].removeprefix("'"), "mark": "x"} for row in read(sheet)]
    write(sheet, rows)
    assert [row["text"] for row in read_sheet(sheet, SHOWN, ("mark",))][:2] == ["- a\n- b", "=1+1"]


def test_a_column_that_stands_twice_is_refused(sheet):
    lines = sheet.read_text().replace("name,text,mark", "name,text,mark,mark", 1)
    sheet.write_text(lines)
    with pytest.raises(DataError, match="has several columns mark; leave the one that counts"):
        read_sheet(sheet, SHOWN, ("mark",))
