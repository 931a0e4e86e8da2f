"""Files made of the real PyRIT tables, which are there only once they were fetched."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.fetch_assets import AssetError, asset_path


def prepared_with(prepare: Callable[[Path, Path], dict[Path, int]], output: Path) -> Path:
    """``output`` with what ``prepare`` writes; skips the test where the tables were not fetched."""
    try:
        folder = asset_path("pyrit")
    except AssetError as error:
        pytest.skip(str(error))
    prepare(folder, output)
    return output
