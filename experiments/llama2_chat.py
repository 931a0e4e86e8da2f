"""The whole recipe: raw text to a base model, a chat model, and RLHF-V1 to V5 (Llama 2, Figure 4).

python -m experiments.llama2_chat --config=configs/llama2_chat.py:tiny --workdir=DIR \
    [--config.FIELD=VALUE ...]

Every stage is a program of its own with a folder of its own; this one runs them in order and joins
what they report. A killed run continues where it stopped. See ``configs/llama2_chat.py``.

Differs from the paper: one model size, so rejection sampling is done with the model itself (RS-4); the
people are those that ``config.annotate`` names, simulated in the variants that run by themselves.
"""

import operator
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import (
    annotate,
    context_distillation,
    evaluate_chat,
    evaluate_gatt,
    gatt,
    ppo,
    pretrain,
    rejection_sampling,
    reward_model,
    sft,
)
from experiments.chat_versions import prompt_sets
from experiments.recipe_report import write_report
from experiments.stages import check_done_stage, require_no_comma, run_stage, stage_config
from llama2_jax.config import ConfigError, UserError, build, keep_config, require, require_choice
from llama2_jax.data.chat import get_template
from llama2_jax.data.preferences import TRACKS
from llama2_jax.data.prompts import read_prompts
from llama2_jax.data.records import DataError, expand_paths, split_paths
from llama2_jax.data.tokenizer import load_tokenizer
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.launch import launch_experiment
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.workdir import is_done, mark_done, open_workdir

TUNE_FROM = ("base", "first", "previous")
PROMPTED = (annotate, gatt, context_distillation, rejection_sampling, ppo, evaluate_chat, evaluate_gatt)
"""Stages that answer prompts of a file, each with ``checked_prompts(config, model)``."""


def run(config: Any, workdir: Path) -> None:
    """Run or continue all stages in ``workdir``, then write ``report.md``."""
    _check_config(config)
    if not is_done(workdir):  # a finished run needs them no more
        require_no_comma(workdir)
        _check_inputs(config)
        Rehearsal(config, workdir).run()
    if not open_workdir(config, workdir):
        keep_config(config, workdir)
        versions = Recipe(config, workdir).run()
        write_report(workdir, versions, config.reference)
        mark_done(workdir)
    newest = workdir / f"v{config.rounds}" / ("ppo" if config.rounds >= config.ppo_from_round else "sft")
    print(
        f"The chat model is in {newest}, the report in {workdir / 'report.md'}. Talk to it:\n"
        f"  .venv/bin/python -m experiments.chat --checkpoint={newest}"
    )


def _check_config(config: Any) -> None:
    """What can be said before anything is read."""
    require(config.rounds > 0, f"config.rounds = {config.rounds} must be positive")
    require_choice("config.tune_from", config.tune_from, TUNE_FROM)
    require(
        config.tune_from != "base" or config.init_from or not config.chat_from,
        f"config.tune_from is base, and the base of config.chat_from = {config.chat_from} is not named; name "
        "it in config.init_from, or set config.tune_from to first or previous",
    )
    require(
        not config.new_prompts or config.rejection_sampling.num_prompts > 0,
        "config.new_prompts asks for prompts of each round's own, but rejection_sampling.num_prompts = 0 "
        "takes all in every round; set how many a round takes",
    )


def _check_inputs(config: Any) -> None:
    """Files that a stage will want hours from now, while nothing has been done yet."""
    prompts = {}
    for name in _prompt_files(config):
        path = operator.attrgetter(name)(config)
        require(bool(path), f"config.{name} is empty; name a file of prompts")
        require(Path(path).is_file(), f"config.{name} = {path} is no file")
        prompts[name] = read_prompts(path)
    sets = prompt_sets(prompts["evaluate_chat.prompts"], config.evaluate_chat.borderline_family)
    require(
        len(sets.axes) == 2,
        f"config.evaluate_chat.prompts = {config.evaluate_chat.prompts} has {len(sets.helpfulness)} prompts "
        f"for helpfulness and {len(sets.safety)} tagged is_safety; the report needs both",
    )
    require(
        bool(config.chat_from or config.sft.data.dialogues),
        "config.sft.data.dialogues is empty; name files of dialogues, or a chat model in config.chat_from",
    )
    if config.init_from:
        checkpoint_kind(config.init_from)  # beside config.chat_from it is needed for the first tuning only
    skipped = prompts_before(config, config.rounds)
    rejection_sampling.choose_prompts(stage_config(config, "rejection_sampling", skip_prompts=skipped))
    if "context_distillation.prompts" in _prompt_files(config):
        context_distillation.adversarial_prompts(config.context_distillation.prompts)
    for name in _training_files(config):
        if path := operator.attrgetter(name)(config):
            try:
                expand_paths(split_paths(path))
            except DataError as error:
                raise ConfigError(f"config.{name}: {error}") from error


def _prompt_files(config: Any) -> list[str]:
    """Fields that must name a file of prompts."""
    names = ["annotate.prompts", "rejection_sampling.prompts", "evaluate_chat.prompts"]
    if 0 < config.gatt_after_round < config.rounds:
        names += ["gatt.prompts", "evaluate_gatt.prompts"]
    if 0 < config.distillation_round <= config.rounds:
        names += ["context_distillation.prompts"]
    if config.ppo_from_round <= config.rounds:
        names += ["ppo.prompts", "ppo.heldout_prompts"]
    return names


def _training_files(config: Any) -> list[str]:
    """Fields that may name files and patterns besides those that the rounds write."""
    trained = [f"{track}_rm" for track in TRACKS]
    if config.ppo_from_round <= config.rounds:
        trained.append("guard_rm")
    names = [f"{stage}.data.{field}" for stage in trained for field in ("public", "heldout", "answers")]
    return names if config.chat_from else [*names, "sft.data.dialogues", "sft.data.heldout"]


def first_chat_model(config: Any, workdir: Path) -> LoadedModel | None:
    """The SFT model without parameters, whose tokenizer, template and context all versions have.

    None while they are unknown, as a tokenizer is trained with the base model.
    """
    if config.chat_from or is_done(workdir / "sft"):
        return load(config.chat_from or workdir / "sft", with_params=False)
    template = config.sft.template or None
    if config.init_from or is_done(workdir / "pretrain"):
        return load(config.init_from or workdir / "pretrain", with_params=False, template=template)
    if path := config.pretrain.data.tokenizer:
        shape = build(ModelConfig, config.pretrain.model, name="pretrain.model")
        chat_format = get_template(template or "llama2")  # which pretrain notes
        return LoadedModel(shape, None, load_tokenizer(path), chat_format, Transformer(shape), "pretrain")
    return None


def prompts_before(config: Any, number: int) -> int:
    """How many prompts the rounds before this one sample for, where each has its own."""
    return (number - 1) * config.rejection_sampling.num_prompts if config.new_prompts else 0


class Recipe:
    """The stages in order. Paths of finished ones are all that is passed on."""

    def __init__(self, config: Any, workdir: Path) -> None:
        self.config, self.workdir = config, workdir
        self.preferences: list[str] = []  # training files of all rounds so far
        self.heldout: list[str] = []
        self.archives: list[str] = []
        self.extra_dialogues: list[str] = []  # Ghost Attention and context distillation
        self.made: list[str] = []  # folders of the stages so far that others are made from

    def run(self) -> dict[str, str]:
        """All stages; returns the versions of the chat model, oldest first, as name -> checkpoint."""
        base, first = self.config.init_from, self.config.chat_from
        if not base and not first:
            base = self.stage(pretrain, "pretrain", "pretrain")
            self.rehearse()  # again, as there is a tokenizer now
        if not first:
            first = self.stage(sft, "sft", "sft", init_from=base)
        versions = {"SFT": first}
        for number in range(1, self.config.rounds + 1):
            versions |= self.round(number, base, versions)
        self.evaluate(versions)
        return versions

    def round(self, number: int, base: str, versions: dict[str, str]) -> dict[str, str]:
        """RLHF-V``number``: preferences, both reward models, rejection sampling, from V5 on PPO (RS-1)."""
        config, folder = self.config, f"v{number}"
        (first, *_), (*_, newest) = versions.values(), versions.values()
        models = self.reward_models(number, versions)
        if 0 < config.gatt_after_round == number - 1:  # GATT-5
            path = self.stage(gatt, "gatt", f"{folder}/gatt", init_from=newest)
            self.keep_dialogues(path)
        if number == config.distillation_round:  # SAFE-1: after safety RLHF
            path = self.stage(
                context_distillation, "context_distillation", f"{folder}/context_distillation",
                init_from=newest, safety_rm=models["safety_rm"],
            )  # fmt: skip
            self.keep_dialogues(path)
        picks = self.stage(
            rejection_sampling, "rejection_sampling", f"{folder}/rejection_sampling",
            init_from=newest, round=number, archives=tuple(self.archives), **models,
            skip_prompts=prompts_before(config, number),
            **{"pick.rounds": "last" if number <= config.last_bag_until_round else "all"},
        )  # fmt: skip
        self.archives = [f"{picks}/archive.jsonl"]
        dialogues = [f"{picks}/dialogues.jsonl", *self.extra_dialogues]
        tuned = self.stage(
            sft, "rejection_sampling_sft", f"{folder}/sft",
            init_from={"base": base, "first": first, "previous": newest}[config.tune_from],
            **{"data.dialogues": ",".join(dialogues)},
        )  # fmt: skip
        if number < config.ppo_from_round:
            return {f"V{number}": tuned}
        guard = self.guard(folder, newest)
        policy = self.stage(ppo, "ppo", f"{folder}/ppo", init_from=tuned, guard_rm=guard, **models)
        return {f"V{number} (no PPO)": tuned, f"V{number}": policy}

    def rehearse(self) -> None:
        """Refuse what a later stage would, as far as that can be said by now."""
        Rehearsal(self.config, self.workdir).run()

    def keep_dialogues(self, folder: str) -> None:
        """Train on these from now on; none may have passed the gate of context distillation."""
        path = Path(folder) / "dialogues.jsonl"
        if path.stat().st_size:
            self.extra_dialogues.append(str(path))

    def reward_models(self, number: int, versions: dict[str, str]) -> dict[str, str]:
        """A batch of preferences from the newest models, and reward models trained on all so far."""
        names = [name for name in versions if "(no PPO)" not in name]
        previous = names[-2] if len(names) > 1 else ""
        changes = {
            "new.name": names[-1],
            "new.path": versions[names[-1]],
            "previous.name": previous or "none",
            "previous.path": versions.get(previous, ""),
            "collection.first_batch": 1 + (number - 1) * self.config.annotate.collection.num_batches,
        }
        batch = self.stage(annotate, "annotate", f"v{number}/preferences", **changes)
        self.preferences.append(f"{batch}/preferences_train.jsonl")
        self.heldout.append(f"{batch}/preferences_heldout.jsonl")
        models = {}
        for name in (f"{track}_rm" for track in TRACKS):
            others = self.config[name].data.heldout  # pairs from elsewhere that the config tests with
            models[name] = self.stage(
                reward_model, name, f"v{number}/{name}",
                init_from=versions[names[-1]],
                **{
                    "data.preferences": ",".join(self.preferences),
                    "data.heldout": ",".join([others, *self.heldout] if others else self.heldout),
                },
            )  # fmt: skip
        return models

    def guard(self, folder: str, newest: str) -> str:
        """A reward model on public preferences that nothing is trained on (RM-18); "" without any."""
        if not self.config.guard_rm.data.public:
            return ""
        return self.stage(reward_model, "guard_rm", f"{folder}/guard_rm", init_from=newest)

    def evaluate(self, versions: dict[str, str]) -> None:
        """All versions side by side, and instructions over turns before and after Ghost Attention."""
        last, made = f"v{self.config.rounds}", [*self.made]
        self.stage(
            evaluate_chat, "evaluate_chat", "evaluation",
            versions=tuple(f"{name}={path}" for name, path in versions.items()),
            reference=self.config.reference,
            **{f"{track}_rm": str(self.workdir / last / f"{track}_rm") for track in TRACKS},
        )  # fmt: skip
        self.made = made  # nothing is made from an evaluation
        after = self.config.gatt_after_round
        if 0 < after < self.config.rounds:
            models = {
                f"models.{name}": versions[f"V{n}"]
                for name, n in (("without", after), ("with_gatt", after + 1))
            }
            self.stage(evaluate_gatt, "evaluate_gatt", "gatt_evaluation", **models)

    def stage(self, program: ModuleType, section: str, folder: str, **changes: Any) -> str:
        """Run one program in its folder unless it is done; returns the folder."""
        config = stage_config(self.config, section, **changes)
        if is_done(self.workdir / folder):
            check_done_stage(self.workdir, folder, config, filled_in=changes, earlier=self.made)
        self.made.append(folder)
        return run_stage(self.workdir, folder, program.run, config)


class Rehearsal(Recipe):
    """The same stages without running them: what the last would refuse is said before the first."""

    def __init__(self, config: Any, workdir: Path) -> None:
        super().__init__(config, workdir)
        self.chat_model = first_chat_model(config, workdir)

    def stage(self, program: ModuleType, section: str, folder: str, **changes: Any) -> str:
        """Check what can be checked of a stage before anything is there; returns the folder."""
        config = stage_config(self.config, section, **changes)
        try:
            program.check_config(config)
            model = self.chat_model
            if program in PROMPTED and model is not None and not is_done(self.workdir / folder):
                program.checked_prompts(config, model)
        except UserError as error:
            raise ConfigError(f"config.{section}, for {folder}: {error}") from error
        return str(self.workdir / folder)

    def rehearse(self) -> None:
        """This is it."""

    def keep_dialogues(self, folder: str) -> None:
        """There are none yet."""


if __name__ == "__main__":
    launch_experiment(run)
