"""Notebooks as the tests see them: JSON whose code cells run in order, without Jupyter."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"

# What a kernel does. The first cell comes twice: running it again must change nothing.
KERNEL = """
import json, sys
first, *others = json.load(sys.stdin)
space = {"__name__": "__main__"}
for cell in (first, first, *others):
    exec(compile(cell, "<cell>", "exec"), space)
"""


def read(name: str) -> dict[str, Any]:
    """A notebook as it is stored."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(name: str, paths: Mapping[str, Path]) -> str:
    """Run a notebook from top to bottom in a process of its own, from the folder in which Jupyter starts it.

    Args:
      paths: what stands in for the paths of the demo that the notebook names.

    Returns:
      What it printed.
    """
    sources = ["".join(cell["source"]) for cell in code_cells(read(name))]
    for stored, path in paths.items():
        assert sum(f'"{stored}"' in source for source in sources) == 1, f"{name} names {stored} once"
        sources = [source.replace(f'"{stored}"', repr(str(path))) for source in sources]
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(sources),
        cwd=FOLDER,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers_after(label: str, printed: str) -> list[float]:
    """The number behind every place where the label stands."""
    return [float(number) for number in re.findall(rf"{re.escape(label)}:?\s*([-+.\de]+)", printed)]
