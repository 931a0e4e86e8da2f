"""Rejection sampling: K answers per prompt, the best kept (Llama 2, section 3.2.3).

python -m experiments.rejection_sampling --config=configs/rejection_sampling.py:70b --workdir=DIR \
    [--config.FIELD=VALUE ...]

See ``configs/rejection_sampling.py``. Samples go to ``archive.jsonl`` as they are drawn and their scores
as they are given, so a killed run does nothing twice. Samples of earlier rounds are scored again where
the reward models changed, and compete with the new ones; the archive then holds all of them.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.models import check_safety_model, load_scorers, open_mesh
from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.rlhf_plots import plot_best_of_n, plot_rounds, plot_temperatures
from llama2_jax.config import build, keep_config, read_json, require, require_choice, write_json
from llama2_jax.data.chat import UNFINISHED, Message, Template, answer_flaw
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.prompts import Prompt, read_prompts_to_train_on
from llama2_jax.data.records import DataError
from llama2_jax.data.sources import dialogue_row
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch_experiment
from llama2_jax.losses.preference import displayed
from llama2_jax.pretrained import LoadedModel, for_decoding, load
from llama2_jax.rlhf.archive import Sample, changed_prompts, checked_rows, draw, read_archives, rescore
from llama2_jax.rlhf.best_of_n import (
    best_temperature,
    expected_curves,
    expected_max,
    expected_median,
    kl_bound,
    pick_best,
    pool_scores,
    pool_values,
)
from llama2_jax.workdir import mark_done, open_workdir

ROUNDS = ("all", "last")
FIXED = ("max_new_tokens", "top_p", "top_k")  # what a sample's key does not say

Score = Callable[[Sequence[Sample]], list[Sample]]
"""The samples with scores."""


class Picked(NamedTuple):
    """What the report tells about."""

    samples: list[Sample]  # of all rounds
    bag: Sequence[Sample]  # those to pick from
    drawn: list[Sample]  # of this round, at the chosen temperature
    excluded: dict[str, int]  # reason -> samples that cannot be trained on
    best: list[Sample]
    temperature: float
    temperature_curves: dict[float, list[float]]  # of the search


def run(config: Any, workdir: Path) -> None:
    """Write ``archive.jsonl``, ``dialogues.jsonl`` and a report; continues or returns at once if done."""
    check_config(config)
    _check_archive(config, workdir)
    if open_workdir(config, workdir):
        return
    prompts = checked_prompts(config, load(config.init_from, with_params=False))
    archive = workdir / "archive.jsonl"
    held = read_archives(config.archives, own=archive)
    _check_ids(prompts, held)
    check_safety_model(config, [*prompts, *(sample.prompt for sample in held)])
    policy = load(config.init_from, partitioner=open_mesh(config), **config.model)
    score = make_score(config, archive, policy, prompts)
    keep_config(config, workdir)
    policy = for_decoding(policy)
    temperature, curves = search_temperature(config, archive, policy, prompts, score)
    count = config.samples_per_prompt
    keys = {s.key for s in draw_samples(config, archive, policy, prompts, temperature, count=count)}
    samples = score(read_archives(config.archives, own=archive))
    bag = bag_of(config, samples)
    usable, excluded = without_flaws(bag, policy.template, config.pick.unfinished)
    best = pick_best(usable)
    write_rows(workdir / "dialogues.jsonl", (training_row(sample) for sample in best))
    drawn = [sample for sample in samples if sample.key in keys]
    write_report(workdir, config, Picked(samples, bag, drawn, excluded, best, temperature, curves))
    mark_done(workdir)


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    for name in ("init_from", "helpfulness_rm", "prompts"):
        require(bool(config[name]), f"config.{name} is empty; name the file or checkpoint")
    require(config.round > 0, f"config.round = {config.round} must be positive")
    for name in ("skip_prompts", "num_prompts"):
        require(config[name] >= 0, f"config.{name} = {config[name]} must not be negative")
    counts = {"config": config.samples_per_prompt, "search": config.search.samples_per_prompt}
    for section, count in counts.items():
        require(count > 0, f"{section}.samples_per_prompt = {count} must be positive")
    require(
        not config.search.temperatures or config.search.samples_per_prompt >= config.samples_per_prompt,
        f"search.samples_per_prompt = {config.search.samples_per_prompt} is less than "
        f"config.samples_per_prompt = {config.samples_per_prompt}: the best temperature "
        "depends on how many samples it is the best of; raise the first",
    )
    require_choice("pick.unfinished", config.pick.unfinished, UNFINISHED)
    require_choice("pick.rounds", config.pick.rounds, ROUNDS)
    for temperature in (config.sampling.temperature, *config.search.temperatures):
        _sampling(config, temperature)


def _sampling(config: Any, temperature: float) -> SamplingConfig:
    return build(SamplingConfig, {**config.sampling, "temperature": temperature}, name="sampling")


def _check_archive(config: Any, workdir: Path) -> None:
    """Refuse, while the workdir still has its old config, to mix its samples with others."""
    if not (workdir / "archive.jsonl").exists():
        return
    old, new = read_json(workdir / "config.json")["sampling"], config.sampling
    for name in FIXED:
        require(
            old[name] == new[name],
            f"the samples in {workdir} were drawn with sampling.{name} = {old[name]}, the config says "
            f"{new[name]}; use another --workdir or undo the change",
        )


def choose_prompts(config: Any) -> list[Prompt]:
    """The prompts of this round.

    Raises:
      ConfigError: the file has fewer than are asked for.
    """
    prompts = read_prompts_to_train_on(config.prompts)
    skipped, count = config.skip_prompts, config.num_prompts
    require(
        len(prompts) >= skipped + max(count, 1),
        f"{config.prompts} has {len(prompts)} prompts, too few for config.skip_prompts = {skipped} and "
        f"config.num_prompts = {count}; lower one of them or give more prompts",
    )
    return prompts[skipped : skipped + count] if count else prompts[skipped:]


def checked_prompts(config: Any, policy: LoadedModel) -> list[Prompt]:
    """``choose_prompts``, which the policy, also without its parameters, can answer (``checked_rows``)."""
    prompts = choose_prompts(config)
    checked_rows(policy, prompts)
    return prompts


def _check_ids(prompts: Sequence[Prompt], earlier: Sequence[Sample]) -> None:
    for prompt_id in changed_prompts(earlier, prompts):
        raise DataError(
            f"prompt_id {prompt_id!r} of config.prompts is another prompt in the archives of earlier rounds, "
            "which are keyed by it; give new prompts new ids"
        )


def make_score(config: Any, archive: Path, policy: LoadedModel, prompts: Sequence[Prompt]) -> Score:
    """How samples get the scores of this round's reward models, which are kept in the archive."""
    return functools.partial(
        rescore,
        archive,
        scorers=load_scorers(config, policy, prompts),
        tokenizer=policy.require_tokenizer(),
        template=policy.template,
        threshold=config.reward.threshold,
        batch_size=config.reward.batch_size,
    )


def search_temperature(
    config: Any, archive: Path, policy: LoadedModel, prompts: Sequence[Prompt], score: Score
) -> tuple[float, dict[float, list[float]]]:
    """The temperature to sample at, and for each that was tried the expected best reward of N (RS-7)."""
    curves: dict[float, list[float]] = {}
    for temperature in config.search.temperatures:
        tried = draw_samples(
            config,
            archive,
            policy,
            prompts[: config.search.num_prompts],
            temperature,
            count=config.search.samples_per_prompt,
        )
        rewards_PC = pool_values(
            score(tried), lambda sample: _reward_if_usable(sample, policy.template, config)
        )
        curves[temperature] = expected_curves(rewards_PC)["max"]
    if not curves:
        return config.sampling.temperature, curves
    return best_temperature(curves, config.samples_per_prompt), curves


def draw_samples(
    config: Any,
    archive: Path,
    policy: LoadedModel,
    prompts: Sequence[Prompt],
    temperature: float,
    *,
    count: int,
) -> list[Sample]:
    """``count`` samples of this round per prompt at one temperature; the search's are not drawn again."""
    return draw(
        archive,
        policy,
        prompts,
        _sampling(config, temperature),
        round=config.round,
        num_samples=count,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def bag_of(config: Any, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Those to pick from: of all rounds, or of this one alone, as the paper did up to V3 (RS-5)."""
    return [s for s in samples if s.round == config.round] if config.pick.rounds == "last" else samples


def without_flaws(
    samples: Sequence[Sample], template: Template, unfinished: str
) -> tuple[list[Sample], dict[str, int]]:
    """Samples that can be trained on, and how many cannot, by reason (``answer_flaw``).

    Raises:
      ConfigError: none can.
    """
    flaws = [_flaw(sample, template, unfinished) for sample in samples]
    usable = [sample for sample, reason in zip(samples, flaws, strict=True) if not reason]
    excluded = dict(Counter(reason for reason in flaws if reason))
    require(
        bool(usable),
        f"no dialogue can be made of {len(samples)} samples ({excluded}); raise "
        "config.sampling.max_new_tokens, or train the policy longer",
    )
    return usable, excluded


def _flaw(sample: Sample, template: Template, unfinished: str) -> str:
    return answer_flaw(sample.text, template, stopped=sample.stopped, unfinished=unfinished)


def _reward_if_usable(sample: Sample, template: Template, config: Any) -> float:
    """The displayed reward; 0, below all others, of a sample that may not be picked."""
    return 0.0 if _flaw(sample, template, config.pick.unfinished) else float(displayed(_reward(sample)))


def training_row(sample: Sample) -> dict[str, Any]:
    """The dialogue whose last answer sft learns."""
    answer = Message("assistant", sample.text.strip())
    return dialogue_row([*sample.prompt.messages, answer], train_on="last")


def write_report(workdir: Path, config: Any, picked: Picked) -> None:
    """``results.json`` for programs, ``report.md`` and the pictures for people."""
    pool_PC = displayed(pool_scores(picked.drawn))
    curves = expected_curves(pool_PC)
    rounds = by_round(picked.samples, {config.round: picked.temperature})
    sizes = Counter(sample.prompt.prompt_id for sample in picked.bag).values()
    plot_best_of_n(workdir / "best_of_n.png", curves)
    pictures = ["![maximum and median reward of N samples](best_of_n.png)"]
    if picked.temperature_curves:
        plot_temperatures(workdir / "temperatures.png", picked.temperature_curves, chosen=picked.temperature)
        pictures.append("![maximum reward by temperature](temperatures.png)")
    if len(rounds) > 1:
        plot_rounds(workdir / "rounds.png", rounds)
        pictures.append("![helpfulness score of the samples of each round](rounds.png)")
    results = {
        "round": config.round,
        "prompts": len(pool_PC),
        "samples_per_prompt": pool_PC.shape[1],
        "temperature": picked.temperature,
        "temperature_curves": {f"{t:g}": curve for t, curve in picked.temperature_curves.items()},
        "max_by_n": curves["max"],
        "median_by_n": curves["median"],
        "mean_reward": float(pool_PC.mean()),
        "picked_reward": float(displayed([sample.scores["combined"] for sample in picked.best]).mean()),
        "finished_fraction": float(np.mean([sample.stopped for sample in picked.drawn])),
        "kl_bound": kl_bound(pool_PC.shape[1]),
        "samples": len(picked.samples),
        "candidates": len(picked.bag),
        "candidate_prompts": len(sizes),
        "fewest_and_most_of_a_prompt": (min(sizes), max(sizes)),
        "excluded": picked.excluded,
        "dialogues": len(picked.best),
        "picks_by_round": dict(sorted(Counter(sample.round for sample in picked.best).items())),
        "rounds": rounds,
    }
    write_json(workdir / "results.json", results)
    lines = [f"# Rejection sampling, round {config.round}", "", "Llama 2, section 3.2.3.", ""]
    lines += [*_numbers(results), "", "\n\n".join(pictures), "", *_examples(picked.drawn)]
    write_report_file(workdir, lines)


def by_round(samples: Sequence[Sample], chosen: Mapping[int, float]) -> dict[int, dict[str, float]]:
    """Expected maximum and median helpfulness score of each round's samples, for as many as all rounds have.

    Of prompts for helpfulness alone, as in Figure 26: with those for safety the curves would also follow how
    many of them a round has.

    Args:
      chosen: temperature of rounds where it is known; of others that which most prompts were sampled at, and
        of several, which a search over all prompts leaves, the one with the highest expected maximum.
    """
    pools = {}
    helpful = [sample for sample in samples if not sample.prompt.is_safety]
    for number in sorted({sample.round for sample in helpful}):
        drawn = [sample for sample in helpful if sample.round == number]
        tried = {
            temperature: displayed(
                pool_values((s for s in drawn if s.temperature == temperature), _helpfulness)
            )
            for temperature in sorted({sample.temperature for sample in drawn})
        }
        best = max(tried, key=lambda temperature: (len(tried[temperature]), tried[temperature].max(1).mean()))
        pools[number] = tried[chosen.get(number, best)]
    count = min((pool.shape[1] for pool in pools.values()), default=0)
    return {
        number: {
            "max": expected_max(pool, count),
            "median": expected_median(pool, count),
            "num_samples": count,
        }
        for number, pool in pools.items()
    }


def _numbers(results: dict[str, Any]) -> list[str]:
    count, best = results["samples_per_prompt"], results["max_by_n"][-1]
    fewest, most = results["fewest_and_most_of_a_prompt"]
    excluded = ", ".join(f"{number} {reason}" for reason, number in results["excluded"].items())
    rows = {
        "prompts of this round": f"{results['prompts']:,}",
        "samples per prompt, temperature": f"{count}, {results['temperature']:g}",
        "answers that end by themselves": f"{100 * results['finished_fraction']:.1f} %",
        "mean reward of a sample": f"{results['mean_reward']:.3f}",
        f"expected best of {count}": f"{best:.3f} ({best - results['mean_reward']:+.3f})",
        f"expected median of {count}": f"{results['median_by_n'][-1]:.3f}",
        f"KL(best of {count}, policy), at most": f"{results['kl_bound']:.2f} nats per answer",
        "samples in the archive, all rounds and temperatures": f"{results['samples']:,}",
        "of them to pick from": f"{results['candidates']:,}, for {results['candidate_prompts']:,} prompts",
        "for one prompt, the best of which is picked": f"{fewest} to {most}",
        "of those to pick from not to be trained on": excluded or "none",
        "dialogues to train on": f"{results['dialogues']:,}",
        "their mean reward": f"{results['picked_reward']:.3f}",
        "picked from round": ", ".join(f"{r}: {n:,}" for r, n in results["picks_by_round"].items()),
    }
    note = "Rewards are sigmoids of the combined raw score (PPO-3), of this round's reward models."
    return [note, "", *table(("", ""), rows.items())]


def _examples(drawn: Sequence[Sample], count: int = 4) -> list[str]:
    """Best and worst answer to the prompts where the choice matters most."""
    pools: dict[str, list[Sample]] = {}
    for sample in drawn:
        pools.setdefault(sample.prompt.prompt_id, []).append(sample)
    ends = [(min(pool, key=_reward), max(pool, key=_reward)) for pool in pools.values()]
    ends.sort(key=lambda pair: _reward(pair[0]) - _reward(pair[1]))
    lines = ["## Where the choice matters most", ""]
    for worst, best in ends[:count]:
        lines += [f"**{quote(best.prompt.messages[-1].content)}**", ""]
        for name, sample in (("best", best), ("worst", worst)):
            lines.append(f"- {name}, {displayed(_reward(sample)):.3f}: {quote(sample.text)}")
        lines.append("")
    return lines


def _reward(sample: Sample) -> float:
    return sample.scores["combined"]


def _helpfulness(sample: Sample) -> float:
    return sample.scores["helpfulness"]


if __name__ == "__main__":
    launch_experiment(run)
