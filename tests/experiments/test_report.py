import pytest

from experiments.report import table, write_report_file


def test_an_empty_cell_is_one_space():
    assert table(("", "value"), [("a", "1"), ("b", "")]) == [
        "| | value |",
        "|---|---|",
        "| a | 1 |",
        "| b | |",
    ]


def test_a_report_that_fails_half_way_leaves_the_old_one(tmp_path):
    def lines():
        yield "new"
        raise RuntimeError

    write_report_file(tmp_path, ["# Title", "", "old"])
    with pytest.raises(RuntimeError):
        write_report_file(tmp_path, lines())
    assert (tmp_path / "report.md").read_text() == "# Title\n\nold\n"
