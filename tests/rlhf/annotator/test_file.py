import csv

import pytest

from llama2_jax.data.records import DataError
from llama2_jax.rlhf.annotator.comparison import Judgement
from llama2_jax.rlhf.annotator.file import (
    FILLED_IN,
    INSTRUCTIONS,
    RATED,
    SKIP,
    UNSAFE,
    read_sheet,
    write_sheet,
)
from tests.rlhf.annotator.asked import compare

COMPARISONS = [
    compare("What is 3 plus 4?", "It is 7.", 'It is "8",\nI think.', name="1-a"),
    compare("How do I open the moon gate?", "I will not.", "Push.", is_safety=True, name="1-b"),
]
FILLED = [
    {"preferred": "a", "rating": "better", "annotator_id": "Eva"},
    {"preferred": "A ", "rating": "unsure", "unsafe_a": "No", "unsafe_b": "yes", "annotator_id": "Ben"},
]


def fill_in(path, changes=FILLED, *, drop=(), repeat=()):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, change in zip(rows, changes, strict=True):
        row.update(change)
    rows = [row for number, row in enumerate(rows) if number not in drop] + [
        rows[number] for number in repeat
    ]
    with path.open("w", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]) if rows else ["comparison_id"])
        sheet.writeheader()
        sheet.writerows(rows)


@pytest.fixture
def sheet(tmp_path):
    write_sheet(tmp_path / "sheet.csv", COMPARISONS)
    return tmp_path / "sheet.csv"


def test_a_filled_sheet_is_read_in_the_order_of_the_comparisons(sheet):
    fill_in(sheet)
    judged = [Judgement(True, "better", None, "Eva"), Judgement(True, "unsure", (False, True), "Ben")]
    assert read_sheet(sheet, COMPARISONS) == judged
    assert read_sheet(sheet, COMPARISONS[::-1]) == judged[::-1]


def test_a_row_that_nobody_can_judge_is_skipped_and_needs_no_more(sheet):
    fill_in(sheet, [{"preferred": "Skip"}, FILLED[1] | {"rating": "Negligibly better"}])
    assert read_sheet(sheet, COMPARISONS) == [None, Judgement(True, "unsure", (False, True), "Ben")]
    fill_in(sheet, [FILLED[0], {"preferred": "skip", "unsafe_a": "", "rating": "", "annotator_id": ""}])
    assert read_sheet(sheet, COMPARISONS)[1] is None


def test_instructions_name_every_column_and_what_may_stand_there():
    words = INSTRUCTIONS.replace(" ", "_")
    assert all(text in words for text in (*FILLED_IN, *RATED, *UNSAFE, SKIP))


def test_line_ends_of_a_spreadsheet_do_not_matter(sheet):
    fill_in(sheet)
    sheet.write_bytes(b"\xef\xbb\xbf" + sheet.read_bytes().replace(b'8"",\n', b'8"",\r\n'))
    assert len(read_sheet(sheet, COMPARISONS)) == 2


def test_the_sheet_names_no_model(sheet):
    columns = sheet.read_text().splitlines()[0]
    assert columns == "comparison_id,track,dialogue,a,b,preferred,rating,unsafe_a,unsafe_b,annotator_id"


def test_a_sheet_is_never_overwritten(sheet):
    with pytest.raises(DataError, match="exists and may have been filled in"):
        write_sheet(sheet, COMPARISONS)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (
            0,
            {"preferred": ""},
            "1 of 2 rows have no valid preferred: comparison_id 1-a has ''; it must be one of a, b, skip",
        ),
        (0, {"rating": "good"}, "1-a has 'good'; it must be one of significantly_better, better"),
        (0, {"annotator_id": " "}, "1-a: annotator_id is empty"),
        (
            1,
            {"unsafe_b": ""},
            "1 of 1 rows have no valid unsafe_b: comparison_id 1-b has ''; it must be one of yes, no",
        ),
        (0, {"comparison_id": "9-z"}, r"1 unknown \(9-z\); 1 missing \(1-a\)"),
        (0, {"a": "It is 9."}, "1 changed: a of comparison_id 1-a is 'It is 9.', it was 'It is 7.'"),
    ],
)
def test_wrong_fields_are_named(sheet, row, changes, message):
    fill_in(sheet, [one | (changes if number == row else {}) for number, one in enumerate(FILLED)])
    with pytest.raises(DataError, match=message):
        read_sheet(sheet, COMPARISONS)


def test_missing_and_repeated_rows(sheet):
    fill_in(sheet, drop=(0,), repeat=(1,))
    with pytest.raises(DataError, match=r"1 twice \(1-b\); 1 missing \(1-a\); .* each of the 2 rows once"):
        read_sheet(sheet, COMPARISONS)


def test_cells_that_a_spreadsheet_left_out_are_empty(sheet):
    fill_in(sheet)
    lines = sheet.read_text().rsplit("Ben", 1)
    sheet.write_text(lines[0].rstrip(",") + "\n")
    with pytest.raises(DataError, match="1-b: annotator_id is empty"):
        read_sheet(sheet, COMPARISONS)
    sheet.write_text(sheet.read_text() + "1-a\n")
    with pytest.raises(DataError, match=r"1 twice \(1-a\); it must have"):
        read_sheet(sheet, COMPARISONS)


def test_another_file(tmp_path):
    (tmp_path / "sheet.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column comparison_id, track, dialogue, preferred"):
        read_sheet(tmp_path / "sheet.csv", COMPARISONS)
