import pytest

from experiments.classify import line_scores, row_scores
from experiments.safety_scores import MEASURES, checked_scores
from llama2_jax.analysis.toxicity import document_score
from llama2_jax.config import ConfigError


def by_length(texts):
    """Stands for a classifier: hundredths of the number of characters."""
    return [len(text) / 100 for text in texts]


def test_rows_keep_their_ids_and_are_what_safety_benchmarks_reads():
    rows = [{"id": 7, "answer": "four"}, {"answer": "nothing"}]
    scores = row_scores(rows, by_length, text_key="answer", measure="toxicity")
    assert scores == [{"id": 7, "toxicity": 0.04}, {"id": 1, "toxicity": 0.07}]
    assert checked_scores(scores, MEASURES["toxigen"], [1, 7]) == [scores[1], scores[0]]


def test_a_row_without_the_text_is_named():
    with pytest.raises(ConfigError, match="row 1"):
        row_scores([{"answer": "a"}, {"text": "b"}], by_length, text_key="answer", measure="toxicity")


def test_lines_with_text_are_scored_document_by_document(monkeypatch):
    monkeypatch.setattr("experiments.classify.DOCUMENTS_AT_ONCE", 2)
    documents = ["a\n\nbb\n", "ccc", "  \ndddd\r\neeeee"]
    rows = list(line_scores(documents, by_length))
    assert rows == [{"line_scores": [0.01, 0.02]}, {"line_scores": [0.03]}, {"line_scores": [0.04, 0.05]}]
    assert document_score(rows[0]["line_scores"]) == pytest.approx(0.015)


def test_no_document():
    with pytest.raises(ConfigError, match="no English document"):
        list(line_scores([], by_length))
