import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data import shards
from llama2_jax.data.corpus import TokenisedCorpus, corpus_folders
from llama2_jax.data.records import DataError
from llama2_jax.data.shards import file_sha256, write_shards
from llama2_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from llama2_jax.files import InUseError
from tests.data.conftest import make_texts

TEXTS = make_texts(60, seed=5)


@pytest.fixture
def inputs(tmp_path):
    for name, part in (("a", TEXTS[:40]), ("b", TEXTS[40:])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    return str(tmp_path / "*.jsonl")


def contents(folder) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_documents_come_back_in_order_between_bos_and_eos(inputs, tokenizer, tokenizer_path, tmp_path):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    corpus = TokenisedCorpus.open(tmp_path / "out")
    expected = [tokenizer.encode(text, bos=True, eos=True) for text in TEXTS]
    assert [corpus[i].tolist() for i in range(len(corpus))] == expected
    assert corpus.lengths.tolist() == [len(ids) for ids in expected]
    assert corpus[0].dtype == np.int32
    assert manifest == corpus.manifest
    assert manifest["documents"] == len(TEXTS)
    assert manifest["tokens"] == sum(map(len, expected))
    assert manifest["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert [entry["name"] for entry in manifest["inputs"]] == ["a.jsonl", "b.jsonl"]
    assert manifest["inputs"][0]["sha256"] == file_sha256(tmp_path / "a.jsonl")
    assert manifest["dtype"] == "<u2"


def test_a_shard_ends_with_the_document_that_fills_it(inputs, tokenizer_path, tmp_path):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    lengths = TokenisedCorpus.open(tmp_path / "out").lengths.tolist()
    assert len(manifest["shards"]) > 3
    for shard in manifest["shards"][:-1]:
        mine, lengths = lengths[: shard["documents"]], lengths[shard["documents"] :]
        assert sum(mine) == shard["tokens"] >= 500 > sum(mine[:-1])


def test_workers_do_not_change_the_files(inputs, tokenizer_path, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "DOCUMENTS_PER_TASK", 7)
    write_shards(inputs, tmp_path / "one", tokenizer_path, max_shard_tokens=500)
    write_shards(inputs, tmp_path / "two", tokenizer_path, max_shard_tokens=500, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_interrupted_run_continues_to_the_same_files(inputs, tokenizer_path, tmp_path, monkeypatch):
    write_shards(inputs, tmp_path / "whole", tokenizer_path, max_shard_tokens=500)
    write, written = shards._write_shard, []

    def stop_at_third(folder, name, documents, recipe):
        if len(written) == 2:
            (folder / f"{name}.tokens.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(name)
        return write(folder, name, documents, recipe)

    monkeypatch.setattr(shards, "_write_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_shards(inputs, tmp_path / "cut", tokenizer_path, max_shard_tokens=500)
    with pytest.raises(DataError, match="run \\(or finish\\)"):
        TokenisedCorpus.open(*corpus_folders(tmp_path / "cut"))

    def count(folder, name, documents, recipe):
        written.append(name)
        return write(folder, name, documents, recipe)

    monkeypatch.setattr(shards, "_write_shard", count)
    manifest = write_shards(inputs, tmp_path / "cut", tokenizer_path, max_shard_tokens=500)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(written) == len(set(written)) == len(manifest["shards"]), "finished shards were kept"
    assert write_shards(inputs, tmp_path / "cut", tokenizer_path, max_shard_tokens=500) == manifest
    assert len(written) == len(manifest["shards"]), "nothing is done twice"


def test_damaged_shard_is_found_and_made_again(inputs, tokenizer_path, tmp_path):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    path = tmp_path / "out" / "shard-00001.tokens"
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    with pytest.raises(DataError, match=f"{len(good) - 5} bytes, the manifest says {len(good)}"):
        TokenisedCorpus.open(tmp_path / "out")
    assert write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500) == manifest
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("place", "damage"),
    [(0, bytes(2)), (200, bytes(byte ^ 255 for byte in range(64)))],
    ids=["no BOS", "ids beyond the vocabulary"],
)
def test_a_shard_damaged_inside_is_named_when_it_is_read(place, damage, inputs, tokenizer_path, tmp_path):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    path = tmp_path / "out" / "shard-00001.tokens"
    content = bytearray(path.read_bytes())
    content[place : place + len(damage)] = damage
    path.write_bytes(content)
    corpus = TokenisedCorpus.open(tmp_path / "out")
    first = manifest["shards"][0]["documents"]
    assert len(corpus[first - 1])
    with pytest.raises(
        DataError, match=r"shard-00001\.tokens, document \d: the shard is damaged; tokenise again"
    ):
        [corpus[first + number] for number in range(manifest["shards"][1]["documents"])]
    assert write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500) == manifest
    assert len(TokenisedCorpus.open(tmp_path / "out")[first])


def test_lengths_that_are_not_of_their_shard_are_found_and_made_again(inputs, tokenizer_path, tmp_path):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    path = tmp_path / "out" / "shard-00001.lengths.npy"
    good = path.read_bytes()
    wrong = np.load(path)
    wrong[0] += 1
    np.save(path, wrong)
    tokens = manifest["shards"][1]["tokens"]
    with pytest.raises(
        DataError, match=rf"documents of {tokens + 1} tokens, the manifest says \d+ of {tokens};"
    ):
        TokenisedCorpus.open(tmp_path / "out")
    path.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"lengths\.npy cannot be read"):
        TokenisedCorpus.open(tmp_path / "out")
    assert write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500) == manifest
    assert path.read_bytes() == good


def test_folders_are_one_corpus(inputs, tokenizer_path, tmp_path):
    whole = write_shards(inputs, tmp_path / "whole", tokenizer_path, max_shard_tokens=500)
    for name in ("a", "b"):
        write_shards(
            tmp_path / f"{name}.jsonl", tmp_path / f"part-{name}", tokenizer_path, max_shard_tokens=300
        )
    folders = corpus_folders(tmp_path / "part-*")
    assert [folder.name for folder in folders] == ["part-a", "part-b"]
    joined, expected = TokenisedCorpus.open(*folders), TokenisedCorpus.open(tmp_path / "whole")
    assert len(joined) == len(TEXTS)
    assert all((joined[i] == expected[i]).all() for i in range(len(TEXTS)))
    for key in ("documents", "tokens", "text_bytes", "bad_lines", "inputs", "vocab_size", "tokenizer_hash"):
        assert joined.manifest[key] == whole[key], key
    swapped = TokenisedCorpus.open(*folders[::-1])
    recipes = {corpus.manifest["recipe"] for corpus in (joined, swapped, expected)}
    assert len(recipes) == 3, "another order is another corpus"
    assert (swapped[0] == expected[40]).all()


def test_a_pattern_with_an_unfinished_folder_is_refused(inputs, tokenizer_path, tmp_path):
    write_shards(tmp_path / "a.jsonl", tmp_path / "part-a", tokenizer_path)
    (tmp_path / "part-b").mkdir()
    with pytest.raises(DataError, match=r"part-b.manifest\.json is missing"):
        TokenisedCorpus.open(*corpus_folders(tmp_path / "part-*"))


def test_folders_of_two_tokenizers_are_refused(inputs, tokenizer_path, tmp_path):
    other = train_sentencepiece(TEXTS, tmp_path / "other.model", vocab_size=320)
    write_shards(tmp_path / "a.jsonl", tmp_path / "a", tokenizer_path)
    write_shards(tmp_path / "b.jsonl", tmp_path / "b", tmp_path / "other.model")
    with pytest.raises(ConfigError, match=f"b was made with tokenizer {other.content_hash[:12]}"):
        TokenisedCorpus.open(tmp_path / "a", tmp_path / "b")


def test_text_files_are_no_corpus(inputs, tmp_path):
    assert corpus_folders(inputs) == corpus_folders(tmp_path) == corpus_folders(tmp_path / "none") == []


def test_a_pattern_takes_folders_and_leaves_files(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "c" / "part-a", tokenizer_path)
    (tmp_path / "c" / "notes.md").write_text("see part-a")
    assert corpus_folders(tmp_path / "c" / "*") == [tmp_path / "c" / "part-a"]


def test_corpora_have_more_shards_than_a_process_may_open(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=1)
    corpora = [TokenisedCorpus.open(tmp_path / "out") for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 2, hard))
    try:
        for corpus in corpora:
            assert [len(corpus[index]) for index in range(len(corpus))] == corpus.lengths.tolist()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_that_ends_early_or_is_gone_is_an_error_and_no_crash(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    corpus = TokenisedCorpus.open(tmp_path / "out")
    path = tmp_path / "out" / "shard-00000.tokens"
    path.write_bytes(path.read_bytes()[:-4])
    assert len(corpus[58])
    with pytest.raises(DataError, match=r"shard-00000\.tokens, document 59: the file ends before it"):
        corpus[59]
    path.unlink()
    with pytest.raises(DataError, match=r"document 58 cannot be read: .*No such file"):
        corpus[58]


def test_what_is_no_document_is_an_index_error(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    corpus = TokenisedCorpus.open(tmp_path / "out")
    for index in (-1, len(TEXTS)):
        with pytest.raises(IndexError, match=f"document {index} of 60"):
            corpus[index]


def test_a_folder_of_another_format_is_called_that(inputs, tokenizer_path, tmp_path):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path)
    manifest["format_version"] = 2
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="has format 2, this code reads 1; tokenise the text again"):
        TokenisedCorpus.open(tmp_path / "out")


def test_folders_whose_documents_begin_differently_are_refused(inputs, tokenizer_path, tmp_path):
    for name in ("a", "b"):
        manifest = write_shards(inputs, tmp_path / name, tokenizer_path)
    manifest["bos_id"] = 7
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="begin with id 1 in .*a and with 7 in .*b"):
        TokenisedCorpus.open(tmp_path / "a", tmp_path / "b")


def test_a_part_of_a_document_is_that_part(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    corpus = TokenisedCorpus.open(tmp_path / "out")
    for index in (0, 17, 59):
        for start, stop in ((0, 1), (0, 5), (3, 9), (7, 7)):
            assert corpus.part(index, start, stop).tolist() == corpus[index][start:stop].tolist()


def test_other_input_replaces_shards_and_removes_stale_ones(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    (tmp_path / "out" / "shard-00007.tokens.partial").touch()  # of a run that was killed
    for name in ("shard-data.csv", "notes.txt"):
        (tmp_path / "out" / name).touch()  # not ours
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "a.jsonl").write_text('{"text": "only this"}\n')
    with pytest.raises(
        DataError, match=r"holds a corpus of [0-9,]+ tokens, of other input.* or give --replace"
    ):
        write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    assert len(TokenisedCorpus.open(tmp_path / "out")) == len(TEXTS)
    (tmp_path / "out" / "manifest.json").rename(tmp_path / "manifest.json")
    with pytest.raises(DataError, match="holds a corpus that is not finished"):
        write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    (tmp_path / "manifest.json").rename(tmp_path / "out" / "manifest.json")
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500, replace=True)
    assert len(TokenisedCorpus.open(tmp_path / "out")) == 1
    assert sorted(contents(tmp_path / "out")) == [
        "manifest.json",
        "notes.txt",
        "shard-00000.json",
        "shard-00000.lengths.npy",
        "shard-00000.tokens",
        "shard-data.csv",
    ]


def test_inputs_in_the_output_folder_are_refused_and_stay(tokenizer_path, tmp_path):
    raw = tmp_path / "shard-00000.jsonl"
    raw.write_text('{"text": "only this"}\n')
    with pytest.raises(DataError, match="which is for the corpus alone; name another output"):
        write_shards(raw, tmp_path, tokenizer_path)
    assert raw.read_text() == '{"text": "only this"}\n'
    assert list(contents(tmp_path)) == ["shard-00000.jsonl"]


def test_two_processes_do_not_write_one_corpus(inputs, tokenizer_path, tmp_path):
    script = "import sys; from pathlib import Path; from llama2_jax.files import hold; "
    script += (
        f"hold(Path({str(tmp_path / 'out')!r}), another=''); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUseError, match=f"out is in use by process {other.pid} on .* another output"):
            write_shards(inputs, tmp_path / "out", tokenizer_path)
        other.kill()
    assert list(contents(tmp_path / "out")) == []
    write_shards(inputs, tmp_path / "out", tokenizer_path)


def test_a_finished_corpus_in_a_folder_that_cannot_be_written_to_is_kept(
    inputs, tokenizer_path, tmp_path, monkeypatch
):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path)
    monkeypatch.setattr(shards, "held", None)  # whoever writes wants it
    assert write_shards(inputs, tmp_path / "out", tokenizer_path) == manifest


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_what_a_crash_cut_off_is_made_again_and_a_manifest_of_others_is_named(
    content, inputs, tokenizer_path, tmp_path
):
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "shard-00001.json").write_text(content)
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    assert contents(tmp_path / "out") == whole
    (tmp_path / "out" / "manifest.json").write_text(content)
    for read in (
        lambda: write_shards(inputs, tmp_path / "out", tokenizer_path),
        lambda: TokenisedCorpus.open(tmp_path / "out"),
    ):
        with pytest.raises(DataError, match=r"manifest.json is (not JSON|no manifest of a corpus)"):
            read()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed(inputs, tokenizer_path, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from llama2_jax.data import shards\n"
        "def texts():\n"
        "    yield from ['one', 'two']\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    shards.DOCUMENTS_PER_TASK = 1\n"
        f"    list(shards._encode_all(texts(), {str(tokenizer_path)!r}, '<u2', 2))\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, cwd=Path(shards.__file__).parents[2]
    ) as parent:
        assert parent.stdout.readline() == b"waiting\n"
        children = workers_of(parent.pid)
        assert children
        parent.kill()
    for _ in range(100):
        if not any(map(is_running, children)):
            return
        time.sleep(0.1)
    raise AssertionError(f"{children} are still there")


def is_running(pid: str) -> bool:
    """Whether a process is there that has not ended; its parent may never ask how it did."""
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def workers_of(pid: int) -> list[str]:
    """Processes that were spawned by this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = f"PPid:\t{pid}\n" in (path / "status").read_text()
            if is_child and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(path.name)
    return found


def test_a_finished_corpus_is_not_replaced_because_a_mark_of_it_was_cut_off(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    (tmp_path / "out" / "shard-00000.json").write_text("")
    (tmp_path / "b.jsonl").write_text('{"text": "only this"}\n')
    with pytest.raises(DataError, match=r"holds a corpus of [0-9,]+ tokens, of other input"):
        write_shards(inputs, tmp_path / "out", tokenizer_path)


def test_a_failed_replacement_leaves_no_manifest(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    (tmp_path / "b.jsonl").write_text("{bad\n")
    with pytest.raises(DataError, match="line 1"):
        write_shards(inputs, tmp_path / "out", tokenizer_path, replace=True)
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        TokenisedCorpus.open(tmp_path / "out")


def test_tasks_are_bounded_in_documents_and_in_text(monkeypatch):
    monkeypatch.setattr(shards, "DOCUMENTS_PER_TASK", 3)
    monkeypatch.setattr(shards, "CHARACTERS_PER_TASK", 10)
    texts = ["a", "b", "c", "d", "x" * 30, "y" * 9, "z", "e"]
    assert list(shards._batches(texts)) == [["a", "b", "c"], ["d", "x" * 30], ["y" * 9, "z"], ["e"]]
    assert list(shards._batches([])) == []


def test_roles_of_the_tokenizer_are_checked_too(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    corpus, tokenizer = TokenisedCorpus.open(tmp_path / "out"), load_tokenizer(tokenizer_path)
    swapped = SimpleNamespace(
        content_hash=tokenizer.content_hash, bos_id=tokenizer.bos_id, eos_id=tokenizer.bos_id
    )
    with pytest.raises(ConfigError, match=f"made with eos_id {tokenizer.eos_id}, the tokenizer given has"):
        corpus.require_tokenizer(swapped)


def test_other_tokenizer_makes_new_shards_and_is_checked(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    other = train_sentencepiece(TEXTS, tmp_path / "other.model", vocab_size=320)
    corpus = TokenisedCorpus.open(tmp_path / "out")
    corpus.require_tokenizer(load_tokenizer(tokenizer_path))
    with pytest.raises(ConfigError, match=other.content_hash[:12]):
        corpus.require_tokenizer(other)
    write_shards(inputs, tmp_path / "out", tmp_path / "other.model", replace=True)
    TokenisedCorpus.open(tmp_path / "out").require_tokenizer(other)


def origin_of(**changes) -> dict:
    """Of shards of no files, by a tokenizer with these roles."""
    roles = {"content_hash": "h", "bos_id": 1, "eos_id": 2, "vocab_size": 2**16}
    return shards.corpus_origin([], SimpleNamespace(**roles | changes))


def test_a_tokenizer_with_other_marks_is_another_recipe():
    recipes = {origin_of(**changes)["recipe"] for changes in ({}, {"bos_id": 3}, {"eos_id": 3})}
    assert len(recipes) == 3


def test_ids_take_two_bytes_while_all_of_them_fit():
    assert [origin_of(vocab_size=size)["dtype"] for size in (2**16, 2**16 + 1)] == ["<u2", "<u4"]


def test_large_vocabulary_uses_32_bits(tmp_path):
    ids = np.array([1, 70_000, 2], dtype="<u4")
    shards._write_shard(tmp_path, "shard-00000", iter([shards._Document(ids.tobytes(), 3, 1)]), "recipe")
    info = json.loads((tmp_path / "shard-00000.json").read_text())
    manifest = {
        "format_version": 1,
        "recipe": "recipe",
        "dtype": "<u4",
        "vocab_size": 70_001,
        "bos_id": 1,
        "shards": [info],
        "tokenizer_hash": "",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert TokenisedCorpus.open(tmp_path)[0].tolist() == [1, 70_000, 2]


def test_bad_lines_are_counted_in_the_manifest(tmp_path, tokenizer_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{bad\n{"text": "two"}\n')
    with pytest.raises(DataError, match="line 2"):
        write_shards(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_path)
    manifest = write_shards(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_path, on_bad_line="skip")
    assert (manifest["documents"], manifest["bad_lines"]) == (2, 1)


def test_wrong_numbers(tmp_path, tokenizer_path):
    for setting in ({"num_workers": 0}, {"max_shard_tokens": 0}):
        with pytest.raises(ConfigError, match="is 0; it must be positive"):
            write_shards("x", tmp_path, tokenizer_path, **setting)
