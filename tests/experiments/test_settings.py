import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.settings import file_version, keep_settings
from llama2_jax.config import ConfigError
from llama2_jax.files import release
from tests.experiments.runs import REPOSITORY


def test_one_process_at_a_time(tmp_path: Path) -> None:
    keep_settings(tmp_path, {}, results="*")
    again = f"keep_settings(Path({str(tmp_path)!r}), {{}}, results='*')"
    code = f"from pathlib import Path; from experiments.settings import keep_settings; {again}"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert f"{tmp_path} is in use by process {os.getpid()} on " in result.stderr
    assert "use another folder" in result.stderr
    release(tmp_path)


def test_settings_may_be_corrected_before_there_are_results(tmp_path: Path) -> None:
    keep_settings(tmp_path, {"limit": 3}, results="*/results.json")
    keep_settings(tmp_path, {"limit": 4}, results="*/results.json")
    (tmp_path / "choice").mkdir()
    (tmp_path / "choice/results.json").write_text("{}")
    with pytest.raises(ConfigError, match="limit: 4 -> 5"):
        keep_settings(tmp_path, {"limit": 5}, results="*/results.json")
    keep_settings(tmp_path, {"limit": 4}, results="*/results.json")


def test_a_file_is_known_by_name_and_content(tmp_path: Path) -> None:
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "facts.jsonl").write_text(text)
    versions = [file_version(tmp_path / folder / "facts.jsonl") for folder in "abc"]
    assert versions[0] == versions[1] == "facts.jsonl 7692c3ad3540"  # sha256 of "one"
    assert versions[2] not in versions[:2]
