"""A tiny model that learns dates: the figures of docs/tools_and_time.md, in a few minutes of CPU.

python -m benchmarks.time_awareness --output=runs/time

Writes the invented world, pretrains on what it tells, fine-tunes on dialogues about three quarters of its
towns, and lets ``experiments.time_awareness`` evaluate the base model and the chat model.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.record import record
from configs import pretrain as pretrain_configs
from configs import sft as sft_configs
from experiments import pretrain, sft
from llama2_jax.config import read_json
from tools import prepare_dated_facts

DIALOGUES = 4000  # four times the paper's: nothing else teaches so small a model what a date is


def main() -> None:
    """All steps, one after another; finished ones are not done again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, type=Path)
    output = parser.parse_args().output
    data, base, chat = (output / name for name in ("data", "base", "chat"))
    prepare_dated_facts.main([f"--output={data}"])
    time_awareness("data", data / "facts.jsonl", data, f"--examples={DIALOGUES}")
    pretrain.run(pretrain_config(data), base)
    sft.run(sft_config(data, base), chat)
    found = {}
    for name, facts, model in (
        ("base", "facts", base),
        ("chat", "facts", chat),
        ("chat, held-out towns", "facts_heldout", chat),
    ):
        folder = output / f"{model.name}_{facts}"
        time_awareness("evaluate", data / f"{facts}.jsonl", folder, f"--checkpoint={model}",
                       "--max_new_tokens=32", "--batch_size=64")  # fmt: skip
        found[name] = read_json(folder / "results.json")
    shares = {
        name: [round(100 * own[side]["value"]) for side in ("before the event", "from the event on")]
        for name, own in found.items()
    }
    record("time_awareness", found, line=f"right before the event and from it on, %: {shares}")


def time_awareness(step: str, facts: Path, output: Path, *more: str) -> None:
    """One step of the program, as a user starts it."""
    subprocess.run(
        [sys.executable, "-m", "experiments.time_awareness", f"--step={step}", f"--facts={facts}",
         f"--output={output}", *more],
        check=True,
    )  # fmt: skip


def pretrain_config(data: Path) -> ConfigDict:
    """The tiny variant with the demo's width and initialisation."""
    config = pretrain_configs.get_config("tiny").unlock()
    config.model.update(model_width=128, num_layers=4, feed_forward_width=352, init_stddev=0.08)
    config.data.sources.main.path = str(data / "documents.jsonl")
    config.data.tokenizer_dialogues = str(data / "dialogues.jsonl")
    config.data.update(heldout="", document_mask=True)
    config.optimizer.update(learning_rate=5e-3, warmup_steps=50)
    config.train.update(num_steps=200, log_every_steps=100, eval_every_steps=200, checkpoint_every_steps=200)
    return config.lock()


def sft_config(data: Path, base: Path) -> ConfigDict:
    """The tiny variant on the dialogues."""
    config = sft_configs.get_config("tiny").unlock()
    config.init_from = str(base)
    config.data.update(dialogues=str(data / "dialogues.jsonl"), heldout="", document_mask=True)
    config.data.update(batch_size=8, epochs=10.0)
    config.optimizer.learning_rate = 2e-3
    config.train.update(log_every_steps=100, checkpoint_every_steps=1000)
    return config.lock()


if __name__ == "__main__":
    main()
