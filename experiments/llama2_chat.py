"""The whole recipe: text to a base model to a chat model (Llama 2, Figure 4).

Every stage is a programme of its own; this one runs them in order, each in a folder of its own,
and joins their reports. A killed run continues where it stopped. See ``configs/llama2_chat.py``.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import pretrain, sft
from llama2_jax.launch import is_done, launch_experiment, mark_done, open_workdir


def run(config: Any, workdir: Path) -> None:
    """Run or continue all stages in ``workdir``, then write ``report.md``."""
    if not open_workdir(config, workdir):
        pretrain.run(stage_config(config, "pretrain"), workdir / "pretrain")
        sft.run(stage_config(config, "sft", init_from=str(workdir / "pretrain")), workdir / "sft")
        write_report(workdir)
        mark_done(workdir)
    assert is_done(workdir)
    print(
        f"The chat model is in {workdir / 'sft'}, the report in {workdir / 'report.md'}. Talk to it:\n"
        f"  .venv/bin/python -m experiments.chat --checkpoint={workdir / 'sft'}"
    )


def stage_config(config: Any, name: str, **changes: Any) -> ConfigDict:
    """The config of one stage, with what only this programme knows."""
    stage = ConfigDict(config[name]).unlock()
    stage.update(changes)
    stage.train.accept_changed_config = config.train.accept_changed_config
    return stage.lock()


def write_report(workdir: Path) -> None:
    """Join the reports of the stages; their pictures stay where they are."""
    parts = ["# From text to a chat model\n"]
    for stage in ("pretrain", "sft"):
        report = (workdir / stage / "report.md").read_text(encoding="utf-8")
        parts.append(report.replace("\n#", "\n##").replace("# ", "## ", 1).replace("](", f"]({stage}/"))
    (workdir / "report.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    launch_experiment(run)
