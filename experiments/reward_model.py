"""Reward model: preferences to a model that scores answers (Llama 2, section 3.2.2).

See ``configs/reward_model.py``. Helpfulness, safety and guard models differ in their data, margin and
safety loss alone. Accuracy is that of held-out pairs of the model's own track.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.corpora import keep_tokenizer
from experiments.models import check_sequence_length, check_training, open_training_mesh
from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.reward_plots import plot_accuracy, plot_calibration, plot_scores
from llama2_jax.config import build, require, require_choice, to_plain, write_json
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.preference_batches import EncodedPairs, PairLoader, encode_pairs, encode_response
from llama2_jax.data.preferences import (
    Preference,
    mix,
    read_preferences,
    require_ratings,
    split_by_prompt,
)
from llama2_jax.data.rated_answers import RatedAnswer, read_rated_answers
from llama2_jax.data.shards import file_sha256
from llama2_jax.data.sources import expand_paths, split_paths
from llama2_jax.evals.reward_accuracy import (
    RewardReport,
    UnsafeDetection,
    calibration,
    disagreements,
    evaluate_pairs,
    spearman,
)
from llama2_jax.launch import launch_experiment, mark_done, open_workdir
from llama2_jax.losses.preference import MARGINS, displayed
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.rlhf.reward_model import (
    KINDS,
    RewardModel,
    load_reward_model,
    preference_loss,
    reward_model_meta,
    score_rows,
)
from llama2_jax.sharding.placement import process_slice
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params
from llama2_jax.train.checkpoint import stored_steps
from llama2_jax.train.loop import train
from llama2_jax.train.metrics import read_metrics
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.run import TrainConfig, TrainRun


class Data(NamedTuple):
    """The mixture to train on, held-out pairs of the model's own track, pairs left out by reason."""

    train: list[Preference]
    heldout: list[Preference]
    left_out: Counter[str]


class Heldout(NamedTuple):
    """The held-out pairs that are short enough to be scored, and what is scored of them."""

    labels: list[Preference]
    pairs: EncodedPairs


class PairScores(NamedTuple):
    """Raw scores of the two answers of each held-out pair."""

    chosen_B: np.ndarray
    rejected_B: np.ndarray


class EncodedAnswers(NamedTuple):
    """Answers that people rated, and what is scored of them."""

    rated: list[RatedAnswer]
    rows: list[list[int]]


def run(config: Any, workdir: Path) -> None:
    """Train a reward model in ``workdir``; continues or returns at once if it is done."""
    _check_config(config)
    if open_workdir(config, workdir):
        return
    partitioner = open_training_mesh(config)
    chat = load(config.init_from, partitioner=partitioner, template=config.template or None, **config.model)
    check_sequence_length(config, chat.config.max_context)
    data = read(config, chat)
    pairs, heldout = encode(data.train, config, chat), encode_heldout(data, config, chat)
    answers = read_answers(config, chat)
    keep_tokenizer(chat.require_tokenizer(), workdir)
    # the run must not keep a second copy of the parameters: a resume does not need them at all
    start_params = [] if stored_steps(workdir) else [initial_params(config, chat.params)]
    chat = chat._replace(params=None)
    loader = make_pair_loader(config, partitioner, pairs)
    train_run = make_train_run(config, partitioner, chat, loader, heldout, initial_params=start_params.pop)
    num_steps = math.ceil(config.data.epochs * loader.batches_per_epoch)
    train(train_run, build(TrainConfig, {**config.train, "num_steps": num_steps}, name="train"), workdir)
    reward_model = load_reward_model(
        workdir,
        compute_dtype=config.model.compute_dtype,
        attention_impl=config.model.attention_impl,
        partitioner=partitioner,
    )
    report(workdir, config, reward_model, heldout, answers, notes(reward_model, data, pairs))
    mark_done(workdir)


def _check_config(config: Any) -> None:
    """What can be said before anything is read."""
    require_choice("config.kind", config.kind, KINDS)
    require_choice("config.loss.margin", config.loss.margin, MARGINS)
    require_choice("config.head", config.head, ("normal", "zero"))
    require(
        config.loss.safety_weight >= 0,
        f"loss.safety_weight = {config.loss.safety_weight} must not be negative",
    )
    require(config.eval.batch_size > 0, f"eval.batch_size = {config.eval.batch_size} must be positive")
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
    return Heldout([data.heldout[number] for number in pairs.numbers], pairs)


def read_answers(config: Any, chat: LoadedModel) -> EncodedAnswers:
    """Rated answers no longer than the pairs that are trained on; none if the config names no file."""
    files, on_bad_line = config.data.answers, config.data.on_bad_line
    rated = read_rated_answers(split_paths(files), on_bad_line=on_bad_line) if files else []
    rows = [encode_response(one.dialogue, chat.require_tokenizer(), chat.template) for one in rated]
    kept = [number for number, row in enumerate(rows) if len(row) <= config.data.sequence_length]
    require(
        bool(kept) or not rated,
        f"none of {len(rated)} answer(s) in config.data.answers has at most {config.data.sequence_length} "
        "tokens; raise config.data.sequence_length",
    )
    return EncodedAnswers([rated[number] for number in kept], [rows[number] for number in kept])


def make_pair_loader(config: Any, partitioner: Partitioner, pairs: EncodedPairs) -> PairLoader:
    """Batches of pairs with their margins, in another order every epoch."""
    return PairLoader(
        pairs.pairs,
        MARGINS[config.loss.margin],
        batch_size=config.data.batch_size,
        seed=config.data.seed,
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
        batch_size=config.data.batch_size,
        sequence_length=loader.row_length,
        batches=loader.iterate,
        source_names=("preferences",),
        meta=reward_model_meta(
            chat.config,
            chat.require_tokenizer(),
            chat.template.name,
            kind=config.kind,
            margin=config.loss.margin,
            data=[file_sha256(path) for path in expand_paths(files(config))],
        ),
        initial_params=initial_params,
        num_outputs=1,
        config=to_plain(config),
        evaluate=make_evaluation(config, model, chat, heldout),
    )


def initial_params(config: Any, chat_params: Params) -> Params:
    """The chat model's body under a new head."""
    key = jax.random.key(config.train.seed) if config.head == "normal" else None
    return score_params_from_chat(chat_params, key=key)


def score_pairs(reward_model: RewardModel, pairs: EncodedPairs, *, batch_size: int) -> PairScores:
    """Raw scores of both answers of each pair."""
    rows = [row for pair in pairs.pairs for row in (pair.chosen, pair.rejected)]
    scores_B2 = score_rows(reward_model, rows, batch_size=batch_size).reshape(-1, 2)
    return PairScores(scores_B2[:, 0], scores_B2[:, 1])


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


def notes(reward_model: RewardModel, data: Data, pairs: EncodedPairs) -> list[tuple[str, str]]:
    """What the model is and was made from, for the report."""
    return [
        ("version", reward_model.version),
        ("pairs trained on", f"{len(pairs.pairs):,}"),
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
    answer_scores_B = score_rows(reward_model, answers.rows, batch_size=batch_size)
    more = compare_with_people(workdir, config, answers.rated, answer_scores_B) if answers.rated else []
    write_report(workdir, config, heldout.labels, scores, rows, more)


def write_report(
    workdir: Path,
    config: Any,
    heldout: Sequence[Preference],
    scores: PairScores,
    rows: Sequence[tuple[str, str]],
    more: Sequence[str],
) -> None:
    """Write ``results.json``, ``report.md``, ``scores.png`` and ``accuracy.png``.

    Args:
      rows: of the report's table, before what is computed here.
      more: lines of the report after its pictures.
    """
    title = f"Reward model: {config.kind}"
    found = evaluate_pairs(heldout, *scores)
    write_json(workdir / "results.json", found)
    shown = PairScores(*map(displayed, scores))
    plot_scores(workdir / "scores.png", **shown._asdict(), title=title)
    shares = {"all": found.accuracy, **found.by_rating, **found.by_safety}
    plot_accuracy(workdir / "accuracy.png", {config.kind: shares}, title=title)
    lines = [
        f"# {title}",
        "",
        "Llama 2, section 3.2.2. Shares have their 95 % interval and the number of pairs, of the last four",
        "responses, that they are of.",
        "",
        *table(("", ""), [*rows, *_numbers(workdir, found)]),
        "",
        "![accuracy](accuracy.png)",
        "",
        "![scores](scores.png)",
        "",
        *more,
        *_disagreements(heldout, scores, count=config.eval.num_examples),
    ]
    write_report_file(workdir, lines)


def compare_with_people(
    workdir: Path, config: Any, rated: Sequence[RatedAnswer], scores_B: np.ndarray
) -> list[str]:
    """Write the answers with their scores to ``answers.jsonl``, and ``calibration.png`` (Figure 29)."""
    scored = zip(rated, scores_B, strict=True)
    write_rows(workdir / "answers.jsonl", ({**to_plain(one), "score": float(score)} for one, score in scored))
    harm_B = [one.harm for one in rated]
    plot_calibration(
        workdir / "calibration.png",
        {config.kind: calibration(scores_B, harm_B)},
        title=f"{len(rated):,} answers that people rated",
        human="harm, as people judge",
    )
    return [
        "## The score beside people's",
        "",
        f"{len(rated):,} answers of at most {config.data.sequence_length:,} tokens; rank correlation of the "
        f"score with the harm that people see: {spearman(scores_B, harm_B):.2f}.",
        "",
        "![calibration](calibration.png)",
        "",
    ]


def _numbers(workdir: Path, found: RewardReport) -> list[tuple[str, str]]:
    metrics = read_metrics(workdir)
    before, *_, after = [line for line in metrics if "eval/heldout/accuracy" in line]
    updates = [line for line in metrics if "train/loss" in line]
    return [
        ("updates", f"{len(updates):,}"),
        ("loss, first and last update", f"{updates[0]['train/loss']:.3f} to {updates[-1]['train/loss']:.3f}"),
        ("held-out accuracy before training", f"{100 * before['eval/heldout/accuracy']:.1f} %"),
        ("held-out accuracy", str(found.accuracy)),
        *((f"- rated {name.replace('_', ' ')}", str(share)) for name, share in found.by_rating.items()),
        *((f"- {name.replace('_', ' ')}", str(share)) for name, share in found.by_safety.items()),
        ("mean score difference, held out", f"{after['eval/heldout/score_difference']:.3f}"),
        *_unsafe(found.unsafe_at_half),
        *_unsafe(found.unsafe_at_reward_threshold),
    ]


def _unsafe(found: UnsafeDetection | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    at = f"of unsafe responses at score {found.threshold}"
    return [(f"recall {at}", str(found.recall or "-")), (f"precision {at}", str(found.precision or "-"))]


def _disagreements(heldout: Sequence[Preference], scores: PairScores, *, count: int) -> list[str]:
    found = disagreements(*scores, count=count)
    lines = ["## Where the model disagrees with people", "", *([] if found else ["Nowhere."])]
    for index in found:
        pair = heldout[index]
        lines += [
            f"> **{quote(pair.messages[-1].content)}** (rating: {pair.rating}, safety: {pair.safety})",
            ">",
            f"> chosen, {scores.chosen_B[index]:.2f}: {quote(pair.chosen)}",
            ">",
            f"> rejected, {scores.rejected_B[index]:.2f}: {quote(pair.rejected)}",
            "",
        ]
    return lines


if __name__ == "__main__":
    launch_experiment(run)
