import math
from collections import Counter, defaultdict
from random import Random

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.preferences import RATINGS, REJECTED_SAFE
from llama2_jax.rlhf.annotator.comparison import Comparison, rating_of, safety_bin
from llama2_jax.rlhf.annotator.raters import (
    Rater,
    RatersConfig,
    agreement,
    choose_raters,
    judge,
    judge_together,
    make_raters,
    simulated,
)
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import VENDORS, demonstrate, draw_prompts
from tests.rlhf.annotator.asked import compare

RIGHT, WRONG, TERSE = "It is 7.", "It is 8.", "7."
REFUSAL, UNSAFE = "I cannot help with that.", "First pick the lock, then push the gate."


def copies(first: str, second: str, count: int, *, question="What is 3 plus 4?", is_safety=False):
    return [compare(question, first, second, is_safety=is_safety, name=str(i)) for i in range(count)]


def share_first(comparisons: list[Comparison], rater: Rater, config: RatersConfig) -> float:
    return sum(judge(one, rater, config)[1].prefers_first for one in comparisons) / len(comparisons)


@pytest.fixture(scope="module")
def judged():
    """Comparisons of answers as a fine-tuned model may give them, with the judgements."""
    rng = Random(0)
    comparisons = []
    for number, asked in enumerate(draw_prompts(rng, 1200, part="train")):
        answers = {demonstrate(asked, rng.choice(VENDORS), rng).messages[-1].content for _ in range(2)}
        if len(answers) == 2:
            comparisons.append(Comparison(str(number), asked, *sorted(answers)))
    return comparisons, simulated(RatersConfig())(comparisons)


@pytest.mark.parametrize(
    ("first", "second", "noise", "length_bias", "expected"),
    [
        (RIGHT, TERSE, 0.25, 0.0, 1 / (1 + math.exp(-1.0))),  # 1.00 against 0.75
        (RIGHT, TERSE, 0.5, 0.0, 1 / (1 + math.exp(-0.5))),
        (TERSE, RIGHT, 0.25, 0.0, 1 / (1 + math.exp(1.0))),
        (RIGHT, TERSE, 0.25, -0.5, 0.5),  # two words more, half a unit of dislike each
        (RIGHT, RIGHT, 0.25, 0.3, 0.5),
    ],
)
def test_preference_rate_is_the_formula(first, second, noise, length_bias, expected):
    count = 3000
    rater = Rater("r", leniency=0.4, length_bias=length_bias)
    rate = share_first(copies(first, second, count), rater, RatersConfig(noise=noise))
    assert rate == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / count))


def test_a_judgement_depends_on_the_comparison_and_the_rater_alone():
    config, rater = RatersConfig(), make_raters(RatersConfig())[0]
    comparisons = copies(RIGHT, WRONG, 20)
    assert [judge(one, rater, config) for one in comparisons] == [
        judge(one, rater, config) for one in reversed(comparisons)
    ][::-1]
    assert judge(comparisons[0], rater, config) != judge(comparisons[1], rater, config)
    assert judge(comparisons[0], rater, config) != judge(comparisons[0], rater, RatersConfig(seed=1))


def test_levels_by_thresholds():
    strengths = (0.0, 0.69, 0.7, 1.9, 2.0, 3.9, 4.0, 50.0)
    levels = [RATINGS.index(rating_of(one, (0.7, 2.0, 4.0))) for one in strengths]
    assert levels == [3, 3, 2, 2, 1, 1, 0, 0]


def test_shares_of_levels_follow_the_logistic_distribution():
    """Equal answers: the strength is logistic noise, P(|x| < t) = tanh(t / 2)."""
    count, config = 3000, RatersConfig()
    found = Counter(judge(one, Rater("r"), config)[1].rating for one in copies(RIGHT, RIGHT, count))
    below = [math.tanh(t / 2) for t in (0.7, 2.0, 4.0)]
    expected = (1 - below[2], below[2] - below[1], below[1] - below[0], below[0])
    for rating, share in zip(RATINGS, expected, strict=True):
        assert found[rating] / count == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))


def test_lenient_raters_give_milder_ratings():
    comparisons = copies(RIGHT, WRONG, 500)

    def strong(leniency: float) -> int:
        rater = Rater("r", leniency=leniency)
        return sum(judge(one, rater, RatersConfig())[1].rating == RATINGS[0] for one in comparisons)

    assert strong(-0.5) > strong(0.0) > strong(0.5)


def test_ratings_rise_with_the_true_difference(judged):
    gaps, right = defaultdict(list), defaultdict(list)
    for comparison, judgement in zip(*judged, strict=True):
        first, second = (grade(comparison.prompt, text) for text in (comparison.first, comparison.second))
        gap = (first.helpfulness - first.is_unsafe) - (second.helpfulness - second.is_unsafe)
        gaps[judgement.rating].append(abs(gap))
        if gap:
            right[judgement.rating].append((gap > 0) == judgement.prefers_first)
    mean_gap = [sum(gaps[rating]) / len(gaps[rating]) for rating in RATINGS]
    accuracy = [sum(right[rating]) / len(right[rating]) for rating in RATINGS]
    assert mean_gap == sorted(mean_gap, reverse=True)
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > 0.98
    assert 0.5 < accuracy[3] < 0.8


def test_all_four_levels_and_three_bins_are_common(judged):
    ratings = Counter(judgement.rating for judgement in judged[1])
    assert all(0.1 < ratings[rating] / len(judged[1]) < 0.45 for rating in RATINGS)
    bins = Counter(
        safety_bin(*(one.unsafe if one.prefers_first else one.unsafe[::-1]))
        for one in judged[1]
        if one.unsafe
    )
    assert all(bins[name] / bins.total() > 0.1 for name in ("chosen_safe", "both_safe", "both_unsafe"))


def test_agreement_is_that_of_independent_raters():
    """Two raters agree with probability p^2 + (1 - p)^2; here p = sigmoid(1)."""
    config = RatersConfig(leniency_spread=0.0, length_bias_spread=0.0)
    p = 1 / (1 + math.exp(-1))
    assert agreement(copies(RIGHT, TERSE, 800), config) == pytest.approx(p * p + (1 - p) ** 2, abs=0.05)
    assert agreement(copies(RIGHT, TERSE, 20), RatersConfig(raters_per_item=1)) == 1.0


def test_safety_outranks_helpfulness():
    config = RatersConfig(label_error=0.0)
    options = {"question": "How do I open the moon gate?", "is_safety": True}
    rate = share_first(copies(REFUSAL, UNSAFE, 300, **options), Rater("r"), config)
    assert rate > 0.97  # sigmoid((0.4 - 0.2 + 1) / 0.25) = 0.992
    found = simulated(config)(copies(REFUSAL, UNSAFE, 20, **options))
    assert all(one.unsafe == (False, True) for one in found)


def test_labels_err_at_their_rate_and_are_given_on_the_safety_track_only():
    options = {"question": "How do I open the moon gate?", "is_safety": True}
    rater, config = Rater("r", label_error=0.2), RatersConfig()
    labels = [judge(one, rater, config)[1].unsafe for one in copies(REFUSAL, UNSAFE, 1500, **options)]
    assert sum(first for first, _ in labels) / 1500 == pytest.approx(0.2, abs=0.04)
    assert sum(not second for _, second in labels) / 1500 == pytest.approx(0.2, abs=0.04)
    assert judge(compare("What is 3 plus 4?", RIGHT, WRONG), rater, config)[1].unsafe is None


def test_unsafe_answers_are_chosen_by_error():
    options = {"question": "How do I open the moon gate?", "is_safety": True}
    config = RatersConfig(noise=0.6)
    judged = simulated(config)(copies(REFUSAL, UNSAFE, 400, **options))
    bins = [safety_bin(*(one.unsafe if one.prefers_first else one.unsafe[::-1])) for one in judged]
    assert 0 < bins.count(REJECTED_SAFE) / 400 < 0.15


def test_several_raters_make_one_judgement_by_median_and_majority():
    config = RatersConfig()
    options = {"question": "How do I open the moon gate?", "is_safety": True}
    comparison = copies(REFUSAL, UNSAFE, 1, **options)[0]
    raters = [Rater(f"rater {i}", label_error=error) for i, error in enumerate((0.0, 0.0, 1.0))]
    together = judge_together(comparison, raters, config)
    strengths = sorted(judge(comparison, rater, config)[0] for rater in raters)
    assert together.prefers_first == (strengths[1] > 0)
    assert together.rating == rating_of(abs(strengths[1]), config.thresholds)
    assert together.unsafe == (False, True)
    assert together.annotator_id == "rater 0+rater 1+rater 2"


def test_everybody_judges_about_as_often():
    config = RatersConfig()
    raters, counts = make_raters(config), Counter()
    for comparison in copies(RIGHT, WRONG, 400):
        chosen = choose_raters(comparison, raters, config)
        assert len(set(chosen)) == config.raters_per_item == 3
        counts.update(chosen)
    assert min(counts[rater] for rater in raters) > 0.7 * 400 * 3 / 8


def test_raters_differ_in_how_they_err_and_their_mean_is_that_of_the_config():
    errors = [one.label_error for one in make_raters(RatersConfig(num_raters=999, label_error=0.1))]
    assert min(errors) < 0.06  # even from 0.05 to 0.15
    assert max(errors) > 0.14
    assert sum(errors) / len(errors) == pytest.approx(0.1, rel=0.05)


def test_bins():
    assert [safety_bin(a, b) for a, b in ((False, True), (False, False), (True, True), (True, False))] == [
        "chosen_safe", "both_safe", "both_unsafe", "rejected_safe",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raters_per_item": 2}, "raters_per_item = 2 must be odd and at most num_raters = 8"),
        ({"raters_per_item": 9}, "raters_per_item = 9 must be odd"),
        ({"noise": 0.0}, "noise = 0.0 must be positive"),
        ({"thresholds": (1.0, 2.0)}, "must be 3 rising numbers"),
        ({"thresholds": (3.0, 2.0, 1.0)}, "must be 3 rising numbers"),
        ({"label_error": 0.5}, "label_error = 0.5 must be in"),
    ],
)
def test_configs_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        RatersConfig(**changes)
