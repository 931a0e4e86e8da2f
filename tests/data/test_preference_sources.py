import gzip
import json
import math
from collections import Counter

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, Message
from llama2_jax.data.preference_sources import (
    PUBLIC_SETS,
    SHP_RATIOS,
    rating_from,
    read_public_set,
    transcript_messages,
)
from llama2_jax.data.preferences import read_preferences
from llama2_jax.data.records import BadLines, DataError
from tools.prepare_preferences import main

# Every text here is invented; only the layout is that of the published files.
SUMMARIZE_PROMPT = "Summarize this text.\n\nA walk\n\nWe went out."
START = "\n\nHuman: Name a river.\n\nAssistant: The Rhine.\n\nHuman: Another?\n\nAssistant:"


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_transcript():
    assert transcript_messages(START + " The\n\nElbe: long.\n") == [
        Message("user", "Name a river."),
        Message("assistant", "The Rhine."),
        Message("user", "Another?"),
        Message("assistant", "The\n\nElbe: long."),
    ]
    for text in ("Name a river.", "Hi\n\nHuman: Name", ""):
        with pytest.raises(ValueError, match="begins with a speaker"):
            transcript_messages(text)


def test_both_splits_of_anthropic_hh(tmp_path):
    row = {"chosen": f"{START} The Elbe.", "rejected": f"{START} No."}
    write(tmp_path / "helpful-base" / "train.jsonl.gz", row)
    write(tmp_path / "harmless-base" / "train.jsonl.gz", row, row)
    pairs = read_public_set("anthropic_hh", tmp_path / "*" / "train.jsonl.gz", template=LLAMA2)
    assert [(pair.track, pair.source) for pair in pairs] == [
        *[("safety", "anthropic_harmless")] * 2, ("helpfulness", "anthropic_helpful"),
    ]  # fmt: skip
    assert [message.content for message in pairs[0].messages] == ["Name a river.", "The Rhine.", "Another?"]
    assert (pairs[0].chosen, pairs[0].rejected, pairs[0].rating) == ("The Elbe.", "No.", None)
    with pytest.raises(
        DataError, match=r"train\.jsonl: its folder must be called helpful-\.\.\. or harmless-"
    ):
        read_public_set("anthropic_hh", write(tmp_path / "other" / "train.jsonl", row), template=LLAMA2)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (START + " A", START + " A", "answer are equal"),
        (START + " A", START.replace("Rhine", "Elbe") + " B", "do not differ in one last answer"),
        (START + " A", "\n\nHuman: Another?\n\nAssistant: B", "do not differ in one last answer"),
        ("\n\nHuman: A", "\n\nHuman: B", "do not differ in one last answer"),
        ("\n\nAssistant: A", "\n\nAssistant: B", "roles are no messages"),
        ("\n\nHuman: Q" + START + " A", "\n\nHuman: Q" + START + " B", "roles are user, user"),
        (START + " A", START, "the rejected answer is empty"),
        (START + " [INST]", START + " B", "special tags"),
        (START + " A", 5, "'rejected' is int, not text"),
        (START + " A", "Human: Q", "begins with a speaker"),
    ],
)  # fmt: skip
def test_malformed_transcripts_are_errors_or_counted(tmp_path, chosen, rejected, reason):
    good = {"chosen": f"{START} C", "rejected": f"{START} D"}
    path = write(tmp_path / "helpful-base" / "a.jsonl", good, {"chosen": chosen, "rejected": rejected})
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: .*{reason}"):
        read_public_set("anthropic_hh", path, template=LLAMA2)
    bad_lines = BadLines()
    assert (
        len(read_public_set("anthropic_hh", path, template=LLAMA2, on_bad_line="skip", bad_lines=bad_lines))
        == 1
    )
    assert bad_lines.count == 1


SUMMARIZE = {
    "info": {"id": "t3", "post": "We went out.", "title": "A walk", "subreddit": "x", "article": None},
    "summaries": [
        {"text": "no", "policy": "sup2", "note": None}, {"text": "A walk.", "policy": "ref", "note": None},
    ],
    "choice": 1, "worker": "w1", "batch": "batch3", "split": "train", "extra": {"confidence": 8},
}  # fmt: skip
WEBGPT = {
    "question": {"dataset": "eli5", "id": "q1", "full_text": "Why is it wet?"},
    "answer_0": "Rain.", "score_0": -0.5, "answer_1": "It rains [1].", "score_1": 0.5,
    "quotes_0": {}, "tokens_0": {},
}  # fmt: skip
STACK = {
    "qid": 7, "question": "<p>How?</p>", "date": "2020/01/01",
    "answers": [
        {"answer_id": 1, "pm_score": 2, "selected": False, "text": "So."},
        {"answer_id": 2, "pm_score": 5, "selected": True, "text": "Thus."},
        {"answer_id": 3, "pm_score": 2, "selected": False, "text": "Like this."},
    ],
}  # fmt: skip
SHP = {
    "post_id": "p1", "history": "Why?", "human_ref_A": "Because.", "human_ref_B": "Dunno.",
    "labels": 1, "score_A": 9, "score_B": 3, "score_ratio": 3.0,
}  # fmt: skip
ULTRAFEEDBACK = {
    "prompt": "Name a bird.", "prompt_id": "u1", "messages": [], "score_chosen": 8.0, "score_rejected": 6.0,
    "chosen": [{"content": "Name a bird.", "role": "user"}, {"content": "A wren.", "role": "assistant"}],
    "rejected": [{"content": "Name a bird.", "role": "user"}, {"content": "A bat.", "role": "assistant"}],
}  # fmt: skip
GPTJ = {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "Bye."}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("openai_summarize", SUMMARIZE, (SUMMARIZE_PROMPT, "A walk.", "no", None)),
        ("openai_summarize", {**SUMMARIZE, "choice": 0},
         (SUMMARIZE_PROMPT, "no", "A walk.", None)),
        ("openai_webgpt", WEBGPT, ("Why is it wet?", "It rains [1].", "Rain.", "better")),
        ("openai_webgpt", {**WEBGPT, "score_0": 0.125, "score_1": -0.125},
         ("Why is it wet?", "Rain.", "It rains [1].", "unsure")),
        ("stack_exchange", STACK, ("<p>How?</p>", "Thus.", "So.", "better")),
        ("stanford_shp", SHP, ("Why?", "Because.", "Dunno.", "slightly_better")),
        ("stanford_shp", {**SHP, "labels": 0, "score_ratio": 9.5},
         ("Why?", "Dunno.", "Because.", "significantly_better")),
        ("synthetic_gptj", GPTJ, ("Say hi.", "Hi!", "Bye.", None)),
        ("ultrafeedback", ULTRAFEEDBACK, ("Name a bird.", "A wren.", "A bat.", "better")),
        ("ultrafeedback", {**ULTRAFEEDBACK, "score_rejected": 7.75},
         ("Name a bird.", "A wren.", "A bat.", "unsure")),
    ],
)  # fmt: skip
def test_rows_of_the_other_sets(tmp_path, name, row, expected):
    (pair,) = read_public_set(name, write(tmp_path / "a.jsonl", row), template=LLAMA2)
    assert (pair.messages[0].content, pair.chosen, pair.rejected, pair.rating) == expected
    assert (pair.source, pair.track, pair.safety) == (name, "helpfulness", None)


def test_sets_lie_in_parquet_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'llama2_jax[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([STACK]), tmp_path / "a.parquet")
    from_json = read_public_set("stack_exchange", write(tmp_path / "a.jsonl", STACK), template=LLAMA2)
    assert read_public_set("stack_exchange", tmp_path / "a.parquet", template=LLAMA2) == from_json


def test_equal_scores_are_no_preference(tmp_path):
    excluded: Counter[str] = Counter()
    tie = {**WEBGPT, "score_0": 0.0, "score_1": 0.0}
    path = write(tmp_path / "a.jsonl", tie, WEBGPT, tie)
    assert len(read_public_set("openai_webgpt", path, template=LLAMA2, excluded=excluded)) == 1
    level = {**ULTRAFEEDBACK, "score_rejected": 8.0}
    assert (
        len(
            read_public_set(
                "ultrafeedback", write(tmp_path / "u.jsonl", level, ULTRAFEEDBACK), template=LLAMA2
            )
        )
        == 1
    )
    assert excluded == {"no_preference": 2}
    same = {**STACK, "answers": STACK["answers"][::2]}
    with pytest.raises(DataError, match="in no pair is one answer preferred"):
        read_public_set("stack_exchange", write(path, same), template=LLAMA2)


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("openai_summarize", {**SUMMARIZE, "choice": 2}, "choice is 2 of 2 summaries"),
        (
            "openai_webgpt",
            {key: WEBGPT[key] for key in WEBGPT if key != "score_1"},
            "key 'score_1' is missing",
        ),
        ("stanford_shp", {**SHP, "labels": None}, "labels is None"),
        ("openai_webgpt", {**WEBGPT, "question": None}, "not a row of openai_webgpt"),
        (
            "openai_summarize",
            {**SUMMARIZE, "info": {**SUMMARIZE["info"], "post": ""}},
            "'article' is NoneType",
        ),
        ("synthetic_gptj", {**GPTJ, "prompt": " "}, r"message\(s\) \[0\] are empty"),
        ("ultrafeedback", {**ULTRAFEEDBACK, "score_rejected": 9.5}, "the rejected .* higher score, by 1.5"),
        ("openai_webgpt", {**WEBGPT, "score_1": math.nan}, "a score is NaN"),
        ("stanford_shp", {**SHP, "score_ratio": math.nan}, "a score is NaN"),
        ("ultrafeedback", {**ULTRAFEEDBACK, "score_chosen": math.nan}, "a score is NaN"),
        (
            "stack_exchange",  # the greatest and the least of these are numbers
            {**STACK, "answers": [{"pm_score": score, "text": str(score)} for score in (2, math.nan, 5)]},
            "a score is NaN",
        ),
        ("ultrafeedback", {**ULTRAFEEDBACK, "chosen": []}, "the dialogues do not differ in one last answer"),
        (
            "ultrafeedback",
            {**ULTRAFEEDBACK, "rejected": ULTRAFEEDBACK["rejected"][:1]},
            "the dialogues do not differ in",
        ),
    ],
)
def test_rows_in_another_format_are_errors(tmp_path, name, row, reason):
    with pytest.raises(DataError, match=rf"a\.jsonl, line 1: {reason}"):
        read_public_set(name, write(tmp_path / "a.jsonl", row), template=LLAMA2)


def test_ratings_from_gaps():
    graded = [rating_from(ratio, SHP_RATIOS) for ratio in (1.0, 1.99, 2.0, 4.0, 7.9, 8.0, 100.0)]
    assert graded == ["unsure"] * 2 + ["slightly_better"] + ["better"] * 2 + ["significantly_better"] * 2


def test_unknown_set():
    with pytest.raises(ConfigError, match="'anthropic_hh', 'openai_summarize'"):
        read_public_set("hh", "a.jsonl", template=LLAMA2)
    assert len(PUBLIC_SETS) == 7


def test_program_writes_a_split_in_our_format(tmp_path, capsys):
    rows = [{"prompt": f"Say {i}.", "chosen": f"{i}", "rejected": "No."} for i in range(100)]
    path = write(tmp_path / "a.jsonl", *rows, {**GPTJ, "chosen": "Bye."})
    output = tmp_path / "out"
    main(["--set=synthetic_gptj", f"--input={path}", f"--output={output}", "--heldout_fraction=0.2"])
    train, heldout = (
        read_preferences(output / f"preferences_{side}.jsonl", template=LLAMA2)
        for side in ("train", "heldout")
    )
    assert len(train) + len(heldout) == 100
    assert "1 bad row(s), 0 pair(s) without preference" in capsys.readouterr().out
