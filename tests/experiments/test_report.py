import jax
import pytest

from experiments.report import quote, table, write_report_file
from experiments.training_report import _carbon
from llama2_jax.train.carbon import WATTS


def test_an_empty_cell_is_one_space():
    assert table(("", "value"), [("a", "1"), ("b", "")]) == [
        "| | value |",
        "|---|---|",
        "| a | 1 |",
        "| b | |",
    ]


def test_a_name_does_not_break_a_table():
    assert table(("a|b", "value"), [("x\ny\r\nz", quote("|"))])[::2] == [
        r"| a\|b | value |",
        r"| x y z | \| |",
    ]


def test_a_report_that_fails_half_way_leaves_the_old_one(tmp_path):
    def lines():
        yield "new"
        raise RuntimeError

    write_report_file(tmp_path, ["# Title", "", "old"])
    with pytest.raises(RuntimeError):
        write_report_file(tmp_path, lines())
    assert (tmp_path / "report.md").read_text() == "# Title\n\nold\n"


def test_a_device_whose_power_is_known_reports_its_carbon(monkeypatch):
    assert _carbon(2.0) == [("device hours in updates", "2.00")]
    monkeypatch.setitem(WATTS, jax.devices()[0].device_kind, 400)
    assert dict(_carbon(184_320))["carbon (Table 2's formula)"].startswith("31.2 tCO2eq: 400 W per device")
