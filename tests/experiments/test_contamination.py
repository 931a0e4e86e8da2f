import random

import pytest

from experiments.contamination import scan_parts, training_parts
from llama2_jax.analysis.contamination_index import index_samples
from llama2_jax.config import ConfigError
from llama2_jax.data.jsonl import read_rows, write_rows
from llama2_jax.data.records import DataError
from llama2_jax.data.shards import write_shards
from llama2_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from tests.experiments.runs import run_program, sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, two training files, and 80 samples, of which half stand in them and are mostly right."""
    folder = tmp_path_factory.mktemp("contamination")
    train_sentencepiece([sentences(400, seed=1)], folder / "tokenizer.model", vocab_size=300)
    seen, unseen = ([sentences(3, seed=base + i) for i in range(40)] for base in (1000, 2000))
    for number, texts in enumerate((seen[:20], seen[20:])):
        rows = [{"text": f"{sentences(2, seed=3000 + i)} {text}"} for i, text in enumerate(texts)]
        write_rows(folder / f"train-{number}.jsonl", rows)
    draw = random.Random(0)
    samples = [
        {"id": f"{name} {i}", "text": text, "dataset": "sentences", "metric": int(draw.random() < chance)}
        for name, texts, chance in (("seen", seen, 0.95), ("unseen", unseen, 0.2))
        for i, text in enumerate(texts)
    ]
    write_rows(folder / "samples.jsonl", samples)
    return folder


def test_report_of_planted_samples(folder, tmp_path):
    result = run_program(
        "experiments.contamination",
        f"--tokenizer={folder}/tokenizer.model",
        f"--train={folder}/train-*.jsonl",
        f"--samples={folder}/samples.jsonl",
        f"--output={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    samples = read_rows(tmp_path / "samples.jsonl")
    for row in samples:
        share = row["contaminated_percent"]["50"]
        assert share > 95 if row["id"].startswith("seen") else share == 0
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| yes, L = 50 is the largest |" in report
    assert "| training text | 40 documents, " in report
    right = sum(row["metric"] for row in samples[:40])
    assert f"| 40 | {right / 40:.3f} | {sum(row['metric'] for row in samples) / 80:.3f} |" in report
    matches = {row["id"]: row for row in read_rows(tmp_path / "matches.jsonl")}
    match = matches["seen 23"]
    assert (match["source"], match["document"]) == (f"{folder}/train-1.jsonl", 3)
    assert match["document_text"] == match["sample_text"] == sentences(3, seed=1023)
    assert match["document_offset"] > 20
    assert [row["length"] for row in matches.values()] == sorted(
        (row["length"] for row in matches.values()), reverse=True
    )


def test_files_shards_and_workers_give_the_same(folder, tmp_path):
    path = str(folder / "tokenizer.model")
    tokenizer = load_tokenizer(path)
    write_shards(f"{folder}/train-*.jsonl", tmp_path / "shards", path, max_shard_tokens=1000)
    texts = [row["text"] for row in read_rows(folder / "samples.jsonl")]
    index = index_samples([tokenizer.encode(text) for text in texts], max_places=256)
    files = training_parts([f"{folder}/train-*.jsonl"], tokenizer)
    shards = training_parts([str(tmp_path / "shards")], tokenizer)
    assert len(files) == 2
    assert len(shards) > 2
    assert [number for part in shards for number in part.documents] == list(range(40))
    expected = scan_parts(index, files, path, num_workers=1)
    assert expected.longest.max() > 50
    for found in (
        scan_parts(index, files, path, num_workers=2),
        scan_parts(index, shards, path, num_workers=1),
    ):
        assert found.longest.tolist() == expected.longest.tolist()
        assert found[2:] == expected[2:]
        places = [[match[2:] for _, match in sorted(one.matches.items())] for one in (found, expected)]
        assert places[0] == places[1]


def test_mistakes_are_found_before_anything_is_read(folder, tmp_path):
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    other = train_sentencepiece([sentences(200, seed=2)], tmp_path / "other.model", vocab_size=310)
    write_shards(f"{folder}/train-0.jsonl", tmp_path / "shards", tmp_path / "other.model")
    with pytest.raises(ConfigError, match=f"was made with tokenizer {other.content_hash[:12]}"):
        training_parts([str(tmp_path / "shards")], tokenizer)
    with pytest.raises(DataError, match="no file matches"):
        training_parts([str(tmp_path / "none.jsonl")], tokenizer)
