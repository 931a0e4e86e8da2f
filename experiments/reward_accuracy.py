"""Accuracy of reward models, ours and others, on sets of human comparisons (Llama 2, Tables 7 and 8; RM-13).

python -m experiments.reward_accuracy --set=own=heldout.jsonl --set=Harmless=harmless.jsonl \
    --reward_model=Helpfulness=WORKDIR --reward_model=Other=FOLDER --judge=Chat=CHECKPOINT \
    --scores=DeBERTa=SCORES --output=DIR

Sets are files of ``llama2_jax/data/preferences.py``; ``tools.prepare_preferences`` makes them of public ones.
Each model reads every comparison in its own chat format:

    --reward_model  a workdir of ours, or a Hugging Face folder of ``LlamaForSequenceClassification``
    --judge         a chat model that is asked which answer is better, or safer where the track is safety
    --scores        any other model, run by yourself: a folder with SET.jsonl for each set that it scored, in
                    the form of ``llama2_jax/data/pair_scores.py``; ``id`` is the line, from 0, in
                    DIR/sets/SET.jsonl, which a run without models writes

With a helpfulness and a safety model, Figure 32 and Table 35 are of the answers with a safety label (RM-17).
Scores are kept in DIR/scores/NAME/SET.jsonl: a run that was stopped goes on, and models can be added.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.checkpoint_flags import tensor_parallel
from experiments.reward_accuracy_report import write_report
from experiments.settings import keep_settings
from llama2_jax.answers import model_version
from llama2_jax.config import named_paths, read_json, require, write_json
from llama2_jax.data.chat import Message, SpecialTagError, get_template
from llama2_jax.data.pair_scores import CHOICES, PairScores, read_pair_scores, write_pair_scores
from llama2_jax.data.preference_batches import encode_response
from llama2_jax.data.preferences import Preference, read_preferences, write_preferences
from llama2_jax.data.records import expand_paths
from llama2_jax.data.shards import file_sha256
from llama2_jax.evals.judge import FIRST, SECOND, TIE, Pair, compare
from llama2_jax.evals.model_judge import HARMLESS, HELPFUL, JudgedAnswer, judge_by_model, shown_tokens
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.rlhf.reward_checkpoint import check_template, is_reward_model, load_reward_model
from llama2_jax.rlhf.reward_model import RewardModel, score_rows

KINDS = ("reward_model", "judge", "scores")
Sets = Mapping[str, Sequence[Preference]]
Score = Callable[[Sequence[Preference]], PairScores]
CRITERIA = {"helpfulness": HELPFUL, "safety": HARMLESS}
VERDICTS = {FIRST: "chosen", TIE: "tie", SECOND: "rejected"}


def main() -> None:
    """Read the sets, score them by every model, report; what is there is not done again."""
    args: Any = flags.FLAGS
    output = Path(args.output)
    set_paths = named_paths(args.set, field="--set")
    paths = {kind: named_paths(args[kind].value, field=f"--{kind}") for kind in KINDS}
    templates = named_paths(args.template, field="--template")
    check_names(paths, templates)
    sets = {name: read_preferences([path], template=None) for name, path in set_paths.items()}
    hashes = {
        name: [file_sha256(file)[:12] for file in expand_paths([path])] for name, path in set_paths.items()
    }
    keep_settings(output, {"sets": hashes}, results="scores/*/*.jsonl")
    for name, pairs in sets.items():
        write_preferences(output / "sets" / f"{name}.jsonl", pairs)
    found = {name: given_scores(Path(path), sets) for name, path in paths["scores"].items()}
    versions = {name: f"scores in {path}" for name, path in paths["scores"].items()}
    kinds: dict[str, str] = {}
    for name, path in (paths["reward_model"] | paths["judge"]).items():
        versions[name], kinds[name], score = open_scorer(path, template=templates.get(name))
        found[name] = kept_scores(output / "scores" / name, sets, versions[name], score)
    if not found:
        print(f"The sets are in {output / 'sets'}; name models, or score them and give --scores=NAME=FOLDER")
        return
    order = [name for kind in KINDS for name in paths[kind]]
    write_report(
        output, sets, {name: found[name] for name in order}, {name: versions[name] for name in order}, kinds
    )
    print(f"{output / 'report.md'} is written")


def open_scorer(path: str, *, template: str | None) -> tuple[str, str, Score]:
    """A reward model or a chat model as judge: what it is, of which kind, and how it scores."""
    args: Any = flags.FLAGS
    partitioner = tensor_parallel(args.tensor)
    if is_reward_model(path):
        reward_model = load_reward_model(path, template=template, partitioner=partitioner)
        score = functools.partial(score_pairs, reward_model, batch_size=args.batch_size)
        version = f"reward model {reward_model.version}, template {reward_model.template.name}"
        return version, reward_model.kind, score
    judge = load(path, template=template, partitioner=partitioner)
    score = functools.partial(judge_pairs, judge, batch_size=args.batch_size)
    return f"judge: {model_version(judge)}, template {judge.template.name}", "judge", score


def check_names(paths: Mapping[str, Mapping[str, str]], templates: Mapping[str, str]) -> None:
    """Refuse names that stand twice, templates of no model and checkpoints of the other kind."""
    names = [name for own in paths.values() for name in own]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"several models are named {', '.join(twice)}; give each a name of its own")
    loaded = {**paths["reward_model"], **paths["judge"]}
    for name, template in templates.items():
        require(name in loaded, f"--template names {name!r}; models are {', '.join(loaded) or 'none'}")
        get_template(template)
        if name in paths["reward_model"]:
            check_template(loaded[name], template)
    for kind, own in (("reward_model", paths["reward_model"]), ("judge", paths["judge"])):
        for name, path in own.items():
            require(
                is_reward_model(path) == (kind == "reward_model"),
                f"--{kind}={name}={path} is a {'language' if kind == 'reward_model' else 'reward'} model; "
                f"give it as --{'judge' if kind == 'reward_model' else 'reward_model'}",
            )


def kept_scores(folder: Path, sets: Sets, version: str, score: Score) -> dict[str, PairScores]:
    """The scores of all sets, read where an earlier run has left them.

    Raises:
      ConfigError: they are of another model.
    """
    path = folder / "version.json"
    known = read_json(path, default=version)
    require(
        known == version, f"{folder} has scores of {known}, not of {version}; remove it, or give another name"
    )
    write_json(path, version)
    for name, pairs in sets.items():
        if not (folder / f"{name}.jsonl").exists():
            write_pair_scores(folder / f"{name}.jsonl", score(pairs))
            print(f"{folder / name}: {len(pairs):,} comparisons", flush=True)
    return given_scores(folder, sets)


def given_scores(folder: Path, sets: Sets) -> dict[str, PairScores]:
    """The scores of those sets that have a file in the folder.

    Raises:
      ConfigError: none has.
      DataError: see ``read_pair_scores``.
    """
    files = {name: folder / f"{name}.jsonl" for name in sets}
    there = {name: path for name, path in files.items() if path.is_file()}
    wanted = ", ".join(path.name for path in files.values())
    require(bool(there), f"{folder} has none of {wanted}; give one for each set that the model scored")
    return {name: read_pair_scores(path, count=len(sets[name])) for name, path in there.items()}


def score_pairs(reward_model: RewardModel, pairs: Sequence[Preference], *, batch_size: int) -> PairScores:
    """Raw scores of both answers; None where one is beyond the context, or holds a marker of the format."""
    rows = {number: _encode(reward_model, pair) for number, pair in enumerate(pairs)}
    read = {number: own for number, own in rows.items() if own is not None}
    found = score_rows(reward_model, [row for own in read.values() for row in own], batch_size=batch_size)
    scores = dict(zip(read, found.reshape(-1, 2).tolist(), strict=True))
    return {number: scores.get(number) for number in rows}


def _encode(reward_model: RewardModel, pair: Preference) -> list[list[int]] | None:
    dialogues = [(*pair.messages, Message("assistant", answer)) for answer in (pair.chosen, pair.rejected)]
    try:
        rows = [encode_response(own, reward_model.tokenizer, reward_model.template) for own in dialogues]
    except SpecialTagError:
        return None
    return rows if max(map(len, rows)) <= reward_model.config.max_context else None


def judge_pairs(judge: LoadedModel, pairs: Sequence[Preference], *, batch_size: int) -> PairScores:
    """What a chat model chooses, answers shown in random order; None where they do not fit its context."""
    scores: dict[int, Any] = dict.fromkeys(range(len(pairs)))
    for track, criterion in CRITERIA.items():
        shown = {
            number: Pair(JudgedAnswer(pair.messages, pair.chosen), JudgedAnswer(pair.messages, pair.rejected))
            for number, pair in enumerate(pairs)
            if pair.track == track
        }
        limit = judge.config.max_context
        fits = {n: pair for n, pair in shown.items() if shown_tokens(judge, pair, criterion) <= limit}
        ask = judge_by_model(judge, criterion, batch_size=batch_size)
        verdicts = compare(
            ask, [pair.first for pair in fits.values()], [pair.second for pair in fits.values()]
        )
        scores |= {n: CHOICES[VERDICTS[int(one)]] for n, one in zip(fits, verdicts, strict=True)}
    return scores


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_multi_string("set", None, "NAME=PATH of comparisons, a file or pattern; repeatable.")
    flags.DEFINE_multi_string("reward_model", [], "NAME=PATH; repeatable.")
    flags.DEFINE_multi_string("judge", [], "NAME=PATH of a chat model; repeatable.")
    flags.DEFINE_multi_string("scores", [], "NAME=FOLDER of scores of your own; repeatable.")
    flags.DEFINE_multi_string(
        "template",
        [],
        "NAME=TEMPLATE, of a judge or a Hugging Face folder whose own is unknown or not wanted.",
    )
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.", lower_bound=1)
    flags.DEFINE_integer("tensor", 1, "Devices that each model is split over.", lower_bound=1)
    flags.mark_flags_as_required(["set", "output"])
    launch(main)
