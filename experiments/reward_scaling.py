"""Reward models of several sizes, each trained on more and more comparisons (Llama 2, Figure 6; RM-14).

python -m experiments.reward_scaling --config=configs/reward_scaling.py:paper --workdir=DIR \
    [--config.FIELD=VALUE ...]

See ``configs/reward_scaling.py``. Every amount holds the smaller ones, every model reads the same files with
the same hyper-parameters, and all are tested on the same held-out pairs, of which no prompt is trained on. A
killed run continues where it stopped.

    RUN/amounts/07.jsonl     the comparisons up to batch 7 (of shares 25%.jsonl); heldout.jsonl
    RUN/amounts.json         how many, of all and of the model's own track
    RUN/rm/13B/07            the reward model of a size and an amount
    RUN/report.md            see ``reward_scaling_report.py``
    RUN/world                models and comparisons of the simulated world (variant tiny)
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import annotate, pretrain, reward_model, reward_scaling_report, sft
from experiments.stages import run_stage, stage_config
from llama2_jax.config import ConfigError, keep_config, named_paths, require, write_json
from llama2_jax.data.chat import LLAMA2, get_template
from llama2_jax.data.nested import check_shares, nested_subsets, share_name
from llama2_jax.data.preferences import (
    Preference,
    Split,
    read_preferences,
    split_by_prompt,
    write_preferences,
)
from llama2_jax.data.records import split_paths
from llama2_jax.evals.reward_accuracy import prompts_of
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.launch import launch_experiment
from llama2_jax.sharding.processes import files_at_rest, wait_for_all
from llama2_jax.workdir import is_done, mark_done, open_workdir


def run(config: Any, workdir: Path) -> None:
    """Run or continue all stages in ``workdir``, then write ``report.md``."""
    given = _check_config(config)
    if not is_done(workdir):  # a finished run needs them no more
        for path in given.values():
            checkpoint_kind(path)  # refuses what is none now, and not after hours
    if open_workdir(config, workdir):
        return
    keep_config(config, workdir)
    models = {**make_models(config, workdir), **given}
    with files_at_rest(workdir):
        has_amounts = (workdir / "amounts.json").exists()
    if not has_amounts:
        write_amounts(config, workdir, read(config, workdir))
    amounts = reward_scaling_report.read_amounts(workdir)
    for name, path in models.items():
        for amount in amounts:
            train(config, workdir, name, path, amount)
    reward_scaling_report.write_report(workdir, list(models))
    mark_done(workdir)
    print(f"The report is {workdir / 'report.md'}")


def _check_config(config: Any) -> dict[str, str]:
    """What can be said before anything is read; returns the models that the config names."""
    given = named_paths(config.models, field="config.models")
    names = [*config.shapes, *given]
    require(bool(names), "config.models is empty; name chat models, such as ('7B=PATH','13B=PATH')")
    both = ", ".join(sorted(given.keys() & set(config.shapes)))
    require(not both, f"config.models and config.shapes both have {both}; give each a name of its own")
    data = config.data
    has_files = bool(data.preferences) or "annotate" in config
    require(has_files, "config.data.preferences is empty; name the files to learn from")
    require(
        not (data.shares and data.batches),
        "config.data.shares and config.data.batches are both set; clear one",
    )
    if data.shares:
        check_shares(data.shares)
        require(
            data.shares[0] > 0,
            f"config.data.shares = {tuple(data.shares)}; of 0 nothing is learned, leave it out",
        )
    require(
        list(data.batches) == sorted(set(data.batches)),
        f"config.data.batches = {tuple(data.batches)} must rise",
    )
    for name in learning_rates(config):
        require(
            name in names,
            f"config.learning_rates names {name!r}; config.models has {', '.join(names)}: leave it out",
        )
    return given


def learning_rates(config: Any) -> dict[str, float]:
    """Peak learning rates of the models that have their own."""
    found = named_paths(config.learning_rates, field="config.learning_rates")
    try:
        return {name: float(text) for name, text in found.items()}
    except ValueError as error:
        raise ConfigError(f"config.learning_rates = {tuple(config.learning_rates)}: {error}") from error


def make_models(config: Any, workdir: Path) -> dict[str, str]:
    """The chat models of ``config.shapes``, as name -> checkpoint."""
    made = {}
    for name, shape in config.shapes.items():
        changes = {f"model.{field}": value for field, value in shape.items()}
        base = stage_config(config, "pretrain", **changes)
        path = run_stage(workdir, f"world/{name}/pretrain", pretrain.run, base)
        tuned = stage_config(config, "sft", init_from=path)
        made[name] = run_stage(workdir, f"world/{name}/sft", sft.run, tuned)
    return made


def read(config: Any, workdir: Path) -> Split:
    """All comparisons to train on, and those of the model's own track that are held out.

    Raises:
      ConfigError: nothing of the own track is held out, or a prompt of it is trained on as well.
    """
    data = config.data
    paths, heldout = data.preferences, data.heldout
    if not paths:
        made = run_stage(workdir, "world/preferences", annotate.run, stage_config(config, "annotate"))
        paths, heldout = f"{made}/preferences_train.jsonl", f"{made}/preferences_heldout.jsonl"
    open_files = functools.partial(
        read_preferences,
        template=get_template(config.reward_model.template or LLAMA2.name),
        on_bad_line=data.on_bad_line,
    )
    pairs = open_files(split_paths(paths))
    if heldout:
        split = Split(pairs, open_files(split_paths(heldout)))
    else:
        split = split_by_prompt(pairs, heldout_fraction=data.heldout_fraction, seed=data.seed)
    own = [pair for pair in split.heldout if pair.track == config.reward_model.kind]
    require(
        bool(own),
        f"none of {len(split.heldout)} held-out comparisons is of the {config.reward_model.kind} track; name "
        "others in config.data.heldout or raise config.data.heldout_fraction",
    )
    trained_on = set(prompts_of(split.train))
    shared = sum(prompt in trained_on for prompt in prompts_of(own))
    require(
        shared == 0,
        f"{shared} of {len(own)} held-out comparisons are of prompts that are trained on as well; take them "
        "out, or clear config.data.heldout to have them split by prompt",
    )
    return split._replace(heldout=own)


def nested_amounts(config: Any, pairs: Sequence[Preference]) -> dict[str, list[Preference]]:
    """The comparisons of each amount, in the order given; every amount holds those before it.

    Raises:
      ConfigError: batches that are not there or all the same, or an amount without more of the own track than
        the one before it.
    """
    data = config.data
    if data.shares:
        subsets = nested_subsets(pairs, data.shares, seed=data.seed)
        amounts = dict(zip(map(share_name, data.shares), subsets, strict=True))
    else:
        known = sorted({pair.batch for pair in pairs})
        require(
            len(known) > 1,
            f"all {len(pairs)} comparisons are of batch {known[0]}; set config.data.shares, as (0.5,1.0)",
        )
        missing = sorted(set(data.batches) - set(known))
        require(not missing, f"config.data.batches has {missing}; the data has {known}, leave the others out")
        amounts = {
            f"{last:02d}": [pair for pair in pairs if pair.batch <= last] for last in data.batches or known
        }
    _check_amounts(amounts, config.reward_model.kind)
    return amounts


def _check_amounts(amounts: dict[str, list[Preference]], track: str) -> None:
    """Accuracy is shown over the comparisons of the own track, so they must become more."""
    before = 0
    for name, pairs in amounts.items():
        own = sum(pair.track == track for pair in pairs)
        require(
            own > before,
            f"amount {name} has {own} comparison(s) of the {track} track, the amount before it {before}; "
            "leave out one of them",
        )
        before = own


def write_amounts(config: Any, workdir: Path, split: Split) -> None:
    """The files that models are trained and tested on, and ``amounts.json``: how many each has."""
    folder = workdir / "amounts"
    amounts = nested_amounts(config, split.train)
    write_preferences(folder / "heldout.jsonl", split.heldout)
    for name, pairs in amounts.items():
        write_preferences(folder / f"{name}.jsonl", pairs)
    counts = {
        name: {"all": len(pairs), "own": sum(pair.track == config.reward_model.kind for pair in pairs)}
        for name, pairs in amounts.items()
    }
    write_json(workdir / "amounts.json", {"amounts": counts, "heldout": len(split.heldout)})
    wait_for_all(f"amounts {counts}")


def train(config: Any, workdir: Path, name: str, path: str, amount: str) -> None:
    """The reward model of one size and one amount."""
    changes: dict[str, Any] = {
        "init_from": path,
        "data.preferences": str(workdir / "amounts" / f"{amount}.jsonl"),
        "data.heldout": str(workdir / "amounts" / "heldout.jsonl"),
    }
    if name in learning_rates(config):
        changes["optimizer.learning_rate"] = learning_rates(config)[name]
    stage = stage_config(config, "reward_model", **changes)
    run_stage(workdir, f"rm/{name}/{amount}", reward_model.run, stage)


if __name__ == "__main__":
    launch_experiment(run)
