import csv

import pytest

from llama2_jax.data.records import DataError
from llama2_jax.data.sheets import is_there, read_column, read_sheet, write_sheet

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


@pytest.mark.parametrize(
    "text",
    ["1-1", "1/2", "3.10", "007", "50%", "1234567890123456", "$5", "TRUE", "May 5", "jan-45", ".5", "1e5"],
)
def test_no_cell_becomes_a_date_or_another_number(tmp_path, text):
    shown = [{"name": text, "text": text}]
    path = tmp_path / "sheet.csv"
    write_sheet(path, shown, ("mark",))
    assert read(path) == [{"name": f"'{text}", "text": f"'{text}", "mark": ""}]
    for row in (
        {"name": text, "text": text, "mark": "x"},
        {"name": f"'{text} ", "text": f"'{text}", "mark": "x"},
    ):
        write(path, [row])
        (found,) = read_sheet(path, shown, ("mark",))
        assert (found["name"], found["mark"]) == (text, "x")


@pytest.mark.parametrize(
    "text", ["12", "0", "Perhaps 5 of them", "It is 7.", "7 is the answer, since 3 + 4 are 7.", "1.\n2."]
)
def test_other_texts_stay_as_they_are(tmp_path, text):
    write_sheet(tmp_path / "sheet.csv", [{"name": text}], ("mark",))
    assert read(tmp_path / "sheet.csv")[0]["name"] == text


def test_rows_without_text_do_not_count(sheet):
    write(sheet, [*read(sheet), {"name": "", "text": " ", "mark": ""}])
    assert len(read_sheet(sheet, SHOWN, ("mark",))) == 3


def test_a_shared_sheet_comes_back_in_parts(sheet):
    rows = [{**row, "mark": row["name"]} for row in read(sheet)]
    sheet.rename(sheet.with_name("kept elsewhere.csv"))
    assert not is_there(sheet)
    sheet.with_name("sheet.part0.CSV").write_text("name,text,mark\n")  # whoever had nothing left to do
    assert is_there(sheet)
    with pytest.raises(DataError, match="sheet.csv has no rows; put back the 3 that were written"):
        read_sheet(sheet, SHOWN, ("mark",))
    write(sheet.with_name("sheet.part1.csv"), rows[2:])
    with pytest.raises(DataError, match="has 1 rows: by name 2 missing"):
        read_sheet(sheet, SHOWN, ("mark",))
    with sheet.with_name("sheet.part2.csv").open("w", newline="", encoding="utf-8-sig") as file:
        out = csv.DictWriter(file, list(rows[0]), delimiter=";")
        out.writeheader()
        out.writerows(rows[:2])
    assert [row["mark"] for row in read_sheet(sheet, SHOWN, ("mark",))] == ["1", "2", "3"]
    sheet.with_name("sheet.part3.csv").write_text("name,mark\n1,1\n")
    with pytest.raises(DataError, match="sheet.part3.csv has no column text"):
        read_sheet(sheet, SHOWN, ("mark",))


def test_a_sheet_that_did_not_come_back_is_named(sheet):
    sheet.unlink()
    with pytest.raises(
        DataError, match=r"sheet.csv does not exist, nor any part of it; put the filled sheet"
    ):
        read_sheet(sheet, SHOWN, ("mark",))


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
    assert read_column(sheet, [{"mark": "Much  Better "}], "mark", {"much_better": 3}) == [3]
    with pytest.raises(DataError, match=r"name 1 has '\\u0430'"):  # a Cyrillic one looks like "a"
        read_column(sheet, [{"name": "1", "mark": "\u0430"}], "mark", {"a": 1})


def test_rows_are_those_that_were_written(sheet):
    rows = read(sheet)
    write(sheet, [rows[0], rows[0], {**rows[1], "text": "another"}, {**rows[2], "name": "4"}])
    message = (
        r"has 4 rows: by name 1 unknown \(4\); 1 twice \(1\); 1 missing \(3\); "
        "it must have each of the 3 rows once"
    )
    with pytest.raises(DataError, match=message):
        read_sheet(sheet, SHOWN, ("mark",))
    with pytest.raises(DataError, match="no column rank; put its first line back: name,text,rank"):
        read_sheet(sheet, SHOWN, ("rank",))
    sheet.write_text("")
    with pytest.raises(
        DataError, match="no column name, text, mark; put its first line back: name,text,mark"
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
    write(path, [{**row, "text": row["text"].removeprefix("'").replace("1/2", "01-Feb")} for row in rows])
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
