"""Safety context distillation: answers under a preprompt, learned without it (Llama 2, section 4.2.4).

python -m experiments.context_distillation --config=configs/context_distillation.py:7b --workdir=DIR \
    [--config.FIELD=VALUE ...]

For every adversarial prompt (CD-4) three answers: as it is, under a generic preprompt, under the
answer template of its risk category. All are scored under the bare prompt, and the better of the
two others, if it has no flaw, is written only where it beats the original (CD-5, D72). ``sft`` then
trains on ``dialogues.jsonl``. See ``configs/context_distillation.py``.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from experiments.models import load_judge, open_mesh
from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.context_distillation_plots import plot_increase, plot_scores
from llama2_jax.answers import Answer, sample_answers
from llama2_jax.config import build, keep_config, require, require_choice, to_plain, write_json
from llama2_jax.data import context_distillation as preprompts
from llama2_jax.data.chat import Message, Template, answer_flaw, encode_prompt
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.prompts import Prompt, read_prompts_to_train_on
from llama2_jax.data.sources import dialogue_row
from llama2_jax.generate.decode import SEED_LIMIT
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch_experiment
from llama2_jax.losses.preference import displayed
from llama2_jax.pretrained import LoadedModel, for_decoding, load
from llama2_jax.rlhf.archive import checked_rows
from llama2_jax.rlhf.reward_model import RewardModel, score_rows
from llama2_jax.workdir import mark_done, open_workdir

BASE, GENERIC, TEMPLATE = "base", "generic preprompt", "answer template"
SELECTED, PASSED_OVER, NOT_HIGHER = "selected", "higher, passed over", "not higher"
EXAMPLES = 5


class Candidate(NamedTuple):
    """One answer: ``score`` is the raw output of the reward model under the bare prompt."""

    answer: Answer
    score: float
    preprompt: str  # that it was sampled under, "" for none


class Choice(NamedTuple):
    """What became of one prompt: how its distilled answer was made, and why it was kept or not."""

    how: str
    decision: str


def run(config: Any, workdir: Path) -> None:
    """Write ``dialogues.jsonl``, ``candidates.jsonl``, ``results.json``, the pictures and ``report.md``.

    Where no answer beats the original one ``dialogues.jsonl`` is empty: there is nothing to train on.
    """
    check_config(config)
    if open_workdir(config, workdir):
        return
    prompts = checked_prompts(config, load(config.init_from, with_params=False))
    loaded = load(config.init_from, partitioner=open_mesh(config), **config.model)
    reward_model = load_judge(config, loaded, config.safety_rm, "safety", prompts, field="config.safety_rm")
    loaded = for_decoding(loaded)
    keep_config(config, workdir)
    candidates = {
        how: candidates_for(own, prompts, loaded, reward_model, config)
        for how, own in preprompts_for(prompts, config).items()
    }
    choices = [
        choose(
            {how: found[i] for how, found in candidates.items()}, loaded.template, wording=config.data.wording
        )
        for i in range(len(prompts))
    ]
    rows = [
        # the last answer alone: earlier ones of an adversarial dialogue have passed no gate
        dialogue_row(
            [*prompt.messages, Message("assistant", candidates[choice.how][i].answer.text.strip())],
            train_on="last",
        )
        for i, (prompt, choice) in enumerate(zip(prompts, choices, strict=True))
        if choice.decision == SELECTED
    ]
    write_rows(workdir / "dialogues.jsonl", rows)
    write_rows(workdir / "candidates.jsonl", candidate_rows(prompts, candidates, choices))
    results = summarise(candidates, choices)
    write_json(workdir / "results.json", results)
    draw_pictures(workdir, candidates, choices)
    write_report(workdir, results, prompts, candidates, choices)
    mark_done(workdir)


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    require_choice("data.wording", config.data.wording, preprompts.WORDINGS)
    for name in ("init_from", "safety_rm", "prompts"):
        require(bool(config[name]), f"config.{name} is empty; name the file or checkpoint")
    require(config.num_prompts >= 0, f"config.num_prompts = {config.num_prompts} must not be negative")
    build(SamplingConfig, config.sampling, name="sampling")


def adversarial_prompts(path: str) -> list[Prompt]:
    """The prompts with the safety tag, and no other: on helpful ones distillation does harm (CD-4).

    Raises:
      ConfigError: there is none, or one has a risk category without an answer template.
    """
    prompts = read_prompts_to_train_on(path)
    adversarial = [prompt for prompt in prompts if prompt.is_safety]
    require(
        bool(adversarial),
        f"{path}: none of {len(prompts)} prompts has is_safety; context distillation is for adversarial ones",
    )
    for prompt in adversarial:
        require_choice(
            f"{path}: risk_category of prompt {prompt.prompt_id!r}",
            prompt.risk_category,
            preprompts.ANSWER_PARTS,
        )
    return adversarial


def checked_prompts(config: Any, model: LoadedModel) -> list[Prompt]:
    """The prompts of this run, which the model, also without parameters, can answer under each preprompt."""
    prompts = adversarial_prompts(config.prompts)[: config.num_prompts or None]
    for own in preprompts_for(prompts, config).values():
        checked_rows(model, _under(own, prompts))
    return prompts


def preprompts_for(prompts: Sequence[Prompt], config: Any) -> dict[str, list[str]]:
    """For each way of sampling the preprompt of every prompt, "" for none."""
    rng, wording = Random(config.data.seed), config.data.wording
    generic = preprompts.generic_preprompts(wording)
    return {
        BASE: [""] * len(prompts),
        GENERIC: [rng.choice(generic) for _ in prompts],
        TEMPLATE: [preprompts.answer_template(prompt.risk_category, wording) for prompt in prompts],
    }


def _under(own_preprompts: Sequence[str], prompts: Sequence[Prompt]) -> list[Prompt]:
    return [
        prompt._replace(messages=tuple(preprompts.with_preprompt(prompt.messages, own))) if own else prompt
        for prompt, own in zip(prompts, own_preprompts, strict=True)
    ]


def candidates_for(
    own_preprompts: Sequence[str],
    prompts: Sequence[Prompt],
    loaded: LoadedModel,
    reward_model: RewardModel,
    config: Any,
) -> list[Candidate]:
    """Answers under the preprompts, scored as answers to the bare prompts, so that they can be compared.

    The ids that are scored are those sampled. All answers to a prompt use the same seed.
    """
    answers = sample_answers(
        loaded,
        [prompt.messages for prompt in _under(own_preprompts, prompts)],
        build(SamplingConfig, config.sampling, name="sampling"),
        seeds=[(config.data.seed + index) % SEED_LIMIT for index in range(len(prompts))],
        batch_size=config.batch_size,
    )
    tokenizer = loaded.require_tokenizer()
    rows = [
        [*encode_prompt(prompt.messages, tokenizer, loaded.template), *answer.tokens]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    scores = score_rows(reward_model, rows, batch_size=config.batch_size)
    found = zip(answers, scores, own_preprompts, strict=True)
    return [Candidate(answer, float(score), preprompt) for answer, score, preprompt in found]


def choose(candidates: Mapping[str, Candidate], template: Template, *, wording: str) -> Choice:
    """The better of the two answers under a preprompt, and whether it replaces the original.

    It does if its score is strictly greater (D72), and it has an end and a text, without special tags or a
    preprompt in it. An answer with such a flaw gives way to the other, if that one is better too.
    """
    ranked = sorted((GENERIC, TEMPLATE), key=lambda name: -candidates[name].score)  # the first of equal ones
    better = [how for how in ranked if candidates[how].score > candidates[BASE].score]
    if not better:
        return Choice(ranked[0], "rejected: not better")
    flaws = {how: _flaw(candidates[how].answer, template, wording=wording) for how in better}
    for how in better:
        if not flaws[how]:
            return Choice(how, SELECTED)
    return Choice(better[0], f"rejected: {flaws[better[0]]}")


def _flaw(answer: Answer, template: Template, *, wording: str) -> str:
    """Why an answer cannot be trained on; empty if it can."""
    if flaw := answer_flaw(answer.text, template, stopped=answer.stopped):
        return flaw
    return "repeats a preprompt" if preprompts.quotes_preprompt(answer.text, wording) else ""


def candidate_rows(
    prompts: Sequence[Prompt], candidates: Mapping[str, Sequence[Candidate]], choices: Sequence[Choice]
) -> Iterator[dict[str, Any]]:
    """All answers to every prompt, the rejected ones too (Tables 13, 39 and 40)."""
    for i, (prompt, choice) in enumerate(zip(prompts, choices, strict=True)):
        yield {
            "prompt_id": prompt.prompt_id,
            "messages": to_plain(prompt.messages),
            "risk_category": prompt.risk_category,
            "decision": choice.decision,
            "distilled": choice.how,
            "answers": {
                how: {
                    "preprompt": found[i].preprompt,
                    "answer": found[i].answer.text,
                    "stopped": found[i].answer.stopped,
                    "score": found[i].score,
                }
                for how, found in candidates.items()
            },
        }


def summarise(candidates: Mapping[str, Sequence[Candidate]], choices: Sequence[Choice]) -> dict[str, Any]:
    """Medians of Figure 16a, means (which still differ where most answers are safe), counts of the gate."""
    raw = {how: np.array([one.score for one in found]) for how, found in candidates.items()}
    scores = {how: displayed(found) for how, found in raw.items()}
    gains = [gain for _, gain in increases(candidates, choices)[SELECTED]]
    return {
        "prompts": len(choices),
        "decisions": dict(Counter(choice.decision for choice in choices)),
        "selected": len(gains),
        "selected_by_preprompt": dict(
            Counter(choice.how for choice in choices if choice.decision == SELECTED)
        ),
        "median_safety_score": {how: float(np.median(found)) for how, found in scores.items()},
        "mean_safety_score": {how: float(np.mean(found)) for how, found in scores.items()},
        "higher_than_base": {how: int((found > raw[BASE]).sum()) for how, found in raw.items()},
        "lower_than_base": {how: int((found < raw[BASE]).sum()) for how, found in raw.items()},
        "mean_increase_of_selected": float(np.mean(gains)) if gains else None,
    }


def displayed_scores(candidates: Sequence[Candidate]) -> np.ndarray:
    """Scores in [0, 1], for people to read; the gate uses raw ones."""
    return displayed([candidate.score for candidate in candidates])


def increases(
    candidates: Mapping[str, Sequence[Candidate]], choices: Sequence[Choice]
) -> dict[str, list[tuple[float, float]]]:
    """The original's score and the increase of every answer under a preprompt, by what became of it.

    Of all of them, as Figure 16b tells what a preprompt does: the better one of two hides what harm it does.
    """
    found: dict[str, list[tuple[float, float]]] = {SELECTED: [], PASSED_OVER: [], NOT_HIGHER: []}
    before = displayed_scores(candidates[BASE])
    for how in (GENERIC, TEMPLATE):
        after = displayed_scores(candidates[how])
        for i, choice in enumerate(choices):
            is_higher = candidates[how][i].score > candidates[BASE][i].score
            label = SELECTED if choice == (how, SELECTED) else PASSED_OVER if is_higher else NOT_HIGHER
            found[label].append((float(before[i]), float(after[i] - before[i])))
    return found


def draw_pictures(
    workdir: Path, candidates: Mapping[str, Sequence[Candidate]], choices: Sequence[Choice]
) -> None:
    """``scores.png`` (Figure 16a) and ``increase.png`` (Figure 16b)."""
    plot_scores(
        workdir / "scores.png", {how: list(displayed_scores(found)) for how, found in candidates.items()}
    )
    plot_increase(workdir / "increase.png", increases(candidates, choices))


def write_report(
    workdir: Path,
    results: Mapping[str, Any],
    prompts: Sequence[Prompt],
    candidates: Mapping[str, Sequence[Candidate]],
    choices: Sequence[Choice],
) -> None:
    """Write ``report.md``."""
    lines = ["# Safety context distillation", "", "Llama 2, section 4.2.4, Figure 16.", ""]
    scores = [
        (
            how,
            f"{median:.3f}",
            f"{results['mean_safety_score'][how]:.3f}",
            *(f"{results[side][how]:,}" for side in ("higher_than_base", "lower_than_base")),
        )
        for how, median in results["median_safety_score"].items()
    ]
    header = ("answer sampled with", "safety score: median", "mean", "higher than base", "lower than base")
    lines += [*table(header, scores), ""]
    decisions = [(name, f"{count:,}") for name, count in results["decisions"].items()]
    lines += table(("decision", "prompts"), decisions)
    increase = results["mean_increase_of_selected"]
    if increase is None:
        lines += ["", "No answer was selected: the model does not react to preprompts, or is safe already."]
    else:
        lines += ["", f"Mean increase of the score where selected: {increase:.3f}."]
    lines += ["", "![scores](scores.png)", "", "![increase](increase.png)"]
    for title, is_shown in (("Selected", True), ("Rejected", False)):
        shown = [i for i, choice in enumerate(choices) if (choice.decision == SELECTED) == is_shown]
        lines += ["", f"## {title}, for example"] if shown else []
        for i in shown[:EXAMPLES]:
            original, distilled = candidates[BASE][i], candidates[choices[i].how][i]
            lines += ["", *_example(prompts[i], choices[i], original, distilled)]
    write_report_file(workdir, lines)


def _example(prompt: Prompt, choice: Choice, original: Candidate, distilled: Candidate) -> list[str]:
    """A prompt with its own answer and the distilled one, as in Tables 13, 39 and 40."""
    return [
        f"> **user** {quote(prompt.messages[-1].content)}  ",
        f"> **{BASE}** ({original.score:+.2f}) {quote(original.answer.text)}  ",
        f"> **{choice.how}** {quote(distilled.preprompt)}  ",
        f"> **answer under it** ({distilled.score:+.2f}; {choice.decision}) {quote(distilled.answer.text)}  ",
    ]


if __name__ == "__main__":
    launch_experiment(run)
