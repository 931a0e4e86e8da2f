"""Notebooks run, and are stored with what they printed. That of alignment runs in test_llama2_chat.py."""

import json
import re

import pytest

from tests.experiments.runs import fine_tuned_workdir
from tests.notebooks.execution import FOLDER, code_cells, numbers_after, read, run

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_a_model_is_taken_apart():
    printed = run("model", {"runs/demo/sft": fine_tuned_workdir()})
    (difference,) = numbers_after("largest difference of a log-probability", printed)
    assert difference < 1e-4
    assert numbers_after("largest difference of a logit", printed)[0] < 1e-4
    packed, changed, joined = (
        numbers_after(label, printed)[0]
        for label in ("after the first", "after another one", "both as one document")
    )
    assert max(packed, changed) < 1e-4 < 0.01 < joined


def test_an_update_is_the_same_on_every_mesh():
    printed = run("sharding", {})
    one_device, *meshes = numbers_after(" loss", printed)
    assert len(meshes) == 3
    assert meshes == pytest.approx([one_device] * 3, rel=1e-5)
    assert "config.optimizer has unknown key(s) learning_rat" in printed
    assert "one device          75.3 GiB per device" in printed  # 12 bytes each of 6,738,415,616 parameters


@pytest.mark.parametrize("name", NAMES)
def test_stored_with_outputs_in_order_and_without_errors(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 250_000
    cells = code_cells(read(name))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "Warning" not in json.dumps(outputs)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_machine_is_stored(name):
    notebook = read(name)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not [
        cell["metadata"] for cell in notebook["cells"] if cell["metadata"]
    ]  # such as times of execution
    for output in (output for cell in code_cells(notebook) for output in cell["outputs"]):
        output.get("data", {}).pop("image/png", None)
    assert re.findall(r"(?<![\w.:/<])/\w+/\w+", json.dumps(notebook)) == [], "absolute paths"
