"""What `make` installs on other machines: a Python that says it is on one takes the place of its own."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.experiments.runs import REPOSITORY

HOPPER = {
    "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-runtime", "nvidia-cuda-nvcc", "nvidia-cuda-crt",
    "nvidia-nvvm", "nvidia-cuda-nvdisasm",
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "system", "machine", "installed"),
    [
        ((3, 12), "linux", "x86_64", {"libtpu", "flatbuffers"} | HOPPER),
        ((3, 11), "linux", "x86_64", {"libtpu", "flatbuffers"}),
        ((3, 12), "linux", "aarch64", {"flatbuffers"} | HOPPER),  # libtpu has no wheel there
        ((3, 12), "darwin", "arm64", {"flatbuffers"}),  # nor have NVIDIA's compilers
    ],
)
def test_compilers_are_installed_where_there_are_any(
    tmp_path: Path, version: tuple[int, int], system: str, machine: str, installed: set[str]
) -> None:
    called = tmp_path / "called"
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    pretend = f"import sys; sys.version_info, sys.platform = {version}, {system!r}; "
    python.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = -c ]; then exec {sys.executable} -c {shlex.quote(pretend)}"$2"; fi\n'
        f"printf '\\t%s' \"$@\" >> {called}; echo >> {called}\n"
    )
    python.chmod(0o755)
    (tmp_path / "installed").touch()
    (tmp_path / "installed-dev").touch()
    targets = [f"{tmp_path}/aot", f"{tmp_path}/aot_hopper"]
    subprocess.run(["make", f"VENV={tmp_path}", *targets], cwd=REPOSITORY, check=True)
    calls = [line.split("\t") for line in called.read_text().splitlines()]
    asked = [Requirement(word) for call in calls for word in call[call.index("--target") + 2 :]]
    there = {"sys_platform": system, "platform_machine": machine}
    assert {one.name for one in asked if one.marker is None or one.marker.evaluate(there)} == installed
