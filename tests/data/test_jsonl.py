import codecs
import gzip
import subprocess
import sys

import pytest

from llama2_jax.data import jsonl
from llama2_jax.data.jsonl import append_rows, parse_rows, read_appended, read_rows, write_rows
from llama2_jax.data.records import DataError
from llama2_jax.files import InUseError

ROWS = [{"text": "naïve 中 \u2028"}, {"text": "two"}]


def test_rows_read_back_plain_packed_and_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    content = path.read_bytes()
    assert read_rows(path) == ROWS
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content))
    assert read_rows(tmp_path / "rows.jsonl.gz") == ROWS
    path.write_bytes(codecs.BOM_UTF8 + b"\n".join([b"", content]))
    assert parse_rows(path, lambda row: row["text"]) == [row["text"] for row in ROWS]


def test_rows_that_fail_to_serialise_leave_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    with pytest.raises(TypeError):
        write_rows(path, [{"a": 2}, {"a": object()}])
    assert read_rows(path) == ROWS


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    script = (
        "import sys; from llama2_jax.data.jsonl import write_rows; slow = iter(sys.stdin.readline, '')\n"
        f"write_rows({str(path)!r}, ({{'a': print('begun', flush=True) or line}} for line in slow))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        print("theirs", file=other.stdin, flush=True)
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(InUseError, match=r"rows\.jsonl is in use by another process, .* another output"):
            write_rows(path, [{"a": "ours"}])
        other.stdin.close()
        assert other.wait() == 0
    assert read_rows(path) == [{"a": "theirs\n"}]
    (tmp_path / "rows.jsonl.partial").write_text('{"a": "of a run that was killed"}\n' * 9)
    write_rows(path, [{"a": "ours"}])
    assert read_rows(path) == [{"a": "ours"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}\n[1]\n", r"in\.jsonl, line 2: the row is list, not an object"),
        ('{}\n\n{"a": ', r"in\.jsonl, line 3: malformed JSON"),
        ("\n", r"no rows in .*in\.jsonl; one or more are needed"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_files_without_a_row_are_named(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text("\n")
    with pytest.raises(DataError, match=rf"^no rows in {paths[0]}, {paths[1]}; one or more"):
        read_rows(paths)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file matches .*none\.jsonl"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize("cut", [1, 8, -1])
def test_a_line_that_was_cut_off_is_removed_by_the_next_rows(tmp_path, cut, caplog):
    path = tmp_path / "deep" / "rows.jsonl"
    append_rows(path, ROWS)
    whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole + last[:cut])
    append_rows(path, [{"text": "three"}])
    kept = ROWS if cut == -1 else ROWS[:1]  # -1: only the newline was lost
    assert read_rows(path) == [*kept, {"text": "three"}]
    assert ("cut off" in caplog.text) == (cut > 0)


def test_appended_rows_are_read_without_a_line_that_was_cut_off(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    assert read_appended(path, dict) == []
    append_rows(path, ROWS)
    assert read_appended(path, len) == [1, 1]
    path.write_bytes(path.read_bytes() + b'{"text": "thr')
    assert read_appended(path, dict) == ROWS
    assert "line 3 was cut off and is passed over" in caplog.text
    append_rows(path, ROWS)
    assert read_appended(path, dict) == ROWS + ROWS
    path.write_bytes(path.read_bytes()[:-1])  # only the newline was lost
    assert read_appended(path, dict) == ROWS + ROWS


def test_a_line_that_is_finished_while_the_rows_are_read_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    json_lines = jsonl.json_lines

    def read_while_another_writes(file):
        yield from json_lines(file)
        path.write_text('{"a": 1}\n{"a": 2}\n')

    monkeypatch.setattr(jsonl, "json_lines", read_while_another_writes)
    assert read_appended(path, dict) == [{"a": 1}]
    assert read_appended(path, dict) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ('{"text": \n{"text": "a"}\n', 1),
        ('{"text": "a"}\n{"text": \n', 2),
        ('{"text": "a"}\n{"other": 1}', 2),
    ],
)
def test_an_appended_row_that_was_not_cut_off_is_refused_where_it_is_none(tmp_path, content, number):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line {number}: "):
        read_appended(tmp_path / "rows.jsonl", lambda row: row["text"])
