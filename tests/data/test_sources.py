import codecs
import errno
import gzip
import json
import logging
import sys

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from llama2_jax.config import ConfigError
from llama2_jax.data import records
from llama2_jax.data.chat import LLAMA2, TEMPLATES, Message
from llama2_jax.data.records import BadLines, DataError
from llama2_jax.data.sources import dialogue_row, read_dialogues, read_documents


def jsonl(path, *rows) -> str:
    path.write_bytes(
        b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    )
    return str(path)


def turns(roles: str) -> dict:
    names = {"s": "system", "u": "user", "a": "assistant"}
    return {"messages": [{"role": names[role], "content": f"text {i}"} for i, role in enumerate(roles)]}


def test_every_format_gives_the_same_documents(tmp_path):
    texts = ["one\nline", "zwei ü", "三"]
    jsonl(tmp_path / "a.jsonl", *({"text": text} for text in texts))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    writer = ArrayRecordWriter(str(tmp_path / "c.array_record"), "group_size:1")
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
        writer.write(text.encode())
    writer.close()
    for pattern in ("a.jsonl", "b.jsonl.gz", "c.array_record", "*.txt"):
        assert list(read_documents(tmp_path / pattern)) == texts, pattern


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'llama2_jax[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["one", None, "three"], "id": [1, 2, 3]}), path)
    with pytest.raises(DataError, match=r"no column 'text'; it has body, id"):
        list(read_documents(path))
    with pytest.raises(DataError, match=r"a\.parquet, row 2: 'body' is NoneType"):
        list(read_documents(path, text_key="body"))
    assert list(read_documents(path, text_key="body", on_bad_line="skip")) == ["one", "three"]


def test_compressed_lines_as_large_corpora_come(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'llama2_jax[parquet]'")
    texts = [f"text {number} ü" for number in range(1000)]
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(b"".join(lines)))
    frames = [
        pyarrow.compress(b"".join(part), codec="zstd", asbytes=True) for part in (lines[:400], lines[400:])
    ]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    for name in ("c4.json.gz", "a.jsonl.zst"):
        assert list(read_documents(tmp_path / name)) == texts, name
    (tmp_path / "cut.jsonl.zst").write_bytes(frames[0] + frames[1][:-20])
    with pytest.raises(
        DataError, match=r"cut\.jsonl\.zst cannot be read.*Truncated.*copy or download it again"
    ):
        list(read_documents(tmp_path / "cut.jsonl.zst"))


def test_several_paths_keep_their_order_and_patterns_are_sorted(tmp_path):
    for name in ("b", "a", "z"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert list(read_documents([tmp_path / "z.txt", tmp_path / "[ab].txt"])) == ["z", "a", "b"]


BAD_ROWS = [
    (b'{"text": "cut\n', r"malformed JSON at column \d+"),
    (b'{"txt": "x"}\n', "key 'text' is missing"),
    (b'{"text": 5}\n', "'text' is int, not text"),
    (b'{"text": " "}\n', "the text is empty"),
    (b'["text"]\n', "the row is list, not an object"),
    (b'{"text": "\xff"}\n', "not UTF-8 at byte 10"),
    (b'{"text": "ab\\ud800"}\n', r"character 2 is a lone surrogate \('\\ud800'\)"),
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "the JSON is nested too deeply"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_bad_line_names_file_line_and_reason(tmp_path, row, reason):
    path = jsonl(tmp_path / "bad.jsonl", {"text": "good"}, b"\n", row, {"text": "after"})
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 3: {reason}.*on_bad_line=skip"):
        list(read_documents(path))


def test_skip_counts_and_reports(tmp_path, caplog):
    path = jsonl(tmp_path / "bad.jsonl", {"text": "good"}, *(row for row, _ in BAD_ROWS), {"text": "after"})
    bad_lines = BadLines(max_examples=2)
    with caplog.at_level(logging.WARNING):
        texts = list(read_documents(path, on_bad_line="skip", bad_lines=bad_lines))
    assert texts == ["good", "after"]
    assert bad_lines.count == len(BAD_ROWS)
    assert len(bad_lines.examples) == 2
    assert "line 2: malformed JSON" in bad_lines.examples[0]
    assert f"{len(BAD_ROWS)} bad record(s) skipped" in caplog.text


def test_empty_corpus_and_missing_files(tmp_path):
    empty = jsonl(tmp_path / "empty.jsonl")
    bad = jsonl(tmp_path / "bad.jsonl", b"{\n")
    with pytest.raises(DataError, match=r"empty\.jsonl.*the corpus is empty"):
        list(read_documents(empty))
    with pytest.raises(DataError, match="1 bad"):
        list(read_documents(bad, on_bad_line="skip"))
    with pytest.raises(DataError, match=r"no file matches .*none\*"):
        list(read_documents(tmp_path / "none*"))
    with pytest.raises(DataError, match="no file matches"):
        list(read_documents(tmp_path))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file"):
        list(read_documents(tmp_path / "a.csv"))
    with pytest.raises(ConfigError, match="'error', 'skip'"):
        list(read_documents(empty, on_bad_line="ignore"))


def test_grouped_array_records_are_read_in_order(tmp_path, monkeypatch):
    texts = list(numbered(50))
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:16")
    for text in texts:
        writer.write(text.encode())
    writer.close()
    monkeypatch.setattr(records, "RECORDS_PER_READ", 7)
    assert list(read_documents(tmp_path / "a.array_record")) == texts
    bad = ArrayRecordWriter(str(tmp_path / "b.array_record"), "group_size:16")
    for content in (*(b"x",) * 9, b"\xff"):
        bad.write(content)
    bad.close()
    with pytest.raises(DataError, match="record 9: not UTF-8"):
        list(read_documents(tmp_path / "b.array_record"))


def test_json_files_are_one_list_or_lines(tmp_path):
    rows = [{"text": "one"}, {"text": "two"}]
    (tmp_path / "list.json").write_bytes(codecs.BOM_UTF8 + f"\n {json.dumps(rows, indent=2)}".encode())
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("list.json", "lines.json"):
        assert list(read_documents(tmp_path / name)) == ["one", "two"]
    (tmp_path / "bad.json").write_text('[{"text": "one"}, 5]')
    with pytest.raises(DataError, match=r"bad\.json, item 2: the row is int, not an object"):
        list(read_documents(tmp_path / "bad.json"))
    (tmp_path / "cut.json").write_text('[{"text": "one"},')
    with pytest.raises(DataError, match=r"cut\.json cannot be read: malformed JSON"):
        list(read_documents(tmp_path / "cut.json"))


def test_truncated_gzip_and_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + bytes(range(32, 90)) * 50 + b'"}\n')[:-12])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be read: .*copy or download it again"):
        list(read_documents(path))
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 2"):
        list(read_documents(tmp_path / "a.txt"))


def damage(path, *, at: float = 0.5) -> None:
    """Turn 64 bytes of the file around."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * at)
    content[start : start + 64] = bytes(byte ^ 255 for byte in content[start : start + 64])
    path.write_bytes(content)


def numbered(count: int) -> list[str]:
    """Texts that compress badly."""
    return [f"{i} {i * 7919 % 10007} {i * i * 104729 % 1000003}" for i in range(count)]


def assert_damaged(path, place: str) -> None:
    for on_bad_line in ("error", "skip"):
        with pytest.raises(
            DataError, match=rf"{path.name} cannot be read{place}: .+ copy or download it again"
        ):
            list(read_documents(path, on_bad_line=on_bad_line))


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in numbered(5000))
    path.write_bytes(gzip.compress(lines)[:-4000])
    assert_damaged(path, r" after line \d+")
    path.write_bytes(b"no gzip")
    assert_damaged(path, "")
    path.write_bytes(gzip.compress(lines))
    damage(path, at=0.001)  # zlib.error
    assert_damaged(path, "")


def test_a_zst_file_with_a_window_too_large_is_not_called_damaged(tmp_path):
    def frames():
        raise OSError("ZSTD decompress failed: Frame requires too much memory for decoding")
        yield

    with pytest.raises(DataError, match="its window is larger than 128 MB: compress it again") as caught:
        list(records._intact(tmp_path / "a.jsonl.zst", frames()))
    assert "damaged" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    def lines():
        raise PermissionError(errno.EACCES, "Permission denied")
        yield

    with pytest.raises(DataError, match="Permission denied; take the right to read it, or name a copy$"):
        list(records._intact(tmp_path / "a.jsonl", lines()))


def test_damaged_array_record(tmp_path):
    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for text in numbered(5000):
        writer.write(text.encode())
    writer.close()
    damage(path)
    assert_damaged(path, r" after record \d+")
    path.write_bytes(b"")
    assert_damaged(path, "")


def test_damaged_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'llama2_jax[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": numbered(5000)}), path, row_group_size=1024, use_dictionary=False
    )
    damage(path, at=0.7)
    assert_damaged(path, r" after row \d+")
    path.write_bytes(b"PAR1")
    assert_damaged(path, "")


def test_text_in_parquet_that_is_not_utf8_is_a_bad_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'llama2_jax[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    column = pyarrow.array([b"one", b"a\xff", b"three"]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: not UTF-8 at byte 1"):
        list(read_documents(path))
    assert list(read_documents(path, on_bad_line="skip")) == ["one", "three"]


def test_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"a\.parquet needs pyarrow.*llama2_jax\[parquet\]"):
        list(read_documents(tmp_path / "a.parquet"))


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"one")
    (tmp_path / "b.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "one"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    for name in ("a.txt", "b.jsonl", "c.jsonl.gz"):
        assert list(read_documents(tmp_path / name)) == ["one"], name
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(DataError, match="the text is empty"):
        list(read_documents(tmp_path / "a.txt"))


def test_a_file_that_two_patterns_match_is_read_once(tmp_path, caplog):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    paths = [tmp_path / "b.txt", tmp_path / "*.txt", f"{tmp_path}/../{tmp_path.name}/a.txt"]
    with caplog.at_level(logging.WARNING):
        assert list(read_documents(paths)) == ["b", "a"]
    assert caplog.text.count("it is read once") == 2


def test_dialogues(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", turns("ua"), turns("suaua"))
    first, second = read_dialogues(path, template=LLAMA2)
    assert first.messages == [Message("user", "text 0"), Message("assistant", "text 1")]
    assert [message.role for message in second.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]


def test_a_row_says_which_answers_are_learned(tmp_path):
    rows = [turns("ua"), *(turns("ua") | {"train_on": value} for value in ("last", "all", None))]
    path = jsonl(tmp_path / "d.jsonl", *rows)
    assert [row.train_on for row in read_dialogues(path, template=LLAMA2)] == ["all", "last", "all", "all"]
    assert [row.train_on for row in read_dialogues(path, template=LLAMA2, train_on="last")] == [
        "last",
        "last",
        "all",
        "last",
    ]
    with pytest.raises(ConfigError, match="train_on is 'first'; choose one of 'all', 'last'"):
        list(read_dialogues(path, template=LLAMA2, train_on="first"))


def test_a_dialogue_row_is_read_as_it_was_written(tmp_path):
    messages = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello ü.")]
    path = jsonl(tmp_path / "d.jsonl", dialogue_row(messages, train_on="last"), dialogue_row(messages))
    assert list(read_dialogues(path, template=LLAMA2)) == [(messages, "last"), (messages, "all")]


def test_dialogues_in_parquet_with_and_without_train_on(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'llama2_jax[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    messages = turns("ua")["messages"]
    parquet.write_table(pyarrow.table({"messages": [messages]}), tmp_path / "a.parquet")
    parquet.write_table(
        pyarrow.table({"train_on": ["last", None, "no"], "messages": [messages] * 3}), tmp_path / "b.parquet"
    )
    assert [row.train_on for row in read_dialogues(tmp_path / "a.parquet", template=LLAMA2)] == ["all"]
    rows = read_dialogues(tmp_path / "b.parquet", template=LLAMA2, on_bad_line="skip")
    assert [row.train_on for row in rows] == ["last", "all"]
    with pytest.raises(DataError, match=r"b\.parquet, row 3: 'train_on' is 'no'"):
        list(read_dialogues(tmp_path / "b.parquet", template=LLAMA2))


def one(role: str, content: object) -> dict:
    return {"role": role, "content": content}


BAD_DIALOGUES = [
    (turns("uu"), "roles are user, user; a dialogue is"),
    (turns("uau"), "the last message must be from the assistant"),
    (turns(""), "roles are no messages"),
    ({"messages": [one("user", "a"), one("assistant", "[INST]")]}, "special tags are not allowed"),
    ({"messages": [one("user", "a"), one("assistant", " ")]}, r"message\(s\) \[1\] are empty"),
    ({"messages": [one("user", "a\udc00"), one("assistant", "b")]}, "character 1 is a lone surrogate"),
    ({"messages": [one("user\ud800", "a")]}, "character 4 is a lone surrogate"),
    ({"messages": [one("user", 3)]}, "message 0 has no 'content' text"),
    ({"messages": ["hi"]}, "message 0 is str, not an object"),
    ({"messages": "hi"}, "'messages' is str, not a list"),
    ({"message": []}, "key 'messages' is missing"),
    (turns("ua") | {"train_on": "first"}, "'train_on' is 'first'; choose one of None, 'all', 'last'"),
    (turns("ua") | {"train_on": ["all"]}, r"'train_on' is \['all'\]"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_DIALOGUES)
def test_bad_dialogue_names_file_line_and_reason(tmp_path, row, reason, caplog):
    path = jsonl(tmp_path / "d.jsonl", turns("ua"), row)
    with pytest.raises(DataError, match=rf"d\.jsonl, line 2: .*{reason}"):
        list(read_dialogues(path, template=LLAMA2))
    assert len(list(read_dialogues(path, template=LLAMA2, on_bad_line="skip"))) == 1
    assert "1 bad record(s) skipped" in caplog.text


def test_special_tags_depend_on_the_template(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"messages": [one("user", "[INST]"), one("assistant", "b")]})
    assert len(list(read_dialogues(path, template=TEMPLATES["chatml"]))) == 1
