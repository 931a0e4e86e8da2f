import json

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.corpus import TokenisedCorpus
from llama2_jax.data.tokenizer import load_tokenizer
from tests.data.conftest import make_texts
from tools import tokenize_corpus, train_tokenizer


def test_train_then_tokenise(tmp_path, capsys):
    for part in ("a", "b"):
        rows = [json.dumps({"text": text}) for text in make_texts(100, seed=ord(part))]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    inputs = [f"--input={tmp_path}/a.jsonl", f"--input={tmp_path}/b.jsonl"]
    model = tmp_path / "tokenizer.model"
    train_tokenizer.main([*inputs, f"--output={model}", "--vocab_size=330"])
    assert load_tokenizer(model).content_hash in capsys.readouterr().out
    arguments = [*inputs, f"--output={tmp_path}/corpus", f"--tokenizer={model}"]
    tokenize_corpus.main([*arguments, "--max_shard_tokens=2000"])
    corpus = TokenisedCorpus.open(tmp_path / "corpus")
    assert "200 documents" in capsys.readouterr().out
    assert len(corpus) == 200
    assert len(corpus.manifest["shards"]) > 1
    for part in ("0/2", "1/2"):
        folder = f"--output={tmp_path}/part-{part[0]}"
        tokenize_corpus.main([*inputs, folder, f"--tokenizer={model}", f"--part={part}"])
    parts = TokenisedCorpus.open(tmp_path / "part-0", tmp_path / "part-1")
    assert [entry["name"] for entry in parts.manifest["inputs"]] == ["a.jsonl", "b.jsonl"]
    assert all((parts[index] == corpus[index]).all() for index in range(200))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("3/3", "3/3 is not I/N"),
        ("half", "half is not I/N"),
        ("-1/2", "not I/N"),
        ("0/2", "there are 1 file"),
    ],
)
def test_a_part_that_there_is_not(part, message, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("text")
    arguments = [
        f"--input={tmp_path}/a.txt",
        f"--output={tmp_path}/out",
        "--tokenizer=none",
        f"--part={part}",
    ]
    with pytest.raises((SystemExit, ConfigError)) as caught:
        tokenize_corpus.main(arguments)
    assert message in f"{caught.value} {capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()
