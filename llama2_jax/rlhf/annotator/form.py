"""How an answer is written, whatever it says: length, ending, repetition, words of the language."""

import itertools
from collections.abc import Sequence

from llama2_jax.rlhf.annotator.families.family import words_of
from llama2_jax.rlhf.annotator.world import LEXICON

COMMON_WORDS = frozenset(
    words_of(
        "a an the this that these those and or but so if then than as at by for from in into of on to with "
        "about i you he she it we they me him her us them my your his its our their is am are was were be "
        "been do does did have has had can could will would may must not no yes all any some many more most "
        "one two first last there here now very too also well what who which how when where why say says "
        "said see know think like good go come make take let me please thank thanks sorry sure course okay "
        "hello hi"
    )
)


def form(answer: str, *, num_words: tuple[int, int]) -> tuple[float, str]:
    """How well an answer is written, in [0, 1], and its worst fault ("" if there is none).

    The product of four factors: known words (share to the third power: two unknown words of six
    leave 0.30), repetition (share of distinct neighbouring pairs, squared), length (0.75 below
    ``num_words``, 6 % less for each word above), ending (0.7 without a full stop, 0.4 for a question).
    """
    words = words_of(answer)
    if not words:
        return 0.0, "empty"
    known = [word in LEXICON or word in COMMON_WORDS for word in words]
    factors = {
        "gibberish": (sum(known) / len(words)) ** 3,
        "repetitive": _distinct_pairs(words) ** 2,
        "terse": 0.75 if len(words) < num_words[0] else 1.0,
        "rambling": max(0.0, 1 - 0.06 * max(0, len(words) - num_words[1])),
        "unfinished": {".": 1.0, "!": 1.0, "?": 0.4}.get(answer.strip()[-1], 0.7),
    }
    product = 1.0
    for factor in factors.values():
        product *= factor
    worst = min(factors, key=lambda name: factors[name])
    return product, worst if factors[worst] < 1 else ""


def echoes(answer: str, question: str) -> bool:
    """Whether an answer contains the whole question."""
    return " ".join(words_of(question)) in " ".join(words_of(answer))


def _distinct_pairs(words: Sequence[str]) -> float:
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
