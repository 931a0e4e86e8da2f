"""How much safety data is enough: models fine-tuned with shares of it (Llama 2, 4.2.3, Figures 15 and 33).

python -m experiments.safety_scaling --config=configs/safety_scaling.py:7b --workdir=DIR \
    [--config.FIELD=VALUE ...]

See ``configs/safety_scaling.py``. The helpful dialogues are the same for every model; the safe ones are
nested subsets, so that a larger share only adds to a smaller one. Each model is fine-tuned from the
pretrained one for two epochs of its own mixture and answers the same prompts once. A killed run continues
where it stopped.

    RUN/mixtures/25%.jsonl   the safe dialogues of a share; mixtures.json: how many
    RUN/sft/25%              the model of a share
    RUN/evaluation           answers and scores of all (``evaluate_chat``; Figures 14, 15 right and 20)
    RUN/report.md            see ``safety_scaling_report.py``, which reads labels of refusals afterwards
"""

import operator
from pathlib import Path
from typing import Any

from experiments import evaluate_chat, safety_scaling_report, sft
from experiments.chat_versions import prompt_sets
from experiments.models import load_judges, open_mesh
from experiments.stages import require_no_comma, run_stage, stage_config
from llama2_jax.config import keep_config, read_json, require, write_json
from llama2_jax.data.chat import Template
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.nested import check_shares, nested_subsets, share_name
from llama2_jax.data.prompts import read_prompts
from llama2_jax.data.records import split_paths
from llama2_jax.data.sources import TrainingDialogue, dialogue_row, read_dialogues
from llama2_jax.launch import launch_experiment
from llama2_jax.pretrained import load
from llama2_jax.sharding.processes import files_at_rest, wait_for_all
from llama2_jax.workdir import is_done, mark_done, open_workdir


def run(config: Any, workdir: Path) -> None:
    """Run or continue all stages in ``workdir``, then write ``report.md``."""
    _check_config(config)
    if not is_done(workdir):  # a finished run needs them no more
        require_no_comma(workdir)
        _check_prompts(config)
    if open_workdir(config, workdir):
        return
    with files_at_rest(workdir):
        is_mixed = (workdir / "mixtures.json").exists()
    if not is_mixed:
        write_mixtures(config, workdir, _check_models(config))
    keep_config(config, workdir)
    models = {name: fine_tune(config, workdir, name) for name in map(share_name, config.data.shares)}
    evaluate(config, workdir, models)
    safety_scaling_report.write_report(workdir, labels={})
    mark_done(workdir)
    print(f"The report is {workdir / 'report.md'}")


def _check_config(config: Any) -> None:
    """What can be said before anything is read."""
    evaluation = (f"evaluate_chat.{name}" for name in ("prompts", "helpfulness_rm", "safety_rm"))
    for name in ("data.helpfulness", "data.safety", "init_from", *evaluation):
        value = operator.attrgetter(name)(config)
        require(bool(value), f"config.{name} is empty; name the files or the checkpoint")
    check_shares(config.data.shares)
    names = [share_name(share) for share in config.data.shares]
    require(
        len(set(names)) == len(names),
        f"config.data.shares = {tuple(config.data.shares)} have the names {', '.join(names)}, of which "
        "some are the same; let shares differ within six digits",
    )


def _check_prompts(config: Any) -> None:
    """Prompts of all three kinds: what is measured last, said before the first update."""
    family = config.evaluate_chat.borderline_family
    sets = prompt_sets(read_prompts(config.evaluate_chat.prompts), family)
    require(
        all(sets),
        f"config.evaluate_chat.prompts has {len(sets.helpfulness)} prompts for helpfulness, "
        f"{len(sets.safety)} tagged is_safety and {len(sets.borderline)} of family {family!r}, which only "
        "look unsafe; all three are needed",
    )


def _check_models(config: Any) -> Template:
    """The template of the chats, once models are known to read the prompts, and reward models the answers."""
    scoring = config.evaluate_chat
    template = config.sft.template or None
    base = load(
        config.init_from,
        partitioner=open_mesh(scoring),
        template=template,
        with_params=False,
        **scoring.model,
    )
    load_judges(scoring, base, evaluate_chat.checked_prompts(scoring, base), with_params=False)
    return base.template


def write_mixtures(config: Any, workdir: Path, template: Template) -> None:
    """The safe dialogues of every share, and ``mixtures.json``: the number of dialogues of each kind."""
    helpful, safe = (
        _read(paths, config, template) for paths in (config.data.helpfulness, config.data.safety)
    )
    names = [share_name(share) for share in config.data.shares]
    subsets = dict(zip(names, nested_subsets(safe, config.data.shares, seed=config.data.seed), strict=True))
    for name, subset in subsets.items():
        rows = (dialogue_row(dialogue.messages, train_on=dialogue.train_on) for dialogue in subset)
        write_rows(workdir / "mixtures" / f"{name}.jsonl", rows)
    counts = {"helpful": len(helpful), "safe": {name: len(subset) for name, subset in subsets.items()}}
    write_json(workdir / "mixtures.json", counts)
    wait_for_all(f"mixtures {counts}")


def _read(paths: str, config: Any, template: Template) -> list[TrainingDialogue]:
    return list(
        read_dialogues(
            split_paths(paths),
            template=template,
            train_on=config.sft.data.train_on,
            on_bad_line=config.sft.data.on_bad_line,
        )
    )


def fine_tune(config: Any, workdir: Path, name: str) -> str:
    """The model of one share: section 3.1 from the pretrained model on, whatever the size of its mixture."""
    files = [config.data.helpfulness]
    if read_json(workdir / "mixtures.json")["safe"][name]:
        files.append(str(workdir / "mixtures" / f"{name}.jsonl"))
    changes = {"init_from": config.init_from, "data.dialogues": ",".join(files)}
    return run_stage(workdir, f"sft/{name}", sft.run, stage_config(config, "sft", **changes))


def evaluate(config: Any, workdir: Path, models: dict[str, str]) -> None:
    """Answers of all models to the same prompts, compared with the first."""
    changes = {
        "versions": tuple(f"{name}={path}" for name, path in models.items()),
        "reference": next(iter(models)),
    }
    stage = stage_config(config, "evaluate_chat", **changes)
    run_stage(workdir, "evaluation", evaluate_chat.run, stage)


if __name__ == "__main__":
    launch_experiment(run)
