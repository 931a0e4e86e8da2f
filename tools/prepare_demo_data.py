"""Turn the fetched KJV and chitchat files into documents and dialogues for the demo.

python -m tools.prepare_demo_data --output=runs/demo/data

KJV: one document per chapter, the chapter's name as heading, the verses joined as prose.
Chitchat: one document per conversation (a turn per line, cut where a turn was not usable), and
dialogues for fine-tuning. About 5 % of chapters and conversations are held out, chosen by a hash
of their name, so a conversation is in the same part as document and as dialogue.
"""

import argparse
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tools.fetch_assets import asset_path

HELDOUT_ONE_IN = 20
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


def is_heldout(name: str) -> bool:
    """The same answer for a name on every machine and in every run."""
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


def main(argv: list[str] | None = None) -> None:
    """Prepare the data and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    output = parser.parse_args(argv).output
    for path, count in prepare(asset_path("kjv"), asset_path("chitchat"), output).items():
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
    parts: dict[str, list[str]] = {"train": [], "heldout": []}
    for name, row in rows:
        parts["heldout" if is_heldout(name) else "train"].append(json.dumps(row, ensure_ascii=False))
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for part, lines in parts.items():
        path = folder / f"{stem}_{part}.jsonl"
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(path)
        counts[str(path)] = len(lines)
    return counts


if __name__ == "__main__":
    main()
