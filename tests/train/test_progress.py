import io
import time

import pytest

from llama2_jax import files
from llama2_jax.train import progress
from llama2_jax.train.progress import ProgressReport, counted, rate_text

METRICS = {"train/loss": 2.34567, "train/tokens_per_sec": 12345.6, "train/mfu_causal_no_embed": 0.456}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rate_text_has_loss_rate_mfu_and_time_left() -> None:
    assert rate_text(METRICS, secs_left=83.2) == "loss 2.3457  12,346 tok/s  MFU 45.6 %  1:23 left"


def test_a_terminal_gets_a_bar_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    report = ProgressReport("pretrain", num_steps=10, start_step=2)
    report.step(5, rate_text(METRICS, secs_left=83.2))
    report.step(6)
    report.note("pretrain step 6: eval/heldout/loss 2.0000")
    report.close()
    written = terminal.getvalue()
    assert "6/10" in written
    assert "loss 2.3457  12,346 tok/s  MFU 45.6 %" in written
    assert "eval/heldout/loss 2.0000" in written


def test_processes_that_do_not_write_show_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_writes", False)
    report = ProgressReport("pretrain", num_steps=10, start_step=0)
    report.step(1, "loss")
    report.note("note")
    report.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_batches_are_counted_and_said_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen = []
    for batch in counted("answers", [1, 2, 3, 4, 5], size=2, done=5):
        seen.append(batch)
        now[0] += 20.0
    assert seen == [[1, 2], [3, 4], [5]]
    assert capsys.readouterr().err == "answers 9/10  0.1 per second\n"  # after 40 s, and not before 30 more


def test_one_batch_or_one_without_a_name_is_not_worth_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "ProgressReport", None)
    assert list(counted("answers", [1, 2], size=2)) == [[1, 2]]
    assert list(counted("", [1, 2], size=1)) == [[1], [2]]
