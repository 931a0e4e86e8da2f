import math
from collections import Counter

import pytest

from llama2_jax.analysis.toxicity import document_score, plot_toxicity, score_bin, toxic_share


def test_documents_by_hand():
    scores = [document_score(lines) for lines in ([0.1, 0.9], [0.6, 0.6, 0], [0.5])]
    assert scores == pytest.approx([0.5, 0.4, 0.5])
    assert toxic_share(Counter(map(score_bin, scores))) == 2 / 3


def test_bins():
    assert [score_bin(score) for score in (0, 0.019, 0.02, 0.5, math.nextafter(0.5, 0), 1)] == [
        0,
        0,
        1,
        25,
        24,
        49,
    ]


@pytest.mark.parametrize("scores", [[], None, 0.5, ["0.5"], [True], [1.01], [-0.1], [math.nan], {"a": 1}])
def test_what_is_no_list_of_scores_is_refused(scores):
    with pytest.raises(ValueError, match="score"):
        document_score(scores)


def test_a_picture_of_two_sources(tmp_path):
    plot_toxicity(tmp_path / "toxicity.png", {"web": Counter({0: 900, 30: 2}), "books": Counter({1: 5})})
    assert (tmp_path / "toxicity.png").read_bytes().startswith(b"\x89PNG")
