"""Turn the fetched KJV and chitchat files, and the simulated world, into the data of the demo.

python -m tools.prepare_demo_data --output=runs/demo/data

KJV: one document per chapter, the chapter's name as heading, the verses joined as prose.
Chitchat: one document per conversation (a turn per line, cut where a turn was not usable), and
dialogues for fine-tuning. About 2 % of chapters and conversations are held out, chosen by a hash
of their name, so a conversation is in the same part as document and as dialogue.
World: documents to learn it from, demonstrations for fine-tuning (about half of them good), prompts
for the rounds of annotation and sampling, held-out prompts for early stopping and the reward models'
test, prompts of which no other file has the text, for the final evaluation, preferences that no model of
ours had part in, for the guard (RM-18), and helpful and safe dialogues apart with prompts of the evaluation's
part, for the scaling of safety data (SAFE-7).
"""

import argparse
import dataclasses
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from llama2_jax.config import require
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.preferences import write_preferences
from llama2_jax.data.prompts import write_prompts
from llama2_jax.rlhf.annotator import public, safety_data, world
from tools import command_line
from tools.fetch_assets import asset_path

HELDOUT_ONE_IN = 50
MAX_TURN_CHARACTERS = 300
MAX_EXCHANGES = 3
MAX_DIALOGUE_CHARACTERS = 2 * MAX_TURN_CHARACTERS  # so that dialogues fit a context of 256 tokens
URL = re.compile(r"(https?://|www\.)\S+")
PERSONAL = re.compile(r"\S+@\S+\.\w+|\d[\d\s().-]{6,}\d")  # mail addresses, telephone numbers
TAG = re.compile(r"</?\w+>")


def kjv_documents(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of every chapter, from one JSON verse per line."""
    chapters: dict[str, list[str]] = {}
    for line in lines:
        verse = json.loads(line)
        chapters.setdefault(f"{verse['book']} {verse['chapter']}", []).append(verse["text"].strip())
    for name, verses in chapters.items():
        yield name, f"{name}\n\n{' '.join(verses)}\n"


def conversation_turns(conversation: dict[str, Any]) -> list[str | None]:
    """One text per turn, alternating between two people; None where cleaning left nothing usable."""
    return [_clean(join_utterances([u["text"] for u in turn])) for turn in conversation["messages"]]


def join_utterances(utterances: Iterable[str]) -> str:
    """Utterances of one turn as one message, with a full stop where one ended without a mark."""
    kept = [" ".join(TAG.sub("", text).split()) for text in utterances if not URL.fullmatch(text.strip())]
    kept = [text for text in kept if text]
    closed = [text + "." if text[-1].isalnum() else text for text in kept[:-1]]
    return " ".join([*closed, *kept[-1:]])


def conversation_documents(turns: list[str | None]) -> Iterator[str]:
    """Every unbroken stretch of at least two turns, a turn per line."""
    for stretch in _stretches(turns):
        if len(stretch) > 1:
            yield "\n".join(stretch) + "\n"


def conversation_dialogues(turns: list[str | None]) -> Iterator[list[dict[str, str]]]:
    """Dialogues of a few exchanges within the limits above, user first and assistant last."""
    for stretch in _stretches(turns):
        dialogue: list[dict[str, str]] = []
        for user, assistant in zip(stretch[::2], stretch[1::2], strict=False):
            length = len(user) + len(assistant) + sum(len(message["content"]) for message in dialogue)
            if len(dialogue) == 2 * MAX_EXCHANGES or (dialogue and length > MAX_DIALOGUE_CHARACTERS):
                yield dialogue
                dialogue = []
            dialogue.append({"role": "user", "content": user})
            dialogue.append({"role": "assistant", "content": assistant})
        if dialogue:
            yield dialogue


def name_is_heldout(name: str) -> bool:
    """The same answer for a name on every machine and in every run.

    Not the rule of ``data.preferences.is_heldout``, which goes by the text of a prompt.
    """
    return zlib.crc32(name.encode()) % HELDOUT_ONE_IN == 0


def prepare(kjv: Path, chitchat: Path, output: Path) -> dict[str, int]:
    """Write all files under ``output`` and return the number of rows of each."""
    conversations = json.loads(chitchat.read_text(encoding="utf-8"))
    turns = {name: conversation_turns(conversation) for name, conversation in conversations.items()}
    chats = ((name, text) for name, texts in turns.items() for text in conversation_documents(texts))
    dialogues = ((name, d) for name, texts in turns.items() for d in conversation_dialogues(texts))
    with kjv.open(encoding="utf-8") as lines:
        chapters = list(kjv_documents(lines))
    counts = _write_split(output / "kjv", "documents", ((n, {"text": text}) for n, text in chapters))
    counts |= _write_split(output / "chitchat", "documents", ((n, {"text": text}) for n, text in chats))
    counts |= _write_split(output / "chitchat", "dialogues", ((n, {"messages": d}) for n, d in dialogues))
    return counts


EVALUATION_SHARES = {**world.SHARES, "borderline": 0.33}  # of fewer nobody could say whether more are refused


@dataclasses.dataclass(frozen=True)
class WorldSizes:
    """How much of the simulated world is written; of documents and dialogues 2 % are held out."""

    documents: int = 14000
    dialogues: int = 4500
    train_prompts: int = 3000
    heldout_prompts: int = 300
    evaluation_prompts: int = 500
    public_preferences: int = 800
    helpful_dialogues: int = 2700
    safe_dialogues: int = 300
    scaling_prompts: int = 800


def prepare_world(output: Path, sizes: WorldSizes, *, seed: int = 0) -> dict[str, int]:
    """Write all files of the simulated world under ``output`` and return the number of rows of each."""
    documents = world.draw_documents(Random(f"documents {seed}"), sizes.documents)
    demonstrations = world.draw_demonstrations(Random(f"dialogues {seed}"), sizes.dialogues)
    counts = _write_split(output, "documents", ((text, {"text": text}) for text in documents))
    counts |= _write_split(output, "dialogues", (_dialogue_row(shown) for shown in demonstrations))
    for part, count, shares in (
        ("train", sizes.train_prompts, world.SHARES),
        ("heldout", sizes.heldout_prompts, world.SHARES),
        ("evaluation", sizes.evaluation_prompts, EVALUATION_SHARES),
    ):
        path = output / f"prompts_{part}.jsonl"
        rng = Random(f"{part} prompts {seed}")
        write_prompts(path, world.draw_prompts(rng, count, part=part, shares=shares))
        counts[str(path)] = count
    for part, count in (("train", sizes.public_preferences), ("heldout", sizes.public_preferences // 4)):
        path = output / f"public_preferences_{part}.jsonl"
        write_preferences(path, public.draw_preferences(Random(f"{part} public {seed}"), count, part=part))
        counts[str(path)] = count
    for kind, draw, count in (
        ("helpful", safety_data.draw_helpful, sizes.helpful_dialogues),
        ("safe", safety_data.draw_safe, sizes.safe_dialogues),
    ):
        path = output / f"dialogues_{kind}.jsonl"
        write_rows(path, (_dialogue_row(shown)[1] for shown in draw(Random(f"{kind} {seed}"), count)))
        counts[str(path)] = count
    path = output / "prompts_scaling.jsonl"
    shares = safety_data.PROMPT_SHARES
    rng, count = Random(f"scaling prompts {seed}"), sizes.scaling_prompts
    write_prompts(path, world.draw_prompts(rng, count, part="evaluation", multi_turn=0.0, shares=shares))
    counts[str(path)] = count
    return counts


def _dialogue_row(shown: world.Demonstration) -> tuple[str, dict[str, Any]]:
    messages = [message._asdict() for message in shown.messages]
    return json.dumps(messages), {"messages": messages, "vendor": shown.vendor}


def main(argv: list[str] | None = None) -> None:
    """Prepare the data and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    parser.add_argument("--seed", default=0, type=int, help="of the simulated world")
    for field in dataclasses.fields(WorldSizes):
        parser.add_argument(f"--{field.name}", default=field.default, type=int, help="of the simulated world")
    given = vars(parser.parse_args(argv))
    output, seed = given.pop("output"), given.pop("seed")
    for name, size in given.items():
        require(size > 0, f"--{name}={size} must be positive")
    counts = prepare(asset_path("kjv"), asset_path("chitchat"), output)
    counts |= prepare_world(output / "world", WorldSizes(**given), seed=seed)
    for path, count in counts.items():
        print(f"{path}: {count:,} rows, {Path(path).stat().st_size:,} bytes")


def _clean(text: str) -> str | None:
    unwanted = URL.search(text) or PERSONAL.search(text) or not re.search(r"\w", text)
    return None if unwanted or len(text) > MAX_TURN_CHARACTERS else text


def _stretches(turns: list[str | None]) -> list[list[str]]:
    """Runs of usable turns: a dropped turn would leave two of the same person in a row."""
    stretches: list[list[str]] = [[]]
    for turn in turns:
        if turn is None:
            stretches.append([])
        else:
            stretches[-1].append(turn)
    return [stretch for stretch in stretches if stretch]


def _write_split(folder: Path, stem: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, int]:
    """Write ``stem_train.jsonl`` and ``stem_heldout.jsonl``, each whole or not at all."""
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    for name, row in rows:
        parts["heldout" if name_is_heldout(name) else "train"].append(row)
    counts = {}
    for part, chosen in parts.items():
        path = folder / f"{stem}_{part}.jsonl"
        write_rows(path, chosen)
        counts[str(path)] = len(chosen)
    return counts


if __name__ == "__main__":
    command_line.run(main)
