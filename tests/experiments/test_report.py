import jax
import pytest

from experiments.report import included, quote, settings_table, table, write_report_file
from experiments.training_report import _numbers, _results
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


def test_settings_are_taken_literally():
    settings = {
        "checkpoint": "a|b_*",
        "data": ["x_1.csv", "y"],
        "judges": {"truth": 1 / 3},
        "limit": None,
    }
    assert settings_table(settings)[2:] == [
        r"| checkpoint | a\|b\_\* |",
        r"| data | x\_1.csv, y |",
        r"| judges | truth 0.3333 |",
        r"| limit | None |",
    ]


def test_an_included_report_keeps_its_pictures_and_links(tmp_path):
    report = tmp_path / "evaluation" / "report.md"
    lines = ["# Title", "## Wins", "![wins](wins.png)", "| [v1](v1/report.md) |", "> see [it](https://a.b)"]
    write_report_file(report.parent, lines)
    assert included(report, tmp_path / "card") == [
        "#### Wins",
        "![wins](../evaluation/wins.png)",
        "| [v1](../evaluation/v1/report.md) |",
        "> see [it](https://a.b)",
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
    """The 7B's hours in Table 2, as so many tokens at one per second and device."""
    tokens, rate = 184_320 * 3600, 8
    mfu = {"train/mfu_causal_no_embed": 0.4, "train/mfu_full_no_embed": 0.5}
    line = {"step": 9, "train/loss": 2.0, "train/tokens_seen": tokens, "train/tokens_per_sec": rate, **mfu}
    assert "tonnes_co2eq" not in _results([line], 8)
    monkeypatch.setitem(WATTS, jax.devices()[0].device_kind, 400)
    results = _results([line], 8)
    assert results["device_hours"] == 184_320
    assert results["tonnes_co2eq"] == pytest.approx(31.22, abs=0.01)
    rows = dict(_numbers([line], results, (1e12, "measured")))
    assert rows["device hours in updates"] == "184,320.00"
    assert rows["carbon (Table 2's formula)"].startswith("31.2 tCO2eq: 400 W per device")


def test_a_run_too_short_to_be_timed_reports_no_hours():
    line = {"step": 1, "train/loss": 2.0, "train/tokens_seen": 8}
    results = _results([line], 8)
    assert results == {"updates": 1, "tokens_seen": 8}
    assert [name for name, _ in _numbers([line], results, (1e12, "measured"))] == [
        "updates",
        "tokens seen",
        "training loss, first update and mean of the last 1",
    ]


def test_the_last_loss_is_not_that_of_whatever_source_came_last():
    """Updates of two sources in turn, 0.5 and 2.5: the last one alone would say 0.5."""
    losses = [8.0, *[2.5, 0.5] * 15]
    lines = [{"step": n, "train/loss": loss, "train/tokens_seen": n} for n, loss in enumerate(losses, 1)]
    rows = dict(_numbers(lines, _results(lines, 1), (1e12, "measured")))
    title = "training loss, first update and mean of the last 20"
    assert rows[title] == "8.000 to 1.500 nats per token"
