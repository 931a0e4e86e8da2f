import json
from functools import partial
from pathlib import Path

import pytest

from llama2_jax.data.chat import LLAMA2
from llama2_jax.data.prompts import read_prompts
from llama2_jax.data.sources import read_dialogues, read_documents
from tools.fetch_assets import AssetError, asset_path
from tools.prepare_demo_data import (
    MAX_TURN_CHARACTERS,
    WorldSizes,
    conversation_dialogues,
    conversation_documents,
    conversation_turns,
    join_utterances,
    kjv_documents,
    name_is_heldout,
    prepare,
    prepare_world,
)

READERS = {"documents": read_documents, "dialogues": partial(read_dialogues, template=LLAMA2)}


def conversation(*turns: list[str]) -> dict:
    return {
        "messages": [[{"text": text, "sender": str(i % 2)} for text in turn] for i, turn in enumerate(turns)]
    }


def verse(book: str, chapter: int, text: str) -> str:
    return json.dumps({"book": book, "chapter": chapter, "text": text})


def test_kjv_is_one_document_per_chapter():
    lines = [verse("Ruth", 1, "First verse. "), verse("Ruth", 1, "Second."), verse("Ruth", 2, "Third.")]
    assert list(kjv_documents(lines)) == [
        ("Ruth 1", "Ruth 1\n\nFirst verse. Second.\n"),
        ("Ruth 2", "Ruth 2\n\nThird.\n"),
    ]


def test_utterances_of_a_turn_become_one_message():
    assert join_utterances(["hello", "how  are you?", " fine "]) == "hello. how are you? fine"
    assert join_utterances(["look", "https://example.org/a", ""]) == "look"
    assert join_utterances(["<em>I</em> think :)"]) == "I think :)"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ?!",
        "https://example.org",
        "see www.example.org",
        "me@example.org",
        "call 801 555-0100",
        "x" * 301,
    ],
)
def test_unusable_turns_cut_the_conversation(bad):
    assert MAX_TURN_CHARACTERS == 300
    turns = conversation_turns(conversation(["a"], ["b"], [bad], ["c"], ["d"], ["e"]))
    assert turns == ["a", "b", None, "c", "d", "e"]
    assert list(conversation_documents(turns)) == ["a\nb\n", "c\nd\ne\n"]
    contents = [[message["content"] for message in dialogue] for dialogue in conversation_dialogues(turns)]
    assert contents == [["a", "b"], ["c", "d"]]


def test_dialogues_are_short_and_end_with_the_assistant():
    dialogues = list(conversation_dialogues([str(i) for i in range(9)]))
    assert [[message["content"] for message in d] for d in dialogues] == [list("012345"), list("67")]
    assert all([m["role"] for m in d] == ["user", "assistant"] * (len(d) // 2) for d in dialogues)


def test_long_exchanges_make_shorter_dialogues():
    dialogues = list(conversation_dialogues(["x" * 200] * 6))
    assert [len(dialogue) for dialogue in dialogues] == [2, 2, 2]
    assert [len(dialogue) for dialogue in conversation_dialogues(["x" * 100] * 6)] == [6]


def test_files_are_readable_and_parts_are_disjoint(tmp_path):
    talks = {f"id-{i}": conversation([f"question {i}"], [f"answer {i}"]) for i in range(200)}
    (tmp_path / "chat.json").write_text(json.dumps(talks))
    (tmp_path / "kjv.jsonl").write_text("\n".join(verse("Ruth", i, f"Verse {i}.") for i in range(200)))
    counts = prepare(tmp_path / "kjv.jsonl", tmp_path / "chat.json", tmp_path / "out")
    assert len(counts) == 6
    for kind, reader in READERS.items():
        train, heldout = (
            list(reader(tmp_path / "out" / "chitchat" / f"{kind}_{part}.jsonl"))
            for part in ("train", "heldout")
        )
        assert len(train) + len(heldout) == 200
        assert 1 <= len(heldout) <= 10
        assert len(heldout) == sum(name_is_heldout(name) for name in talks)
    chapters = [
        len(list(read_documents(tmp_path / "out" / "kjv" / f"documents_{part}.jsonl")))
        for part in ("train", "heldout")
    ]
    assert sum(chapters) == 200


def test_the_split_never_changes():
    assert [i for i in range(200) if name_is_heldout(f"Genesis {i}")] == [53, 73, 100, 174]


@pytest.fixture
def fetched():
    try:
        return asset_path("kjv"), asset_path("chitchat")
    except AssetError as error:
        pytest.skip(str(error))


def test_fetched_data(fetched, tmp_path):
    counts = prepare(*fetched, tmp_path)
    assert {path.removeprefix(f"{tmp_path}/"): count for path, count in counts.items()} == {
        "kjv/documents_train.jsonl": 1166,
        "kjv/documents_heldout.jsonl": 23,
        "chitchat/documents_train.jsonl": 6582,
        "chitchat/documents_heldout.jsonl": 100,
        "chitchat/dialogues_train.jsonl": 26272,
        "chitchat/dialogues_heldout.jsonl": 352,
    }
    dialogues = list(read_dialogues(tmp_path / "chitchat" / "dialogues_heldout.jsonl", template=LLAMA2))
    assert len(dialogues) == 352


def test_world_files_are_readable_disjoint_and_repeatable(tmp_path):
    sizes = WorldSizes(
        documents=200,
        dialogues=200,
        train_prompts=100,
        heldout_prompts=30,
        evaluation_prompts=40,
        public_preferences=20,
        helpful_dialogues=30,
        safe_dialogues=10,
        scaling_prompts=60,
    )
    counts = prepare_world(tmp_path / "a", sizes)
    prompts = {
        part: read_prompts(tmp_path / "a" / f"prompts_{part}.jsonl")
        for part in ("train", "heldout", "evaluation")
    }
    assert {part: len(rows) for part, rows in prompts.items()} == {
        "train": 100,
        "heldout": 30,
        "evaluation": 40,
    }
    last = {part: {prompt.messages for prompt in rows} for part, rows in prompts.items()}
    assert not last["evaluation"] & (last["train"] | last["heldout"])
    for kind, reader in READERS.items():
        parts = [list(reader(tmp_path / "a" / f"{kind}_{part}.jsonl")) for part in ("train", "heldout")]
        assert sum(map(len, parts)) == 200
        assert 2 <= len(parts[1]) <= 25
    assert counts[str(tmp_path / "a/public_preferences_train.jsonl")] == 20
    shown = {
        kind: list(read_dialogues(tmp_path / f"a/dialogues_{kind}.jsonl", template=LLAMA2))
        for kind in ("helpful", "safe")
    }
    assert {kind: len(rows) for kind, rows in shown.items()} == {"helpful": 30, "safe": 10}
    scaling = read_prompts(tmp_path / "a/prompts_scaling.jsonl")
    assert {prompt.family for prompt in scaling} >= {"adversarial", "borderline", "facts"}
    learned = {tuple(row.messages[:-1]) for rows in shown.values() for row in rows}
    assert not learned & {prompt.messages for prompt in scaling}
    prepare_world(tmp_path / "b", sizes)
    prepare_world(tmp_path / "c", sizes, seed=1)
    for name in (Path(path).name for path in counts):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    name = "prompts_train.jsonl"
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
