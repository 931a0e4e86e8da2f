"""A classifier of Hugging Face's, against its logits."""

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.classifier import load_classifier

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "very"]
TEXTS = ["good day", "bad", "very very bad day", "unknown", "good " * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT of two labels that reads 16 tokens, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16)
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            initializer_range=2.0,
            id2label={0: "benign", 1: "toxic"},
            label2id={"benign": 0, "toxic": 1},
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def probabilities(folder):
    """Of both labels, one text at a time, by the softmax of the logits."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0] for text in TEXTS]
    return np.array([np.exp(one) / np.exp(one).sum() for one in map(np.asarray, logits)])


def test_scores_are_those_of_the_second_label_or_of_the_one_named(folder):
    wanted = probabilities(folder)
    assert np.ptp(wanted[:, 1]) > 0.1  # texts that cannot be told apart would show nothing
    np.testing.assert_allclose(load_classifier(folder, batch_size=2)(TEXTS), wanted[:, 1], atol=1e-5)
    np.testing.assert_allclose(load_classifier(folder, label="benign")(TEXTS), wanted[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_long_texts_are_cut_where_the_tokenizer_does_not_say_what_the_model_reads(folder, tmp_path, name):
    import transformers

    positions = {"Bert": 16, "Roberta": 18}[name]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
    )
    getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(tmp_path)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(tmp_path)
    long, longer = load_classifier(tmp_path)(["good " * 20, "good " * 40])
    assert long == pytest.approx(longer)


def test_unknown_label(folder):
    with pytest.raises(ConfigError, match="no label 'hate'; it has benign, toxic"):
        load_classifier(folder, label="hate")


def test_a_classifier_that_is_not_there(folder, tmp_path):
    with pytest.raises(ConfigError, match="none cannot be opened, neither as a folder nor from the hub"):
        load_classifier(tmp_path / "none")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="llama2_jax\\[classifiers\\]"):
        load_classifier("anywhere")
