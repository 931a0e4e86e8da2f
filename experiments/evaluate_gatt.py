"""Ghost Attention, evaluation: does a model keep an instruction? (Llama 2, Table 30, Figure 10)

python -m experiments.evaluate_gatt --config=configs/evaluate_gatt.py:7b --workdir=DIR \
    [--config.FIELD=VALUE ...]

Asks every model the same: what the first message set, turns later (GATT-6), and whether answers
keep constraints that no training data holds (GATT-7). See ``configs/evaluate_gatt.py``.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from experiments.gatt_inputs import attributes_named, check_inputs, checked_prompts
from experiments.models import open_chat_model
from experiments.report import percent, quote, table, write_report_file
from llama2_jax.analysis.attention import attention_to, binned, differing_span, max_attention
from llama2_jax.analysis.gatt_plots import plot_accuracy, plot_attention
from llama2_jax.answers import sample_token_rows
from llama2_jax.config import build, keep_config, require, write_json
from llama2_jax.data import gatt
from llama2_jax.data.chat import Message, encode_dialogue, encode_prompt
from llama2_jax.data.gatt import Attributes, Instruction
from llama2_jax.evals.intervals import Interval, clustered_share
from llama2_jax.evals.persona import CONSTRAINTS, Outcome, TurnAccuracy, accuracy_by_turn
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch_experiment
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.rlhf.conversations import View, converse, prompt_with_room
from llama2_jax.workdir import mark_done, open_workdir

ATTENTION_BINS = 48
NO_ANSWER = "no answer fits the context"
LISTS = {
    "training_lists": ("training lists", "accuracy.png"),
    "heldout_lists": ("held-out lists", "accuracy_heldout.png"),
}
"""Which values are asked for, with their title and their picture."""


class Probe(NamedTuple):
    """A dialogue whose first message sets something, and what is asked at a turn of it."""

    instruction: Instruction
    user_turns: list[str]
    questions: dict[int, tuple[str, str]]  # turn -> (attribute, question)


class Attention(NamedTuple):
    """Who looks back at what within one dialogue."""

    weights_TS: np.ndarray  # the largest over layers and heads
    span: tuple[int, int]  # tokens of the instruction
    starts: list[int]  # first token of every answer
    to_instruction: list[float]  # one number per answer, see ``attention_to``


def run(config: Any, workdir: Path) -> None:
    """Write ``results.json``, the pictures and ``report.md``."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    attributes = attributes_named(config.data.attributes)
    for path in config.models.values():  # all before the first has answered
        checked_prompts(config, load(path, with_params=False))
    keep_config(config, workdir)
    results: dict[str, Any] = {}
    seen: dict[str, Attention] = {}
    dialogues: dict[str, list[Message]] = {}
    for name, path in config.models.items():
        loaded = open_chat_model(path, config)
        results[name] = evaluate(loaded, config, attributes)
        dialogues[name] = instructed_dialogue(loaded, config, attributes)
        first = next(iter(dialogues.values()))  # attention is within the same text for all models
        if len(first) > 2:
            seen[name] = look_back(loaded, first)
            results[name]["attention_to_instruction"] = seen[name].to_instruction
    write_json(workdir / "results.json", results)
    draw_pictures(config, workdir, results, seen)
    write_report(workdir, results, seen, dialogues)
    mark_done(workdir)


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    models, turns = dict(config.models), tuple(config.eval.turns)
    empty = [name for name, path in models.items() if not path]
    require(bool(models) and not empty, f"config.models lacks a path for {', '.join(empty) or 'any model'}")
    require(min(turns, default=0) >= 2, f"eval.turns = {turns}; turn 1 sets the instruction, ask from 2 on")
    check_inputs(config)
    build(SamplingConfig, config.sampling, name="sampling")


def evaluate(loaded: LoadedModel, config: Any, attributes: Attributes) -> dict[str, Any]:
    """Table 30 for one model, for values from the training lists and from others, and GATT-7."""
    texts = checked_prompts(config, loaded)
    sampling = build(SamplingConfig, config.sampling, name="sampling")
    turns = tuple(config.eval.turns)
    found: dict[str, Any] = {}
    for name in LISTS:
        probes = draw_probes(config, texts, attributes, heldout=name == "heldout_lists")
        outcomes = ask(loaded, probes, attributes, sampling, config)
        found[name] = accuracy_by_turn(outcomes, turns)
    found["unseen_constraints"] = unseen_constraints(loaded, texts, sampling, config)
    return found


def draw_probes(config: Any, texts: Sequence[str], attributes: Attributes, *, heldout: bool) -> list[Probe]:
    """The same probes for every model, of attributes that leave answers readable."""
    rng = Random(config.data.seed)
    attributes = gatt.readable(attributes)
    probes = []
    for _ in range(config.eval.num_dialogues):
        instruction = gatt.draw_instruction(rng, attributes, heldout=heldout)
        questions = {}
        for turn in config.eval.turns:
            name = rng.choice(list(instruction.values))
            questions[turn] = (name, rng.choice(attributes[name].questions))
        user_turns = [rng.choice(texts) for _ in range(max(config.eval.turns) - 1)]
        probes.append(Probe(instruction, user_turns, questions))
    return probes


def ask(
    loaded: LoadedModel,
    probes: Sequence[Probe],
    attributes: Attributes,
    sampling: SamplingConfig,
    config: Any,
) -> list[Outcome]:
    """Answers to all questions. Each is asked in a copy of the dialogue, so none sees another's answer.

    After an answer with a flaw, which ended the dialogue, the rest counts as wrong.
    """
    conversations = converse(
        loaded,
        [probe.user_turns for probe in probes],
        [partial(gatt_prompt, instruction=probe.instruction.text) for probe in probes],
        sampling,
        seed=config.data.seed,
        batch_size=config.batch_size,
    )
    outcomes, rows, asked = [], [], []
    for probe, conversation in zip(probes, conversations, strict=True):
        for turn, (name, question) in probe.questions.items():
            earlier = conversation.messages[: 2 * (turn - 1)]
            row = None
            if len(earlier) == 2 * (turn - 1):
                messages = gatt_prompt([*earlier, Message("user", question)], probe.instruction.text)
                row = prompt_with_room(loaded, messages, sampling)
            if row is None:
                outcomes.append(Outcome(turn, False if conversation.flaw else None))
            else:
                rows.append(row)
                asked.append((turn, attributes[name], probe.instruction.values[name]))
    answers = sample_token_rows(loaded, rows, sampling, seeds=range(len(rows)), batch_size=config.batch_size)
    for (turn, attribute, value), answer in zip(asked, answers, strict=True):
        outcomes.append(Outcome(turn, gatt.states(answer.text, value, attribute)))
    return outcomes


def gatt_prompt(messages: Sequence[Message], instruction: str) -> list[Message]:
    """What the model sees when it is tested: the instruction once, in the first turn (D55)."""
    return [Message("system", instruction), *messages]


def unseen_constraints(
    loaded: LoadedModel, texts: Sequence[str], sampling: SamplingConfig, config: Any
) -> dict[str, Any]:
    """Share of all answers of short dialogues that keep a constraint, with and without the instruction.

    And the first dialogue under each, messages with their answers (Figure 28).

    Users draw from the same messages, and equal ones mostly get equal answers: intervals take the answers to
    one message to go together.
    """
    rng = Random(config.data.seed)
    user_turns = [
        [rng.choice(texts) for _ in range(config.eval.constraint_turns)]
        for _ in range(config.eval.num_dialogues)
    ]

    def answers(view: View) -> list[list[tuple[str, str]]]:
        conversations = converse(
            loaded, user_turns, [view] * len(user_turns), sampling, seed=config.data.seed,
            batch_size=config.batch_size,
        )  # fmt: skip
        found = []
        for turns, one in zip(user_turns, conversations, strict=True):
            said = [message.content for message in one.messages[1::2]]
            found.append(list(zip(turns, [*said, ""] if one.flaw else said, strict=False)))
        return found

    untold = answers(list)
    found = {}
    for name, (instruction, check) in CONSTRAINTS.items():
        told = answers(partial(gatt_prompt, instruction=instruction))
        shares = {"instructed": _kept(told, check), "not_instructed": _kept(untold, check)}
        found[name] = {"instruction": instruction, **shares, "first_dialogue": told[0]}
    return found


def _kept(
    dialogues: Sequence[Sequence[tuple[str, str]]], check: Callable[[str], bool]
) -> dict[str, float] | None:
    """Of pairs of message and answer."""
    answers = list(itertools.chain.from_iterable(dialogues))
    if not answers:
        return None
    share = clustered_share([check(said) for _, said in answers], [asked for asked, _ in answers])
    return {**share._asdict(), "answers": len(answers)}


def instructed_dialogue(loaded: LoadedModel, config: Any, attributes: Attributes) -> list[Message]:
    """The same questions under one instruction, with this model's answers, as far as its context reaches."""
    rng = Random(config.data.seed)
    texts = checked_prompts(config, loaded)
    attribute = next(iter(attributes.values()))
    instruction = attribute.long.format(attribute.values[0])
    user_turns = [rng.choice(texts) for _ in range(config.eval.attention_turns)]
    sampling = build(SamplingConfig, config.sampling, name="sampling")
    view = partial(gatt_prompt, instruction=instruction)
    found = converse(loaded, [user_turns], [view], sampling, seed=config.data.seed, batch_size=1)
    return gatt_prompt(found[0].messages, instruction)


def look_back(loaded: LoadedModel, dialogue: Sequence[Message]) -> Attention:
    """Attention within a dialogue that begins with an instruction and has at least one answer."""
    tokenizer, template = loaded.require_tokenizer(), loaded.template
    tokens = encode_dialogue(dialogue, tokenizer, template).tokens
    other = encode_dialogue([Message("system", "?"), *dialogue[1:]], tokenizer, template).tokens
    turns = [
        (
            len(encode_prompt(dialogue[: number + 1], tokenizer, template)),
            len(encode_dialogue(dialogue[: number + 2], tokenizer, template).tokens),
        )
        for number in range(1, len(dialogue), 2)
    ]
    span = differing_span(tokens, other)
    weights_TS = max_attention(loaded.model, loaded.params, tokens)
    return Attention(weights_TS, span, [first for first, _ in turns], attention_to(weights_TS, span, turns))


def draw_pictures(
    config: Any, workdir: Path, results: Mapping[str, Any], seen: Mapping[str, Attention]
) -> None:
    """``accuracy.png``, ``accuracy_heldout.png`` and ``attention.png``."""
    for lists, (title, file) in LISTS.items():
        rows = {
            name: [(row.turn, *row.accuracy) for row in found[lists] if row.accuracy is not None]
            for name, found in results.items()
        }
        reached = {row[0] for several in rows.values() for row in several}
        plot_accuracy(
            workdir / file,
            rows,
            beyond_context=[turn for turn in config.eval.turns if turn not in reached],
            title=f"What the first message set, asked for later ({title})",
        )
    if not seen:
        return
    first = next(iter(seen.values()))
    size = max(1, len(first.weights_TS) // ATTENTION_BINS)
    plot_attention(
        workdir / "attention.png",
        {name: binned(found.weights_TS, size) for name, found in seen.items()},
        bin_size=size,
        instruction_bins=(first.span[0] / size, first.span[1] / size),
        turn_bins=[start / size for start in first.starts],
        title="Attention within a dialogue under an instruction",
    )


def write_report(
    workdir: Path,
    results: Mapping[str, Any],
    seen: Mapping[str, Attention],
    dialogues: Mapping[str, Sequence[Message]],
) -> None:
    """Write ``report.md``."""
    lines = ["# Ghost Attention: evaluation", "", "Llama 2, section 3.3, Table 30 and Figures 9, 10 and 28."]
    for lists, (title, file) in LISTS.items():
        turns = [row.turn for row in next(iter(results.values()))[lists]]
        rows = [(name, *map(_accuracy_cell, found[lists])) for name, found in results.items()]
        lines += ["", f"## Right answers by turn, {title}", ""]
        lines += table(("model", *(f"turn {turn}" for turn in turns)), rows)
        lines += ["", f"![accuracy by turn]({file})"]
    lines += ["", "## Constraints that no training data holds (GATT-7)", ""]
    lines += ["Share of answers that keep the constraint, with the instruction and without it.", ""]
    rows = [
        (text, *(_constraint_cell(found["unseen_constraints"][name]) for found in results.values()))
        for name, (text, _) in CONSTRAINTS.items()
    ]
    lines += [*table(("constraint", *results), rows), "", "The first dialogue under each (Figure 28):"]
    for name, (text, _) in CONSTRAINTS.items():
        lines += ["", f"**{text}**", ""]
        lines += [
            f"- {model}: {_first(found['unseen_constraints'][name])}" for model, found in results.items()
        ]
    lines += _attention_lines(seen)
    lines += ["", "## The same questions under one instruction (Figure 9)"]
    for name, dialogue in dialogues.items():
        lines += ["", f"{name}:", ""]
        lines += [f"- {message.role}: {quote(message.content)}" for message in dialogue]
    write_report_file(workdir, lines)


def _attention_lines(seen: Mapping[str, Attention]) -> list[str]:
    lines = ["", "## Attention of the answers to the instruction (Figure 10)", ""]
    if not seen:
        return [*lines, "The first model gave no answer to look back from."]
    lines += [
        "Largest weight over layers, heads and tokens of the instruction, mean over the tokens of an answer.",
        "",
    ]
    answers = range(1, 1 + max(len(found.to_instruction) for found in seen.values()))
    rows = [(name, *(f"{value:.2f}" for value in found.to_instruction)) for name, found in seen.items()]
    lines += table(("model", *(f"answer {n}" for n in answers)), rows)
    return [*lines, "", "![attention](attention.png)"]


def _accuracy_cell(row: TurnAccuracy) -> str:
    if row.accuracy is None:
        return f"beyond the context ({row.beyond_context})"
    beyond = f", {row.beyond_context} beyond the context" if row.beyond_context else ""
    return f"{percent(row.accuracy)} of {row.asked}{beyond}"


def _first(found: Mapping[str, Any]) -> str:
    turns = [f"{quote(asked)} **{quote(said)}**" for asked, said in found["first_dialogue"]]
    return " / ".join(turns) or NO_ANSWER


def _constraint_cell(shares: Mapping[str, Any]) -> str:
    both = shares["instructed"], shares["not_instructed"]
    if not all(both):
        return NO_ANSWER
    return ", ".join(f"{percent(Interval.of(one))} of {one['answers']}" for one in both)


if __name__ == "__main__":
    launch_experiment(run)
