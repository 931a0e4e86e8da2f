"""What result files of benchmarks say of the machine."""

import os
import platform

import pytest

from benchmarks import record


def test_a_processor_whose_system_tells_no_name_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    grace = ["processor\t: 0", "CPU implementer\t: 0x41", "CPU part\t: 0xd4f"]  # on aarch64 no "model name"
    monkeypatch.setattr(record, "_cpuinfo", lambda: grace)
    monkeypatch.setattr(os, "cpu_count", lambda: 72)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert record._cpu() == "72 cores, aarch64"
