"""The whole recipe with other seeds: which claims of the paper hold in each run, and its wall time.

make demo && python -m benchmarks.recipe --seeds 1 2 3

Each seed is that of all stages, from the first weights to the last sample, on the same texts; a run goes to
``runs/recipe/SEED`` and continues there after a stop.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record

CONFIG = "configs/llama2_chat.py:tiny,seed={}"


def main() -> None:
    """Run every seed and record the verdicts side by side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("runs/recipe"))
    arguments = parser.parse_args()
    runs = {seed: run_recipe(seed, arguments.output / str(seed)) for seed in arguments.seeds}
    held = [sum(verdict["holds"] is True for verdict in run["verdicts"]) for run in runs.values()]
    total = len(next(iter(runs.values()))["verdicts"])
    secs = ", ".join(f"{run['secs']:,.0f}" for run in runs.values())
    record(
        "recipe", runs, line=f"claims that hold, of {total}: {held} (seeds {arguments.seeds}); seconds {secs}"
    )


def run_recipe(seed: int, workdir: Path) -> dict[str, Any]:
    """The verdicts of one run, and the sum of its stages' seconds."""
    command = ["experiments.llama2_chat", f"--config={CONFIG.format(seed)}", f"--workdir={workdir}"]
    subprocess.run([sys.executable, "-m", *command], check=True)
    stages = (workdir / "stages.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "verdicts": json.loads((workdir / "verdicts.json").read_text(encoding="utf-8")),
        "secs": sum(json.loads(line)["secs"] for line in stages),
    }


if __name__ == "__main__":
    main()
