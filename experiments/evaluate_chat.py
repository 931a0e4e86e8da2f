"""Versions of a chat model side by side (Llama 2, sections 3.4.1, 3.4.2; Figures 11 and 20).

python -m experiments.evaluate_chat --config=configs/evaluate_chat.py:paper --workdir=DIR \
    [--config.FIELD=VALUE ...]

See ``configs/evaluate_chat.py``. Each version answers each prompt once; answers and their scores are
kept in ``answers/NAME.jsonl``, an archive, so that no version is sampled twice. The numbers are in
``results.json``, each with its 95 % interval.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.chat_judges import (
    JUDGES,
    REWARD_MODELS,
    TRACK_OF_AXIS,
    TRUTH,
    by_model,
    by_reward_models,
    by_truth,
    share,
)
from experiments.chat_report import write_chat_report
from experiments.chat_versions import PromptSets, Versions, prompt_sets
from experiments.models import load_judges, load_scorers, open_mesh
from llama2_jax.config import (
    ConfigError,
    UserError,
    build,
    keep_config,
    named_paths,
    require,
    require_choice,
    write_json,
)
from llama2_jax.data.prompts import Prompt, read_prompts
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.launch import launch_experiment
from llama2_jax.pretrained import LoadedModel, for_decoding, load
from llama2_jax.rlhf.annotator.world import identify
from llama2_jax.rlhf.archive import Sample, checked_rows, draw, rescore
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.workdir import mark_done, open_workdir

TRUTHS = ("none", "simulated")


def run(config: Any, workdir: Path) -> None:
    """Sample, judge, report; continues or returns at once if it is done."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    paths = named_paths(config.versions, field="config.versions")
    prompts = _read_prompts(config)
    sets = prompt_sets(prompts, config.borderline_family)
    require(
        bool(sets.axes), f"all {len(prompts)} prompts are of family {config.borderline_family!r}; add others"
    )
    judged_axes = sets.axes if config.judge.path or config.truth != "none" else _axes_with_model(config)
    require(
        bool(sets.axes.keys() & set(judged_axes)),
        f"config.prompts has prompts for {', '.join(sets.axes)} alone, which nobody judges; name "
        "config.safety_rm, or a chat model in config.judge.path",
    )
    for name, path in paths.items():  # all before the first has answered
        _check_version(config, name, path, prompts)
    partitioner = open_mesh(config)
    keep_config(config, workdir)
    versions = {
        name: scored_answers(config, workdir / "answers" / f"{name}.jsonl", path, prompts, partitioner)
        for name, path in paths.items()
    }
    judges = judged(config, versions, sets, partitioner)
    results = {
        "reference": config.reference,
        "prompts": {name: len(indices) for name, indices in sets._asdict().items()},
        "finished": {name: share([s.stopped for s in answers]) for name, answers in versions.items()},
        "judges": judges,
    }
    write_json(workdir / "results.json", results)
    write_chat_report(workdir, versions, sets, results, num_transcripts=config.num_transcripts)
    mark_done(workdir)


def judged(
    config: Any, versions: Versions, sets: PromptSets, partitioner: Partitioner
) -> dict[str, dict[str, Any]]:
    """What each judge says of each version."""
    judges = {}
    if config.helpfulness_rm:
        judges[REWARD_MODELS] = by_reward_models(versions, sets, config.reference)
    if config.judge.path:
        judge = load(config.judge.path, partitioner=partitioner, **config.model)
        judges[config.judge.name] = by_model(
            judge, versions, sets, config.reference, batch_size=config.judge.batch_size
        )
    if config.truth == "simulated":
        judges[TRUTH] = by_truth(versions, sets, config.reference)
    return judges


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    require(bool(config.prompts), "config.prompts is empty; name the file")
    require(
        bool(config.helpfulness_rm or config.judge.path or config.truth != "none"),
        "nobody judges: name reward models in config.helpfulness_rm and config.safety_rm, or a chat model in "
        "config.judge.path",
    )
    require(
        bool(config.helpfulness_rm or not config.safety_rm),
        "config.helpfulness_rm is empty beside config.safety_rm; name it too, or neither",
    )
    require_choice("reference", config.reference, named_paths(config.versions, field="config.versions"))
    require_choice("truth", config.truth, TRUTHS)
    require(
        config.judge.name not in JUDGES,
        f"config.judge.name = {config.judge.name!r} is another judge's; give another name",
    )
    if config.judge.path:
        checkpoint_kind(config.judge.path)  # said now, not after all versions have answered
    build(SamplingConfig, config.sampling, name="sampling")


def checked_prompts(config: Any, version: LoadedModel) -> list[Prompt]:
    """The prompts, which the version, also without parameters, can answer (``checked_rows``)."""
    prompts = _read_prompts(config)
    checked_rows(version, prompts)
    return prompts


def _read_prompts(config: Any) -> list[Prompt]:
    prompts = read_prompts(config.prompts)
    if config.truth == "simulated":
        for prompt in prompts:  # the truth knows the simulated world only
            identify(prompt.messages)
    return prompts


def _check_version(config: Any, name: str, path: str, prompts: Sequence[Prompt]) -> None:
    """What can be said of a version without its parameters."""
    version = load(path, with_params=False, **config.model)
    try:
        checked_rows(version, prompts)
        load_judges(config, version, prompts, with_params=False)
    except UserError as error:
        raise ConfigError(f"version {name} of config.versions: {error}") from error


def _axes_with_model(config: Any) -> list[str]:
    return [axis for axis, track in TRACK_OF_AXIS.items() if config[f"{track}_rm"]]


def scored_answers(
    config: Any, archive: Path, path: str, prompts: Sequence[Prompt], partitioner: Partitioner
) -> list[Sample]:
    """One answer of a version to every prompt, with the scores of the reward models if there are any."""
    version = load(path, partitioner=partitioner, **config.model)
    scorers = load_scorers(config, version, prompts)
    version = for_decoding(version)  # by the same name: its weights for training are not needed any more
    answers = draw(
        archive,
        version,
        prompts,
        build(SamplingConfig, config.sampling, name="sampling"),
        round=0,
        num_samples=1,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    if not scorers:
        return answers
    return rescore(
        archive,
        answers,
        scorers,
        version.require_tokenizer(),
        version.template,
        threshold=config.reward.threshold,
        batch_size=config.reward.batch_size,
    )


if __name__ == "__main__":
    launch_experiment(run)
