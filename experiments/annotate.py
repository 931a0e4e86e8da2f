"""Collecting human preferences: pairs of sampled answers, compared (Llama 2, section 3.2.1; PREF-1..6).

python -m experiments.annotate --config=configs/annotate.py:paper --workdir=DIR [--config.FIELD=VALUE ...]

See ``configs/annotate.py``. The new and the previous model answer prompts, an annotator compares:
simulated people, reward models, or people who fill in a sheet. ``pairs.jsonl`` holds what was sampled: a
killed run goes on with the batch it was in, and a filled sheet is read from the workdir alone, whatever has
become of the models and the prompts since.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from experiments.models import load_judge, open_mesh
from experiments.report import quote, table, write_report_file
from llama2_jax.answers import model_version, sample_answers
from llama2_jax.config import (
    ConfigError,
    build,
    changes,
    keep_config,
    read_json,
    require,
    require_choice,
    to_plain,
    write_json,
)
from llama2_jax.data.jsonl import read_rows, write_rows
from llama2_jax.data.preferences import (
    REJECTED_SAFE,
    TRACKS,
    Preference,
    Split,
    group_by,
    hold_out,
    rating_shares,
    split_by_prompt,
    statistics,
    write_preferences,
)
from llama2_jax.data.prompts import Prompt, read_prompts_to_train_on
from llama2_jax.data.shards import file_sha256
from llama2_jax.data.sheets import is_there
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer
from llama2_jax.files import write_text, writes
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch_experiment
from llama2_jax.pretrained import LoadedModel, for_decoding, load
from llama2_jax.rlhf.annotator import raters
from llama2_jax.rlhf.annotator.comparison import Annotator, Judgement
from llama2_jax.rlhf.annotator.file import INSTRUCTIONS, SKIP, read_sheet, write_sheet
from llama2_jax.rlhf.annotator.model import Score, model_annotator
from llama2_jax.rlhf.annotator.protocol import (
    CollectionConfig,
    Reply,
    SampledPair,
    SampleFunction,
    Variant,
    batch_prompts,
    collect,
    pair_from_row,
    pair_row,
    to_preference,
)
from llama2_jax.rlhf.annotator.world import identify
from llama2_jax.rlhf.archive import checked_rows
from llama2_jax.rlhf.reward_model import score_dialogues
from llama2_jax.sharding.processes import files_at_rest
from llama2_jax.workdir import mark_done, open_workdir

ANNOTATORS = ("simulated", "model", "file")


def run(config: Any, workdir: Path) -> None:
    """Write ``preferences_train.jsonl``, ``preferences_heldout.jsonl``, ``results.json``, ``report.md``."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    sheet = workdir / "sheet.csv"
    with files_at_rest(workdir):
        filled_in = config.annotator == "file" and is_there(sheet)
    if filled_in:
        pairs, dropped = pairs_of_sheet(config, workdir)
        judgements = read_sheet(sheet, [pair.comparison for pair in pairs])
        keep_config(config, workdir)
        conclude(config, workdir, pairs, dropped, judgements, load_tokenizer(workdir / "tokenizer"))
        return
    collection = build(CollectionConfig, config.collection, name="collection")
    prompts, asked = choose_prompts(config)
    paths = {one.name: one.path for one in (config.new, config.previous) if one.path}
    for path in paths.values():  # before hours of sampling
        checked_rows(load(path, with_params=False), asked)
    partitioner = open_mesh(config)
    models = {name: load(path, partitioner=partitioner, **config.model) for name, path in paths.items()}
    tokenizer = models[config.new.name].require_tokenizer()
    if config.annotator == "file":
        pairs, _ = sampled_pairs(config, workdir, prompts, models, collection)
        if writes():
            tokenizer.save(workdir / "tokenizer")
            write_text(workdir / "instructions.txt", INSTRUCTIONS)
            write_sheet(sheet, [pair.comparison for pair in pairs])
        print(f"{len(pairs)} comparisons are in {sheet}; fill it in (instructions.txt) and run this again")
        return
    annotate = make_annotator(config, models[config.new.name], asked)  # it may refuse: hours before
    pairs, dropped = sampled_pairs(config, workdir, prompts, models, collection)
    conclude(config, workdir, pairs, dropped, annotate([pair.comparison for pair in pairs]), tokenizer)


def conclude(
    config: Any,
    workdir: Path,
    pairs: Sequence[SampledPair],
    dropped: Counter[str],
    judgements: Sequence[Judgement | None],
    tokenizer: Tokenizer,
) -> None:
    """Write what the pairs were judged to be; the workdir is done."""
    judged = [(pair, one) for pair, one in zip(pairs, judgements, strict=True) if one is not None]
    dropped = dropped + Counter({SKIP: len(pairs) - len(judged)})  # a sum leaves out what is 0
    require(bool(judged), f"all {len(pairs)} comparisons in {workdir} were skipped; there is nothing to keep")
    preferences = [to_preference(pair, judgement, source=config.source) for pair, judgement in judged]
    split = split_by_prompt(preferences, heldout_fraction=config.heldout.fraction, seed=config.heldout.seed)
    write_preferences(workdir / "preferences_train.jsonl", split.train)
    write_preferences(workdir / "preferences_heldout.jsonl", split.heldout)
    results = describe(config, split, tokenizer)
    results["dropped"] = dict(dropped)
    if config.annotator == "simulated":
        comparisons = [pair.comparison for pair in pairs]
        results["agreement"] = raters.agreement(comparisons, build_raters(config))
    write_json(workdir / "results.json", results)
    write_report(workdir, results, preferences)
    mark_done(workdir)


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    require_choice("config.annotator", config.annotator, ANNOTATORS)
    require(bool(config.new.path), "config.new.path is empty; name the newest chat model")
    require(bool(config.prompts), "config.prompts is empty; name a file of prompts")
    require(
        not config.previous.path or config.new.name != config.previous.name,
        f"config.new.name and config.previous.name are both {config.new.name!r}; give two names",
    )
    build(CollectionConfig, config.collection, name="collection")
    build(SamplingConfig, config.sampling, name="sampling")
    if config.annotator == "simulated":
        build_raters(config)
    if config.annotator == "model":
        for name in (f"{track}_rm" for track in TRACKS):
            require(bool(config.judge[name]), f"config.judge.{name} is empty; name a trained reward model")


def checked_prompts(config: Any, model: LoadedModel) -> list[Prompt]:
    """The prompts of all batches of this run, which the model, also without parameters, can answer."""
    _, asked = choose_prompts(config)
    checked_rows(model, asked)
    return asked


def choose_prompts(config: Any) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of the file, and those of all batches of this run.

    Raises:
      ConfigError: too few, or none to hold out, or one that simulated people do not know.
    """
    prompts = read_prompts_to_train_on(config.prompts)
    asked = asked_prompts(prompts, build(CollectionConfig, config.collection, name="collection"))
    if config.annotator == "simulated":
        for prompt in asked:  # they know the simulated world only
            identify(prompt.messages)
    heldout = {"heldout_fraction": config.heldout.fraction, "seed": config.heldout.seed}
    hold_out(asked, [one.messages for one in asked], **heldout, what="prompt")
    return prompts, asked


def asked_prompts(prompts: Sequence[Prompt], collection: CollectionConfig) -> list[Prompt]:
    """Those of all batches of this run."""
    batches = collection.batches
    end = collection.prompts_before(batches.stop)
    if end > len(prompts):
        logging.warning(
            "batches %d to %d end with prompt %d of a file of %d, which begins again",
            batches.start, batches.stop - 1, end, len(prompts),
        )  # fmt: skip
    return [prompt for batch in batches for prompt in batch_prompts(prompts, collection, batch)]


def pairs_of_sheet(config: Any, workdir: Path) -> tuple[list[SampledPair], Counter[str]]:
    """The pairs that people were asked about, and how many were dropped before.

    Raises:
      ConfigError: they were sampled in another way, or from models of other names.
    """
    note = read_json(workdir / "pairs.json")
    made_from = note["made_from"]
    names = [one.name for one in (config.new, config.previous) if one.path]
    lines = changes(
        _sampled_by(made_from) | {"names": list(made_from["models"])}, _sampled_by(config) | {"names": names}
    )
    require(
        not lines,
        f"{workdir / 'sheet.csv'} was made with another config:"
        + "".join(f"\n  {line}" for line in lines)
        + "\nundo the change, and collect further batches in another --workdir",
    )
    pairs = [pair_from_row(row) for row in read_rows(workdir / "pairs.jsonl")]
    return pairs, Counter(note["dropped"])


def _sampled_by(sections: Any) -> dict[str, Any]:
    """Of a config or of what pairs were made from."""
    return {name: to_plain(sections[name]) for name in ("collection", "sampling")}


def sampled_pairs(
    config: Any,
    workdir: Path,
    prompts: Sequence[Prompt],
    models: dict[str, LoadedModel],
    collection: CollectionConfig,
) -> tuple[list[SampledPair], Counter[str]]:
    """The pairs of all batches, and how many were dropped; batches in ``pairs.jsonl`` are taken from there.

    Raises:
      ConfigError: it was sampled with another config, or no pair can be compared.
    """
    path, note = workdir / "pairs.jsonl", workdir / "pairs.json"
    made_from = {
        **_sampled_by(config),
        "models": {name: model_version(model) for name, model in models.items()},
        "prompts": file_sha256(config.prompts),
    }
    with files_at_rest(path):
        known = _read_note(path, note, made_from)
        # a run killed between the two files left pairs that the note does not know of
        rows = map(pair_from_row, read_rows(path) if note.exists() else [])
        pairs = [pair for pair in rows if pair.batch <= known["last_batch"]]
    keep_config(config, workdir)
    dropped = Counter(known["dropped"])
    batches = [batch for batch in collection.batches if batch > known["last_batch"]]
    if not batches:  # the models need not be laid out for sampling
        return pairs, dropped
    sample = make_sampler(config, {name: for_decoding(model) for name, model in models.items()})
    template = models[config.new.name].template
    for batch in batches:
        found = collect(prompts, list(models), sample, collection, batch=batch, template=template)
        pairs += found.pairs
        dropped += found.dropped
        require(
            bool(pairs),
            f"no pair of answers can be compared ({dict(dropped)}); raise config.sampling.max_new_tokens or "
            "config.collection.temperatures, or train the model longer",
        )
        write_rows(path, (pair_row(pair) for pair in pairs))
        write_json(note, {"made_from": made_from, "dropped": dict(dropped), "last_batch": batch})
    return pairs, dropped


def _read_note(path: Path, note: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    """What is known of the pairs in ``path``."""
    if not note.exists():
        return {"dropped": {}, "last_batch": -1}
    known = read_json(note)
    if known["made_from"] != made_from:
        raise ConfigError(
            f"{path} was sampled with another config or other prompts; use another --workdir, undo the "
            f"change, or delete it and {note} to sample again"
        )
    return known


def make_sampler(config: Any, models: dict[str, LoadedModel]) -> SampleFunction:
    """How the protocol gets answers."""

    def sample(variant: Variant, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Reply]:
        settings = {**config.sampling, "temperature": variant.temperature}
        answers = sample_answers(
            models[variant.model],
            [prompt.messages for prompt in prompts],
            build(SamplingConfig, settings, name="sampling"),
            seeds=seeds,
            batch_size=config.batch_size,
        )
        return [Reply(answer.text.strip(), answer.stopped) for answer in answers]

    return sample


def make_annotator(config: Any, policy: LoadedModel, prompts: Sequence[Prompt]) -> Annotator:
    """Who compares answers of the policy to these prompts, of those who are no people."""
    if config.annotator == "simulated":
        return raters.simulated(build_raters(config))
    scores = {track: make_score(config, track, policy, prompts) for track in TRACKS}
    return model_annotator(**scores, thresholds=config.judge.thresholds, annotator_id=config.judge.name)


def build_raters(config: Any) -> raters.RatersConfig:
    """The simulated people of the config."""
    return build(raters.RatersConfig, config.raters, name="raters")


def make_score(config: Any, kind: str, policy: LoadedModel, prompts: Sequence[Prompt]) -> Score:
    """The scores of one of the judging reward models."""
    name = f"{kind}_rm"
    prompts = [prompt for prompt in prompts if prompt.is_safety == (kind == "safety")]  # it judges no others
    loaded = load_judge(config, policy, config.judge[name], kind, prompts, field=f"config.judge.{name}")
    return lambda dialogues: score_dialogues(loaded, dialogues, batch_size=config.batch_size)


def describe(config: Any, split: Split, tokenizer: Tokenizer) -> dict[str, Any]:
    """Counts and shares per batch and track, as in Table 26 and PREF-4, -10: of the pairs that are used."""
    collected = [*split.train, *split.heldout]
    preferences = [pair for pair in collected if pair.safety != REJECTED_SAFE]
    heldout = Counter(pair.batch for pair in split.heldout if pair.safety != REJECTED_SAFE)
    batches = {
        str(batch): {
            **statistics(pairs, tokenizer)._asdict(),
            "heldout": heldout[batch],
            "ratings": rating_shares(pairs),
        }
        for batch, pairs in group_by(preferences, lambda pair: pair.batch).items()
    }
    safety = Counter(pair.safety for pair in preferences if pair.safety is not None)
    both = [pair for pair in preferences if pair.chosen_model != pair.rejected_model]
    wins = sum(pair.chosen_model == config.new.name for pair in both)
    return {
        "batches": batches,
        "tracks": dict(Counter(pair.track for pair in preferences)),
        "ratings": rating_shares(preferences),
        "safety_bins": {name: count / safety.total() for name, count in sorted(safety.items())},
        "excluded": {REJECTED_SAFE: len(collected) - len(preferences)},
        "new_model_preferred": wins / len(both) if both else None,
    }


def write_report(workdir: Path, results: dict[str, Any], preferences: Sequence[Preference]) -> None:
    """``report.md`` for people."""
    lines = ["# Preferences", "", "Llama 2, section 3.2.1.", "", *_batch_table(results["batches"]), ""]
    shares = {
        **results["ratings"],
        **results["safety_bins"],
        "new model preferred": results["new_model_preferred"],
    }
    shares["agreement of two raters"] = results.get("agreement")
    rows = [(name.replace("_", " "), f"{share:.1%}") for name, share in shares.items() if share is not None]
    lines += table(("share", ""), rows)
    counts = {**results["excluded"], **results["dropped"]}
    lines += ["", f"Left out: {', '.join(f'{name} {count}' for name, count in counts.items())}.", ""]
    for pair in preferences[:5]:
        lines += [f"- {quote(pair.messages[-1].content)}"]
        lines += [f"  - chosen ({pair.rating}): {quote(pair.chosen)}"]
        lines += [f"  - rejected: {quote(pair.rejected)}"]
    write_report_file(workdir, lines)


def _batch_table(batches: dict[str, dict[str, Any]]) -> list[str]:
    header = ("batch", "comparisons", "held out", "turns", "tokens/example", "prompt", "response")
    lengths = ("tokens_per_example", "tokens_per_prompt", "tokens_per_response")
    rows = [
        (
            batch,
            f"{found['comparisons']:,}",
            f"{found['heldout']:,}",
            f"{found['turns']:.2f}",
            *(f"{found[name]:.1f}" for name in lengths),
        )
        for batch, found in batches.items()
    ]
    return table(header, rows)


if __name__ == "__main__":
    launch_experiment(run)
