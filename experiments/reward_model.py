"""Reward model: preferences to a model that scores answers (Llama 2, section 3.2.2).

python -m experiments.reward_model --config=configs/reward_model.py:helpfulness,size=7b --workdir=DIR \
    [--config.FIELD=VALUE ...]

See ``configs/reward_model.py``. Helpfulness, safety and guard models differ in their data, margin and
safety loss alone. Accuracy is that of held-out pairs of the model's own track, of which
``heldout_scores.jsonl`` has the scores by number (``llama2_jax/data/pair_scores.py``).
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.corpora import keep_tokenizer
from experiments.models import check_sequence_length, check_training, open_mesh
from experiments.reward_report import ScoredPairs, compare_with_people, write_report
from llama2_jax.config import build, require, require_choice, to_plain
from llama2_jax.data.pair_scores import write_pair_scores
from llama2_jax.data.preference_batches import EncodedPairs, PairLoader, encode_pairs, encode_response
from llama2_jax.data.preferences import Preference, mix, read_preferences, require_ratings, split_by_prompt
from llama2_jax.data.rated_answers import RatedAnswer, ratings, read_rated_answers
from llama2_jax.data.records import split_paths
from llama2_jax.data.shards import hashes_of
from llama2_jax.evals.reward_accuracy import evaluate_pairs
from llama2_jax.launch import launch_experiment
from llama2_jax.losses.preference import MARGINS
from llama2_jax.model.attention import serves_prefixes
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.pretrained import LoadedModel, load, release_params
from llama2_jax.rlhf.reward_checkpoint import load_reward_model, reward_model_meta
from llama2_jax.rlhf.reward_model import KINDS, RewardModel, preference_loss, score_rows
from llama2_jax.sharding.placement import check_batch_size, process_slice
from llama2_jax.sharding.processes import require_agreement
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params
from llama2_jax.train.loop import train
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.run import TrainConfig, TrainRun
from llama2_jax.workdir import mark_done, open_workdir


class Data(NamedTuple):
    """The mixture to train on, held-out pairs of the model's own track, pairs left out by reason."""

    train: list[Preference]
    heldout: list[Preference]
    left_out: Counter[str]


class Heldout(NamedTuple):
    """The held-out pairs that are short enough to be scored, and what is scored of them."""

    labels: list[Preference]
    pairs: EncodedPairs
    total: int  # with those that are too long


class EncodedAnswers(NamedTuple):
    """Answers that people rated, and what is scored of them."""

    rated: list[RatedAnswer]
    rows: list[list[int]]


def run(config: Any, workdir: Path) -> None:
    """Train a reward model in ``workdir``; continues or returns at once if it is done."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    partitioner = open_mesh(config)
    check_batch_size(partitioner, config.eval.batch_size, field="eval.batch_size")
    chat = load(config.init_from, partitioner=partitioner, template=config.template or None, **config.model)
    check_sequence_length(config, chat.config.max_context)
    data = read(config, chat)
    pairs, heldout = encode(data.train, config, chat), encode_heldout(data, config, chat)
    answers = read_answers(config, chat)
    keep_tokenizer(chat.require_tokenizer(), workdir)
    tested = [hashes_of(split_paths(config.data[name])) for name in ("heldout", "answers")]
    require_agreement("held-out pairs and answers", tested)
    chat, start_params = release_params(chat, workdir, functools.partial(initial_params, config))
    loader = make_pair_loader(config, chat.config, partitioner, pairs)
    train_run = make_train_run(config, partitioner, chat, loader, heldout, initial_params=start_params)
    train_config = {**config.train, "num_steps": loader.num_batches}
    train(train_run, build(TrainConfig, train_config, name="train"), workdir)
    reward_model = load_reward_model(
        workdir,
        compute_dtype=config.model.compute_dtype,
        attention_impl=config.model.attention_impl,
        partitioner=partitioner,
    )
    report(workdir, config, reward_model, heldout, answers, notes(reward_model, data, pairs, loader))
    mark_done(workdir)


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    require_choice("config.kind", config.kind, KINDS)
    require_choice("config.loss.margin", config.loss.margin, MARGINS)
    require_choice("config.head", config.head, ("normal", "zero"))
    require(
        config.loss.safety_weight >= 0,
        f"loss.safety_weight = {config.loss.safety_weight} must not be negative",
    )
    for name in ("data", "eval"):
        size = config[name].batch_size
        require(size > 0, f"{name}.batch_size = {size} must be positive")
    require(config.data.epochs > 0, f"data.epochs = {config.data.epochs} must be positive")
    require(bool(config.init_from), "config.init_from is empty; name the chat model to start from")
    require(bool(files(config)), "config.data.preferences is empty; name the files to learn from")
    check_training(config, num_steps=1)  # the pairs say how many


def files(config: Any) -> list[str]:
    """Files and patterns that are trained on."""
    return [*split_paths(config.data.preferences), *split_paths(config.data.public)]


def read(config: Any, chat: LoadedModel) -> Data:
    """What the files hold for this kind of model."""
    left_out: Counter[str] = Counter()

    def open_files(paths: str) -> list[Preference]:
        if not paths:
            return []
        return read_preferences(
            split_paths(paths), template=chat.template, on_bad_line=config.data.on_bad_line, excluded=left_out
        )

    own, public, heldout = map(open_files, (config.data.preferences, config.data.public, config.data.heldout))
    if not heldout:
        everything = split_by_prompt(
            own + public, heldout_fraction=config.data.heldout_fraction, seed=config.data.seed
        )
        train_ids = {id(pair) for pair in everything.train}
        own, public = ([pair for pair in side if id(pair) in train_ids] for side in (own, public))
        heldout = everything.heldout
    preferences = mixture(
        config.kind, own, public, main_fraction=config.data.main_fraction, seed=config.data.seed
    )
    own_track = [pair for pair in heldout if config.kind in ("guard", pair.track)]
    require(
        bool(own_track),
        f"none of {len(heldout)} held-out pair(s) is of the {config.kind} track; name others in "
        "config.data.heldout or raise config.data.heldout_fraction",
    )
    if config.loss.margin != "none":
        require_ratings(preferences, unrated_sources=config.data.unrated_sources)
    return Data(preferences, own_track, left_out)


def mixture(
    kind: str, own: Sequence[Preference], public: Sequence[Preference], *, main_fraction: float, seed: int
) -> list[Preference]:
    """Pairs of one epoch; a guard takes all there is (RM-18).

    To our own helpfulness track come pairs of our safety track and public sets (RM-7, D29); to all
    safety pairs, ours and public, come helpfulness pairs, ours and public (RM-8, D30).

    Args:
      main_fraction: share of the pairs of the kind's own track.

    Raises:
      ConfigError: no pair of the kind's own track.
    """

    def of(pairs: Sequence[Preference], track: str) -> list[Preference]:
        return [pair for pair in pairs if pair.track == track]

    everything = [*own, *public]
    if kind == "guard":
        return everything
    main = of(own, kind) if kind == "helpfulness" else of(everything, kind)
    require(
        bool(main),
        f"none of {len(everything)} pair(s) is of the {kind} track; add files to config.data.preferences",
    )
    if kind == "helpfulness":
        rest = [*of(own, "safety"), *public]
    else:
        rest = of(everything, "helpfulness")
    return mix(main, rest, main_fraction=main_fraction, seed=seed)


def encode(preferences: Sequence[Preference], config: Any, chat: LoadedModel) -> EncodedPairs:
    """Pairs as ids, checked for their length."""
    return encode_pairs(
        preferences,
        chat.require_tokenizer(),
        chat.template,
        max_length=config.data.sequence_length,
        on_bad_line=config.data.on_bad_line,
    )


def encode_heldout(data: Data, config: Any, chat: LoadedModel) -> Heldout:
    """Held-out pairs as ids, beside the preferences that they are."""
    pairs = encode(data.heldout, config, chat)
    return Heldout([data.heldout[number] for number in pairs.numbers], pairs, len(data.heldout))


def read_answers(config: Any, chat: LoadedModel) -> EncodedAnswers:
    """Rated answers no longer than the pairs that are trained on; none if the config names no file.

    Raises:
      ConfigError: all are longer, or they are rated for different things.
    """
    files, on_bad_line = config.data.answers, config.data.on_bad_line
    rated = read_rated_answers(split_paths(files), on_bad_line=on_bad_line) if files else []
    ratings(rated)  # refuses what cannot be compared
    rows = [encode_response(one.dialogue, chat.require_tokenizer(), chat.template) for one in rated]
    kept = [number for number, row in enumerate(rows) if len(row) <= config.data.sequence_length]
    require(
        bool(kept) or not rated,
        f"none of {len(rated)} answer(s) in config.data.answers has at most {config.data.sequence_length} "
        "tokens; raise config.data.sequence_length",
    )
    return EncodedAnswers([rated[number] for number in kept], [rows[number] for number in kept])


def make_pair_loader(
    config: Any, model_config: ModelConfig, partitioner: Partitioner, pairs: EncodedPairs
) -> PairLoader:
    """Batches of pairs with their margins, in rows that every device gets equally many of."""
    return PairLoader(
        pairs.pairs,
        MARGINS[config.loss.margin],
        batch_size=config.data.batch_size,
        epochs=config.data.epochs,
        seed=config.data.seed,
        share_prompts=serves_prefixes(model_config, partitioner),
        row_multiple=partitioner.batch_shards * config.train.accumulation_steps,
        **process_slice(partitioner),
    )


def make_train_run(
    config: Any,
    partitioner: Partitioner,
    chat: LoadedModel,
    loader: PairLoader,
    heldout: Heldout,
    *,
    initial_params: Callable[[], Params],
) -> TrainRun:
    """The ranking loss on pairs, of a score model in the shape of the chat model."""
    model = ScoreModel(chat.config, partitioner)
    return TrainRun(
        name=f"{config.kind} reward model",
        model=model,
        loss=preference_loss(model, safety_weight=config.loss.safety_weight),
        optimizer=build(OptimizerConfig, config.optimizer, name="optimizer"),
        partitioner=partitioner,
        batch_size=loader.num_rows,
        items_per_step=config.data.batch_size,
        sequence_length=loader.row_length,
        batches=loader.iterate,
        source_names=("preferences",),
        meta=reward_model_meta(
            chat.config,
            chat.require_tokenizer(),
            chat.template.name,
            kind=config.kind,
            margin=config.loss.margin,
            data=hashes_of(files(config)),
        ),
        initial_params=initial_params,
        num_outputs=1,
        config=to_plain(config),
        accept_changed_config=config.accept_changed_config,
        evaluate=make_evaluation(config, model, chat, heldout),
    )


def initial_params(config: Any, chat_params: Params) -> Params:
    """The chat model's body under a new head."""
    key = jax.random.key(config.train.seed) if config.head == "normal" else None
    return score_params_from_chat(chat_params, key=key)


def score_pairs(reward_model: RewardModel, pairs: EncodedPairs, *, batch_size: int) -> ScoredPairs:
    """Raw scores of both answers of each pair."""
    rows = [row for pair in pairs.pairs for row in (pair.chosen, pair.rejected)]
    scores_B2 = score_rows(reward_model, rows, batch_size=batch_size).reshape(-1, 2)
    return ScoredPairs(scores_B2[:, 0], scores_B2[:, 1])


def make_evaluation(
    config: Any, model: ScoreModel, chat: LoadedModel, heldout: Heldout
) -> Callable[[int, Params], dict[str, float]]:
    """Accuracy on held-out pairs, and how far apart and where the scores are."""
    tokenizer = chat.require_tokenizer()

    def evaluate(step: int, params: Params) -> dict[str, float]:
        version = f"{config.kind}-{step}"
        now = RewardModel(chat.config, params, tokenizer, chat.template, model, config.kind, version)
        scores = score_pairs(now, heldout.pairs, batch_size=config.eval.batch_size)
        found = evaluate_pairs(heldout.labels, *scores)
        return {
            "eval/heldout/accuracy": found.accuracy.value,
            "eval/heldout/score_difference": float(np.mean(scores.chosen_B - scores.rejected_B)),
            "eval/heldout/score": float(np.mean(scores)),
        }

    return evaluate


def notes(
    reward_model: RewardModel, data: Data, pairs: EncodedPairs, loader: PairLoader
) -> list[tuple[str, str]]:
    """What the model is and was made from, for the report."""
    return [
        ("version", reward_model.version),
        ("pairs trained on", f"{len(pairs.pairs):,}"),
        (
            "rows of an update",
            f"{loader.num_rows:,} of {loader.row_length:,} tokens, {loader.fill_fraction:.0%} full",
        ),
        ("pairs left out: too long", f"{pairs.too_long:,}"),
        ("pairs left out: equal as tokens", f"{pairs.identical:,}"),
        *((f"pairs left out: {reason.replace('_', ' ')}", f"{n:,}") for reason, n in data.left_out.items()),
    ]


def report(
    workdir: Path,
    config: Any,
    reward_model: RewardModel,
    heldout: Heldout,
    answers: EncodedAnswers,
    rows: Sequence[tuple[str, str]],
) -> None:
    """Score what was held out, and write what was found."""
    batch_size = config.eval.batch_size
    scores = score_pairs(reward_model, heldout.pairs, batch_size=batch_size)
    by_number = dict(zip(heldout.pairs.numbers, zip(*scores, strict=True), strict=True))
    write_pair_scores(workdir / "heldout_scores.jsonl", {n: by_number.get(n) for n in range(heldout.total)})
    answer_scores_B = score_rows(reward_model, answers.rows, batch_size=batch_size)
    more = compare_with_people(workdir, config, answers.rated, answer_scores_B) if answers.rated else []
    write_report(workdir, config, heldout.labels, scores, rows, more)


if __name__ == "__main__":
    launch_experiment(run)
