"""The Python of README.md runs, on a model of random weights in the place of the demo's."""

import re
from typing import Any

import pytest

from tests.experiments.runs import REPOSITORY
from tests.rlhf.small_policy import saved_policy


def test_its_examples_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert code.count('"runs/demo/sft"') == 1
    space: dict[str, Any] = {}
    exec(code.replace('"runs/demo/sft"', repr(str(saved_policy()))), space)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^0\.\d{3} '", printed, re.MULTILINE)) == 5
    assert space["answer"].text in printed
