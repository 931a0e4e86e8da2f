import numpy as np
import pytest

from llama2_jax.rlhf.annotator.model import model_annotator
from tests.rlhf.annotator.asked import compare

COMPARISONS = [
    compare("How long?", "aaa", "a"),
    compare("How?", "a", "aaaa", is_safety=True),
    compare("How long?", "a", "aa"),
    compare("How?", "aaaaaaa", "aaaaaa", is_safety=True),
    compare("How long?", "aa", "aa"),
]


def length(dialogues):
    """The longer the better."""
    return np.array([len(dialogue[-1].content) for dialogue in dialogues], np.float32)


def brevity(dialogues):
    """Positive (safe) below five letters."""
    return 4.25 - length(dialogues)


def test_each_track_has_its_model():
    annotate = model_annotator(length, brevity, thresholds=(0.5, 1.5, 2.5), annotator_id="rm")
    judged = annotate(COMPARISONS)
    assert [one.prefers_first for one in judged] == [True, True, False, False, False]
    assert [one.rating for one in judged] == [
        "better",
        "significantly_better",
        "slightly_better",
        "slightly_better",
        "unsure",
    ]
    assert [one.unsafe for one in judged] == [None, (False, False), None, (True, True), None]
    assert {one.annotator_id for one in judged} == {"rm"}


def test_scores_are_of_finished_dialogues():
    def score(dialogues):
        assert [message.role for message in dialogues[0]] == ["user", "assistant"]
        return length(dialogues)

    model_annotator(score, score, thresholds=(1, 2, 3), annotator_id="")(COMPARISONS)


def test_a_track_without_comparisons_asks_no_model():
    def refuse(dialogues):
        pytest.fail("asked")

    annotate = model_annotator(length, refuse, thresholds=(1, 2, 3), annotator_id="")
    assert len(annotate(COMPARISONS[:1])) == 1
