from pathlib import Path

import pytest

from experiments.settings import keep_settings
from llama2_jax.config import ConfigError


def test_settings_may_be_corrected_before_there_are_results(tmp_path: Path) -> None:
    keep_settings(tmp_path, {"limit": 3}, results="*/results.json")
    keep_settings(tmp_path, {"limit": 4}, results="*/results.json")
    (tmp_path / "choice").mkdir()
    (tmp_path / "choice/results.json").write_text("{}")
    with pytest.raises(ConfigError, match="limit: 4 -> 5"):
        keep_settings(tmp_path, {"limit": 5}, results="*/results.json")
    keep_settings(tmp_path, {"limit": 4}, results="*/results.json")
