"""Self-BLEU against hand-made and published numbers."""

import builtins
import math

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.self_bleu import self_bleu_scorer, spread

PARIS = [
    "The capital of France is Paris.",
    "The capital of France is Paris, of course.",
    "Paris is the capital of France.",
    "It is the city of Paris that serves as the capital of France.",
]


def test_each_answer_against_all_others() -> None:
    # by sentence 84.0896, 55.5524, 70.7107 and 31.6149
    assert self_bleu_scorer()(PARIS) == pytest.approx(60.4919, abs=1e-4)


def test_the_last_order_and_the_brevity_by_hand() -> None:
    # "a b c d e" of "a b c d": 1-grams 4/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2; the other way all match,
    # and being shorter costs exp(1 - 5/4)
    longer = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    shorter = 100 * math.exp(1 - 5 / 4)
    assert self_bleu_scorer()(["a b c d e", "a b c d"]) == pytest.approx((longer + shorter) / 2)


def test_equal_answers_have_100_also_short_ones_and_strange_ones_have_little() -> None:
    scorer = self_bleu_scorer()
    assert scorer([PARIS[0]] * 3) == 100
    assert scorer(["Yes."] * 3) == 100
    assert scorer(["one", "two", "three"]) == 0
    assert scorer(["", "", ""]) == 0


def test_one_answer_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ConfigError, match="Self-BLEU of 1 answer has no other"):
        self_bleu_scorer()(["one"])


def test_spread_has_the_deviation_of_a_sample() -> None:
    assert spread([40.0, 60.0]) == (50, pytest.approx(math.sqrt(200)), 2)


def test_without_sacrebleu_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'llama2_jax\[analysis\]'"):
        self_bleu_scorer()
