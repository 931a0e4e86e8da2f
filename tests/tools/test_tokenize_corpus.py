import json

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
