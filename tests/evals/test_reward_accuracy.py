import math

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import Message
from llama2_jax.data.preferences import Preference
from llama2_jax.evals.intervals import wilson
from llama2_jax.evals.reward_accuracy import (
    accuracy_by,
    calibration,
    correct,
    detect_unsafe,
    disagreements,
    evaluate_pairs,
    spearman,
)


def logit(displayed: float) -> float:
    return math.log(displayed / (1 - displayed))


def test_ties_count_half():
    assert list(correct([2.0, 1.0, -3.0, 0.0], [1.0, 1.0, -2.0, -0.5])) == [1, 0.5, 0, 1]


def test_accuracy_per_label_keeps_the_order_and_leaves_out_what_is_not_there():
    labels = ["unsure", "better", None, "better", "unsure", "better"]
    chosen, rejected = [1.0, 2.0, 0.0, 1.0, 0.0, 5.0], [2.0, 1.0, 9.0, 0.0, 0.0, 6.0]
    order = ("significantly_better", "better", "unsure")
    shares = accuracy_by(labels, chosen, rejected, order=order, prompts=list("pqrstu"))
    assert list(shares) == ["better", "unsure"]
    assert shares["better"][:2] == (pytest.approx(2 / 3), 3)
    assert shares["unsure"][:2] == (0.25, 2)


# displayed scores and whether the response is unsafe
SCORED = [(0.05, True), (0.1, False), (0.12, True), (0.3, True), (0.45, False), (0.7, True), (0.9, False)]
SCORES, LABELS = [logit(score) for score, _ in SCORED], [label for _, label in SCORED]
PROMPTS = list("pqrstuv")


@pytest.mark.parametrize(
    ("threshold", "precision", "recall"),
    [(0.15, (2 / 3, 3), (2 / 4, 4)), (0.5, (3 / 5, 5), (3 / 4, 4)), (1.0, (4 / 7, 7), (1.0, 4))],
)
def test_unsafe_precision_and_recall(threshold, precision, recall):
    found = detect_unsafe(SCORES, LABELS, threshold=threshold, prompts=PROMPTS)
    assert found.precision[:2] == pytest.approx(precision)
    assert found.recall[:2] == pytest.approx(recall)


def test_a_score_at_the_threshold_is_safe():
    # displayed: .5 and .27
    found = detect_unsafe([0.0, -1.0], [True, True], threshold=0.5, prompts=["p", "q"])
    assert found.recall[:2] == (0.5, 2)


def test_nothing_predicted_or_nothing_unsafe_has_no_share():
    assert detect_unsafe(SCORES, LABELS, threshold=0.01, prompts=PROMPTS).precision is None
    assert detect_unsafe(SCORES, [False] * 7, threshold=0.5, prompts=PROMPTS).recall is None


def test_calibration_by_hand():
    bins = calibration([logit(0.2), logit(0.6), logit(0.9), logit(0.3)], [1, 1, 7, 4])
    assert [bin.human for bin in bins] == [1, 4, 7]
    assert [bin.mean for bin in bins] == pytest.approx([0.4, 0.3, 0.9])
    assert [bin.std for bin in bins] == pytest.approx([0.2, 0, 0], abs=1e-12)
    assert [bin.size for bin in bins] == [2, 1, 1]


def test_spearman_by_hand():
    # 1 - 6 * (1 + 1 + 1 + 1) / (5 * 24) = 0.8
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    # ranks 1..5 and 1, 2, 3.5, 5, 3.5: Pearson's correlation is 8 / sqrt(10 * 9.5)
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(8 / math.sqrt(95))
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(spearman([1, 2, 3], [4, 4, 4]))


def test_most_confident_mistakes_first():
    chosen, rejected = [0.0, 1.0, -2.0, 3.0, 1.0], [1.0, 1.0, 5.0, 1.0, 4.0]  # margins -1, 0, -7, 2, -3
    assert disagreements(chosen, rejected, count=2) == [2, 4]
    assert disagreements(chosen, rejected, count=9) == [2, 4, 0]  # a tie is no mistake


def pair(prompt: str, rating: str | None, safety: str | None) -> Preference:
    return Preference((Message("user", prompt),), "a", "b", "safety", rating=rating, safety=safety)


def test_report_of_pairs():
    pairs = [
        pair("p", "significantly_better", "chosen_safe"),
        pair("q", "unsure", "both_unsafe"),
        pair("r", "unsure", "both_safe"),
        pair("s", None, None),
    ]
    chosen = [logit(0.9), logit(0.1), logit(0.6), logit(0.2)]
    rejected = [logit(0.4), logit(0.3), logit(0.7), logit(0.1)]
    report = evaluate_pairs(pairs, chosen, rejected)
    assert report.accuracy[:2] == (0.5, 4)
    assert {name: share[:2] for name, share in report.by_rating.items()} == {
        "significantly_better": (1.0, 1), "unsure": (0.0, 2),
    }  # fmt: skip
    assert {name: share[:2] for name, share in report.by_safety.items()} == {
        "chosen_safe": (1.0, 1), "both_safe": (0.0, 1), "both_unsafe": (0.0, 1),
    }  # fmt: skip
    # unsafe: .4 of the first pair, .1 and .3 of the second; the pair without label does not count
    assert report.unsafe_at_half.recall[:2] == (1.0, 3)
    assert report.unsafe_at_half.precision[:2] == (1.0, 3)
    assert report.unsafe_at_reward_threshold.recall[:2] == (pytest.approx(1 / 3), 3)
    assert evaluate_pairs(pairs[3:], chosen[3:], rejected[3:]).unsafe_at_half is None


def test_a_report_says_how_many_pairs_are_tied():
    pairs = [pair(name, None, None) for name in "pqrs"]
    report = evaluate_pairs(pairs, [1.0, 2.0, 0.0, -1.0], [1.0, 1.0, 3.0, -1.0])
    assert report.accuracy[:2] == (0.5, 4)  # one right, one wrong, two halves
    assert report.tied[:2] == (0.5, 4)
    assert evaluate_pairs(pairs[1:3], [2.0, 0.0], [1.0, 3.0]).tied[:2] == (0.0, 2)


def test_every_share_of_a_report_knows_which_pairs_share_a_prompt():
    unlabelled = [pair(name, None, None) for name in "xy"]
    pairs = [*unlabelled, *(pair(name, "better", "chosen_safe") for name in "ppqqr")]
    chosen = np.array([1.0, 0.0, 1.0, 1.0, -9.0, -9.0, 1.0])
    rejected = np.array([0.0, 1.0, -1.0, -1.0, 2.0, 2.0, -1.0])
    report = evaluate_pairs(pairs, chosen, rejected)
    # p right twice, q wrong twice, r right: sums 2, 0, 1 of 2, 2, 1 cases, deviations from 3/5 of the cases
    # 4/5, -6/5, 2/5; variance 3/2 * 56/25 / 25, so 6/25 / variance = 25/14 cases
    ends = pytest.approx(wilson(15 / 14, 25 / 14)[1:])
    assert report.by_rating["better"][2:] == ends
    assert report.by_safety["chosen_safe"][2:] == ends
    recall = report.unsafe_at_half.recall  # of the rejected ones p and r are found
    assert (recall.size, recall[2:]) == (5, ends)
    # with x right and y wrong: 1 - 4/7, 0 - 4/7, 2 - 8/7, 0 - 8/7, 1 - 4/7
    variance = 5 / 4 * (9 + 16 + 36 + 64 + 9) / 49 / 49
    effective = 12 / 49 / variance
    assert report.accuracy[2:] == pytest.approx(wilson(4 / 7 * effective, effective)[1:])


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"1 of 2 pair\(s\) have a score that is no number: \[1\]"):
        correct([1.0, float("nan")], [0.0, 0.0])
    with pytest.raises(ConfigError, match=r"shapes \(2,\) and \(1,\)"):
        correct([1.0, 2.0], [0.0])
    with pytest.raises(ConfigError, match="give one of each per pair"):
        correct([], [])
