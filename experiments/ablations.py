"""What a choice of architecture does: variants that differ in nothing else (Llama 2, A.2.1; ABL-1 to ABL-3).

python -m experiments.ablations --config=configs/ablations.py:attention,size=34b --workdir=DIR \
    [--config.FIELD=VALUE ...]

See ``configs/ablations.py``. Text and tokenizer are prepared once; each variant is pretrained on equally many
tokens of it, and reads the same held-out documents. With one order of the documents for all, variants of one
context see the same batches; those of different contexts cut the same text into other rows. A killed run
continues where it stopped.

    RUN/tokenizer, RUN/corpus    of all variants
    RUN/variants/GQA             the model (``pretrain``)
    RUN/heldout/GQA.jsonl        its loss in every held-out document
    RUN/benchmarks/GQA           its results in ``config.tasks`` (``evaluate_benchmarks``)
    RUN/report.md                see ``ablations_report.py``
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import ablations_report, pretrain
from experiments.ablation_readings import Reading, check_heldout, heldout_path, read_heldout, readings
from experiments.ablation_results import num_tokens, variant_changes
from experiments.models import open_mesh
from experiments.settings import keep_settings
from experiments.stages import run_stage, stage_config
from llama2_jax.config import keep_config, require, require_choice
from llama2_jax.data.corpus import TokenisedCorpus
from llama2_jax.launch import launch_experiment
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.sharding.processes import files_at_rest
from llama2_jax.workdir import mark_done, open_workdir

SHARED = ("model.vocab_size", "data.tokenizer", "data.tokenizer_dialogues", "data.sources", "data.heldout")


def run(config: Any, workdir: Path) -> None:
    """Run or continue all variants in ``workdir``, then write ``report.md``."""
    variants = variant_configs(config)
    check_config(config, variants)
    contexts = {name: variant.data.sequence_length for name, variant in variants.items()}
    if open_workdir(config, workdir):
        return
    text = pretrain.open_text(config.pretrain, workdir)
    assert text.heldout is not None  # its name was required
    check_heldout(text.heldout, contexts)
    tasks = open_tasks(config)
    keep_config(config, workdir)
    for name, variant in variants.items():
        run_stage(workdir, f"variants/{name}", pretrain.run, on_shared_text(variant, workdir, text))
    read = readings(contexts)
    for name, reading in read.items():
        measure(config, workdir, name, reading, text.heldout, longest=max(contexts.values()))
    for name in variants if tasks else ():
        evaluate(config, workdir, name, tasks)
    ablations_report.write_report(workdir, config, variants, read, tasks=tasks)
    mark_done(workdir)
    print(f"The report is {workdir / 'report.md'}")


def variant_configs(config: Any) -> dict[str, ConfigDict]:
    """Of every variant, the baseline first: a ConfigDict does not keep the order of its keys.

    Raises:
      ConfigError: see ``variant_config``, or there is no such baseline.
    """
    require_choice("config.baseline", config.baseline, config.variants)
    others = [name for name in config.variants if name != config.baseline]
    return {name: variant_config(config, name) for name in (config.baseline, *others)}


def variant_config(config: Any, name: str) -> ConfigDict:
    """``config.pretrain`` with the changes of one variant.

    Raises:
      ConfigError: a field that is not there, or one that variants share.
    """
    changes = variant_changes(config, name)
    known = set(config.pretrain.to_dict())
    for path in changes:
        section, _, field = path.partition(".")
        require(
            section in known and field in config.pretrain[section],
            f"config.variants.{name} changes {path}, which config.pretrain does not have",
        )
        require(
            path not in SHARED,
            f"config.variants.{name} changes {path}; variants share text and vocabulary: set it in "
            "config.pretrain",
        )
    return stage_config(config, "pretrain", **changes)


def check_config(config: Any, variants: dict[str, ConfigDict]) -> None:
    """What can be said before anything is read."""
    require(len(variants) > 1, f"config.variants has {len(variants)} variant(s); compare at least two")
    require(
        bool(config.pretrain.data.heldout),
        "config.pretrain.data.heldout is empty; name text that variants are compared on",
    )
    require(config.batch_size > 0, f"config.batch_size = {config.batch_size} must be positive")
    for variant in variants.values():
        pretrain.check_config(variant)
    budgets = {name: num_tokens(variant) for name, variant in variants.items()}
    require(
        len(set(budgets.values())) == 1,
        "variants must see equally many tokens, but num_steps * batch_size * sequence_length is "
        + ", ".join(f"{budget:,} of {name}" for name, budget in budgets.items())
        + "; change them under config.pretrain or config.variants",
    )
    task_shots(config.tasks)


def task_shots(tasks: Any) -> dict[str, int]:
    """Names of tasks and their examples before each question.

    Raises:
      ConfigError: a text that is not TASK=SHOTS, or a task that stands twice.
    """
    shots: dict[str, int] = {}
    for text in tasks:
        name, _, number = text.partition("=")
        require(
            bool(name) and number.isdigit(),
            f"config.tasks has {text!r}; each must be TASK=SHOTS, such as gsm8k=8",
        )
        require(name not in shots, f"config.tasks names {name!r} twice; names must be unique")
        shots[name] = int(number)
    return shots


def open_tasks(config: Any) -> dict[str, Any]:
    """The runs of ``evaluate_benchmarks``, once their data is known to be there: before days of training.

    Raises:
      ConfigError: an unknown task, data that cannot be fetched, or one that executes what a model writes.
    """
    shots = task_shots(config.tasks)
    if not shots:
        return {}
    from experiments import evaluate_benchmarks as benchmarks  # needs the extra

    runs = {name: benchmarks.Run((name,), number) for name, number in shots.items()}
    benchmarks.open_tasks(runs, benchmarks.Asking())
    return runs


def on_shared_text(variant: ConfigDict, workdir: Path, text: pretrain.Text) -> ConfigDict:
    """The variant's config with the text and the tokenizer that were prepared for all."""
    variant = variant.copy_and_resolve_references().unlock()
    variant.data.tokenizer = str(workdir / "tokenizer")
    variant.data.tokenizer_dialogues = ""
    for name, corpus in text.corpora.items():
        variant.data.sources[name].path = str(corpus.folder)
    assert text.heldout is not None
    variant.data.heldout = str(text.heldout.folder)
    return variant.lock()


def open_variant(config: Any, workdir: Path, name: str) -> LoadedModel:
    """A trained variant, computed as it was trained."""
    model = config.pretrain.model
    return load(
        workdir / "variants" / name,
        partitioner=open_mesh(config.pretrain),
        compute_dtype=model.compute_dtype,
        attention_impl=model.attention_impl,
    )


def measure(
    config: Any, workdir: Path, name: str, reading: Reading, heldout: TokenisedCorpus, *, longest: int
) -> None:
    """The held-out losses of one reading, unless they are there."""
    path = heldout_path(workdir, name)
    with files_at_rest(workdir):
        is_there = path.exists()
    if not is_there:
        print(f"== held-out text, {name}", flush=True)
        loaded = open_variant(config, workdir, reading.variant)
        read_heldout(
            path, loaded, heldout, window=reading.window, longest=longest, batch_size=config.batch_size
        )


def evaluate(config: Any, workdir: Path, name: str, tasks: dict[str, Any]) -> None:
    """The tasks of lm_eval that one variant has no results of."""
    from experiments import evaluate_benchmarks as benchmarks

    output = workdir / "benchmarks" / name
    keep_settings(output, {"checkpoint": name, "tasks": list(config.tasks)}, results="*/results.json")
    how = benchmarks.Asking(batch_size=config.batch_size)
    benchmarks.evaluate(output, tasks, lambda: open_variant(config, workdir, name), how)


if __name__ == "__main__":
    launch_experiment(run)
