"""What every benchmark shares: timing repeated calls, and a result file that says where and when."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).with_name("results")
# environment variables that change how fast a program is
SETTINGS = ("GLIBC_TUNABLES", "XLA_FLAGS", "XLA_CLIENT_MEM_FRACTION")


def seconds(function: Callable[[], Any], *, repeats: int, warmup: int = 2) -> list[float]:
    """Wall seconds of each of ``repeats`` calls, waiting for their results, after ``warmup`` calls."""
    return rotated_seconds(function, [()], repeats=repeats, calls=1, warmup=warmup)


def rotated_seconds(
    function: Callable[..., Any],
    inputs: list[tuple[Any, ...]],
    *,
    repeats: int = 20,
    calls: int = 10,
    warmup: int = 2,
) -> list[float]:
    """Wall seconds per call, one for each of ``repeats`` runs of several calls that wait at the end only.

    A run takes the inputs in turn: enough of them, and none is still in a cache from the call before. On a
    fast device several calls hide what it costs to start one.
    """
    for turn in range(warmup):
        jax.block_until_ready(function(*inputs[turn % len(inputs)]))
    times, turn = [], 0
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*inputs[turn % len(inputs)])
            turn += 1
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, median and largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def own_memory() -> float:
    """MiB of this process that no file backs (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def record(name: str, result: dict[str, Any], *, line: str) -> None:
    """Print ``line`` and write ``results/DATE-NAME.json`` with commit, machine and versions."""
    print(line)
    device = jax.devices()[0]
    content = {
        "benchmark": name,
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "clocks": _clocks(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "environment": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "line": line,
        "result": result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{content['date']}-{name}-{device.platform}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _commit() -> str:
    """What the environment variable COMMIT says (of a copy without git), or that of the working tree."""
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    commit = _output("git", "rev-parse", "--short", "HEAD")
    return commit + ("+changes" if _output("git", "status", "--porcelain", "-uno") else "")


def _clocks() -> str:
    """What an NVIDIA GPU says of its clocks and power; empty elsewhere."""
    fields = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,driver_version"
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv")


def _output(*command: str) -> str:
    """What a program prints; nothing where there is no such program."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _cpu() -> str:
    names = [row.split(":", 1)[1].strip() for row in _cpuinfo() if row.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
