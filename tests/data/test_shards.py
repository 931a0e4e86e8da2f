import json

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data import shards
from llama2_jax.data.shards import TokenisedCorpus, file_sha256, write_shards
from llama2_jax.data.sources import DataError
from llama2_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from tests.data.conftest import make_texts

TEXTS = make_texts(60, seed=5)


@pytest.fixture
def inputs(tmp_path):
    for name, part in (("a", TEXTS[:40]), ("b", TEXTS[40:])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    return str(tmp_path / "*.jsonl")


def contents(folder) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


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
            (folder / f"{name}.array_record.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(name)
        return write(folder, name, documents, recipe)

    monkeypatch.setattr(shards, "_write_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_shards(inputs, tmp_path / "cut", tokenizer_path, max_shard_tokens=500)
    with pytest.raises(DataError, match="run \\(or finish\\)"):
        TokenisedCorpus.open(tmp_path / "cut")

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
    path = tmp_path / "out" / "shard-00001.array_record"
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    with pytest.raises(DataError, match=f"{len(good) - 5} bytes, the manifest says {len(good)}"):
        TokenisedCorpus.open(tmp_path / "out")
    assert write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500) == manifest
    assert path.read_bytes() == good


def test_a_shard_damaged_inside_is_named_when_it_is_read(inputs, tokenizer_path, tmp_path):
    manifest = write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    path = tmp_path / "out" / "shard-00001.array_record"
    content = bytearray(path.read_bytes())
    content[200:264] = bytes(byte ^ 255 for byte in content[200:264])
    corpus = TokenisedCorpus.open(tmp_path / "out")
    path.write_bytes(content)
    first = manifest["shards"][0]["documents"]
    assert len(corpus[first - 1])
    with pytest.raises(
        DataError, match=r"shard-00001\.array_record, record \d, cannot be read: .*tokenise again"
    ):
        [corpus[first + number] for number in range(manifest["shards"][1]["documents"])]
    assert write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500) == manifest


def test_a_shard_with_a_damaged_index_is_found_when_it_is_opened(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    path = tmp_path / "out" / "shard-00000.array_record"
    content = path.read_bytes()
    path.write_bytes(content[: -(2**16)] + bytes(2**16))  # the index is in the last 64 KiB
    with pytest.raises(DataError, match="a shard's index is damaged: .*tokenise again"):
        TokenisedCorpus.open(tmp_path / "out")


def test_other_input_replaces_shards_and_removes_stale_ones(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "a.jsonl").write_text('{"text": "only this"}\n')
    write_shards(inputs, tmp_path / "out", tokenizer_path, max_shard_tokens=500)
    assert len(TokenisedCorpus.open(tmp_path / "out")) == 1
    assert sorted(contents(tmp_path / "out")) == [
        "manifest.json",
        "shard-00000.array_record",
        "shard-00000.json",
        "shard-00000.lengths.npy",
    ]


def test_a_failed_replacement_leaves_no_manifest(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    (tmp_path / "b.jsonl").write_text("{bad\n")
    with pytest.raises(DataError, match="line 1"):
        write_shards(inputs, tmp_path / "out", tokenizer_path)
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        TokenisedCorpus.open(tmp_path / "out")


def test_other_tokenizer_makes_new_shards_and_is_checked(inputs, tokenizer_path, tmp_path):
    write_shards(inputs, tmp_path / "out", tokenizer_path)
    other = train_sentencepiece(TEXTS, tmp_path / "other.model", vocab_size=320)
    corpus = TokenisedCorpus.open(tmp_path / "out")
    corpus.require_tokenizer(load_tokenizer(tokenizer_path).content_hash)
    with pytest.raises(ConfigError, match=other.content_hash[:12]):
        corpus.require_tokenizer(other.content_hash)
    write_shards(inputs, tmp_path / "out", tmp_path / "other.model")
    TokenisedCorpus.open(tmp_path / "out").require_tokenizer(other.content_hash)


def test_large_vocabulary_uses_32_bits(tmp_path):
    ids = np.array([1, 70_000, 2], dtype="<u4")
    shards._write_shard(tmp_path, "shard-00000", iter([shards._Document(ids.tobytes(), 3, 1)]), "recipe")
    info = json.loads((tmp_path / "shard-00000.json").read_text())
    manifest = {"dtype": "<u4", "shards": [info], "tokenizer_hash": ""}
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
