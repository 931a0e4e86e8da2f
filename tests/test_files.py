"""A process that writes nothing leaves every file to the one that does."""

import errno
import json
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama2_jax import files
from llama2_jax.analysis import figures
from llama2_jax.config import write_json
from llama2_jax.data.jsonl import append_rows, write_rows
from llama2_jax.files import held, hold, release, written_whole
from llama2_jax.interop.imported import LazyTensor
from llama2_jax.interop.safetensors_file import write_safetensors
from llama2_jax.train.metrics import MetricsWriter
from llama2_jax.workdir import mark_done


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_writes", True)  # restores what the next line sets
    files.leave_writing_to_another()


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    with written_whole(path) as partial:
        partial.write_text("old")
    with pytest.raises(TypeError), written_whole(path) as partial:
        json.dump({"half": object()}, partial.open("w"))
    assert path.read_text() == "old"


def test_only_files_are_replaced_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link_to_pipe").symlink_to("pipe")
    before = sorted(tmp_path.iterdir())
    for name in ("folder", "pipe", "link_to_pipe"):
        with pytest.raises(FileExistsError, match=f"{name} is a folder or a device, .*; name a file"):
            write_json(tmp_path / name, {})
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "pipe").is_fifo()
    link = tmp_path / "link"
    link.symlink_to("folder/results.json")
    for content in ({}, {"a": 1}):  # before there is a file behind it, and after
        write_json(link, content)
        assert link.is_symlink()
        assert json.loads((tmp_path / "folder" / "results.json").read_text()) == content


WEIGHTS = {"w": LazyTensor((2000,), np.dtype(np.float32), lambda: np.zeros(2000, np.float32))}


def write_metrics(path: Path) -> None:
    metrics = MetricsWriter(path.parent)
    metrics.write(1, {"note": "x" * 5000})
    metrics.flush()


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda path: write_json(path, "x" * 5000), "file.partial"),
        (lambda path: write_rows(path, [{"note": "x" * 5000}]), "file.partial"),
        (lambda path: append_rows(path, [{"note": "x" * 5000}]), "file"),
        (write_metrics, "metrics.jsonl"),
        (lambda path: write_safetensors(path, WEIGHTS), "file"),
    ],
)
def test_a_full_disk_is_said_with_the_file(tmp_path: Path, write: Callable[[Path], None], named: str) -> None:
    path = tmp_path / "file"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"[Errno {errno.EFBIG}] File too large: '{tmp_path / named}'"


def test_an_error_of_something_else_within_a_block_keeps_its_own_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere'$"), written_whole(tmp_path / "file"):
        Path("/nowhere").read_text()
    with pytest.raises(OSError, match="error$") as caught, written_whole(tmp_path / "file"):
        raise OSError(errno.EIO, "Input/output error")  # of a disk that was read, perhaps
    assert caught.value.filename is None


def test_a_lock_names_its_holder_alone_and_lasts_to_the_end_of_the_outer_block(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on another machine\n" * 9)  # a run before
    with held(tmp_path, another=""):
        with held(tmp_path / ".." / tmp_path.name, another=""):
            pass
        assert not hold(tmp_path, another=""), "it is held already"
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert hold(tmp_path, another="")
    release(tmp_path)


def test_where_there_are_no_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    assert not hold(tmp_path, another="")
    assert f"{tmp_path} cannot be locked ([Errno {errno.ENOLCK}] No locks available)" in caplog.text


@pytest.mark.usefixtures("reader")
def test_nothing_is_written(tmp_path: Path) -> None:
    workdir = tmp_path / "workdir"
    write_json(workdir / "config.json", {})
    write_rows(workdir / "rows.jsonl", [{}])
    append_rows(workdir / "rows.jsonl", [{}])
    figures.save(figures.subplots()[0], workdir / "figure.png")
    metrics = MetricsWriter(workdir)
    metrics.write(1, {"loss": 1.0})
    metrics.flush()
    metrics.close()
    mark_done(workdir)
    assert not hold(workdir, another="")
    assert not files.writes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reader")
def test_what_the_other_process_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"cut')
    append_rows(path, [{"a": 2}])
    write_rows(path, [{"a": 3}])
    assert path.read_text() == '{"a": 1}\n{"cut'
    with written_whole(path) as partial:
        partial.write_text(json.dumps({}))
    assert not partial.exists()
