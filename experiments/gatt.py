"""Ghost Attention, synthesis: dialogues that keep an instruction (Llama 2, section 3.3).

python -m experiments.gatt --config=configs/gatt.py:7b --workdir=DIR [--config.FIELD=VALUE ...]

The model samples every answer with the instruction before every message of the user; what is
written has it once, in the system slot, and only the last answer is learned (GATT-1, GATT-2).
``sft`` then trains on ``dialogues.jsonl``. See ``configs/gatt.py``.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from experiments.gatt_inputs import attributes_named, check_inputs, checked_prompts
from experiments.models import open_chat_model
from experiments.report import quote, table, write_report_file
from llama2_jax.config import build, keep_config, require, write_json
from llama2_jax.data import gatt
from llama2_jax.data.chat import Message
from llama2_jax.data.gatt import Attributes, Instruction
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.sources import dialogue_row
from llama2_jax.generate.decode import SEED_LIMIT
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch_experiment
from llama2_jax.pretrained import LoadedModel
from llama2_jax.rlhf.conversations import Conversation, answer_again, converse
from llama2_jax.workdir import mark_done, open_workdir

TRANSCRIPTS = 5
KEPT = "kept"
WRONG = "instruction not kept"


def run(config: Any, workdir: Path) -> None:
    """Write ``dialogues.jsonl``, ``results.json`` and ``report.md``."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    data = config.data
    attributes = attributes_named(data.attributes)
    loaded = open_chat_model(config.init_from, config)
    texts = checked_prompts(config, loaded)
    instructions, user_turns = draw(data, texts, attributes)
    keep_config(config, workdir)
    conversations, outcomes = answer(loaded, config, user_turns, instructions, attributes)
    kept = [
        gatt.training_dialogue(conversation.messages, instruction.text)
        for conversation, instruction, found in zip(conversations, instructions, outcomes, strict=True)
        if found == KEPT
    ]
    counts = Counter(outcomes)
    require(
        bool(kept), f"none of {len(outcomes)} dialogues can be used: {dict(counts)}; see docs/alignment.md"
    )
    write_rows(workdir / "dialogues.jsonl", (dialogue_row(dialogue, train_on="last") for dialogue in kept))
    results = {
        "dialogues": dict(counts),
        "turns": dict(sorted(Counter((len(dialogue) - 1) // 2 for dialogue in kept).items())),
        "instruction_kept": count_kept(conversations, instructions, attributes),
    }
    write_json(workdir / "results.json", results)
    write_report(workdir, results, kept)
    mark_done(workdir)


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    data = config.data
    require(bool(config.init_from), "config.init_from is empty; name the latest chat model")
    require(data.num_dialogues > 0, f"data.num_dialogues = {data.num_dialogues} must be positive")
    require(
        2 <= data.min_turns <= data.max_turns,
        f"data.min_turns = {data.min_turns} and data.max_turns = {data.max_turns}; "
        "an instruction is kept over at least 2 turns, and min_turns must not be above max_turns",
    )
    require(data.tries >= 1, f"data.tries = {data.tries} must be at least 1")
    require(
        data.check or data.tries == 1,
        f"data.tries = {data.tries}, but without data.check no answer is wrong; set data.check or tries to 1",
    )
    check_inputs(config)
    build(SamplingConfig, config.sampling, name="sampling")


def draw(
    data: Any, texts: Sequence[str], attributes: Attributes
) -> tuple[list[Instruction], list[list[str]]]:
    """An instruction and the user's messages for every dialogue."""
    rng = Random(data.seed)
    instructions, user_turns = [], []
    for _ in range(data.num_dialogues):
        instructions.append(gatt.draw_instruction(rng, attributes))
        turns = gatt.draw_user_turns(
            rng,
            texts,
            instructions[-1],
            attributes,
            num_turns=rng.randint(data.min_turns, data.max_turns),
            question_fraction=data.question_fraction,
        )
        user_turns.append(turns)
    return instructions, user_turns


def answer(
    loaded: LoadedModel,
    config: Any,
    user_turns: Sequence[Sequence[str]],
    instructions: Sequence[Instruction],
    attributes: Attributes,
) -> tuple[list[Conversation], list[str]]:
    """Dialogues and their outcomes; a last answer that is found wrong is sampled up to ``tries`` times.

    Without that the values that the model gets wrong most would hardly be trained on.
    """
    views = [partial(gatt.with_instruction_everywhere, instruction=one.text) for one in instructions]
    sampling = build(SamplingConfig, config.sampling, name="sampling")
    seed, batch_size = config.data.seed, config.batch_size
    found = converse(loaded, user_turns, views, sampling, seed=seed, batch_size=batch_size)

    def judged(number: int) -> str:
        return outcome(found[number], instructions[number], attributes, check=config.data.check)

    outcomes = list(map(judged, range(len(found))))
    rng = Random(f"tries {seed}")
    for _ in range(1, config.data.tries):
        wrong = [number for number, one in enumerate(outcomes) if one == WRONG]
        again = answer_again(
            loaded,
            [found[number] for number in wrong],
            [views[number] for number in wrong],
            sampling,
            seeds=[rng.randrange(SEED_LIMIT) for _ in wrong],
            batch_size=batch_size,
        )
        for number, conversation in zip(wrong, again, strict=True):
            found[number] = conversation
            outcomes[number] = judged(number)
    return found, outcomes


def outcome(
    conversation: Conversation, instruction: Instruction, attributes: Attributes, *, check: bool
) -> str:
    """``KEPT``, or why a dialogue is not trained on."""
    if conversation.flaw:
        return conversation.flaw
    if not conversation.finished:
        return "beyond the context"
    if not conversation.stopped:
        return "unfinished"  # its last answer
    question, answer = (message.content for message in conversation.messages[-2:])
    if check and not gatt.is_satisfied(instruction, question, answer, attributes):
        return WRONG
    return KEPT


def count_kept(
    conversations: Sequence[Conversation], instructions: Sequence[Instruction], attributes: Attributes
) -> dict[str, int]:
    """How many explicit questions at the end got the answer that the instruction asks for.

    Of dialogues in another language nothing is counted.
    """
    asked = right = 0
    for conversation, instruction in zip(conversations, instructions, strict=True):
        question, answer = ("", "", *(message.content for message in conversation.messages))[-2:]
        told = gatt.is_readable(instruction, attributes)
        if told and conversation.finished and gatt.asked_attribute(question, attributes):
            asked += 1
            right += gatt.is_satisfied(instruction, question, answer, attributes)
    return {"asked": asked, "right": right}


def write_report(workdir: Path, results: dict[str, Any], kept: Sequence[Sequence[Message]]) -> None:
    """Write ``report.md``: counts and a few dialogues."""
    asked, right = results["instruction_kept"]["asked"], results["instruction_kept"]["right"]
    rows = [(name, f"{count:,}") for name, count in results["dialogues"].items()]
    lines = ["# Ghost Attention: synthesis", "", "Llama 2, section 3.3.", "", *table(("dialogues", ""), rows)]
    lines += [
        "",
        f"Explicit questions in the last turn, at last answered as the instruction asks: {right} of {asked}.",
        "",
    ]
    for dialogue in kept[:TRANSCRIPTS]:
        lines += [f"> **{message.role}** {quote(message.content)}  " for message in dialogue] + [""]
    write_report_file(workdir, lines)


if __name__ == "__main__":
    launch_experiment(run)
