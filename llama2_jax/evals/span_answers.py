"""Answers that are words of a passage, marked as SQuAD 2.0 and QuAC mark them (Table 23).

Both compare after the same normalisation, which knows only the punctuation of ASCII: "l’eau" keeps its
apostrophe, "l'eau" is "leau".
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

CANNOT_ANSWER = "CANNOTANSWER"
"""QuAC's answer to a question that the passage does not answer."""
MIN_HUMAN_F1 = 0.4
"""QuAC's F1 leaves out questions on which people agree less."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Lower case, without punctuation, then without articles, words separated by one space."""
    plain = answer.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same when normalised, else 0."""
    return float(normalized(answer) == normalized(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, each counted as often as it is there.

    Where one has no word left, 1 if the other has none either: SQuAD's rule for "no answer". QuAC's own
    gives 0, but its references are never empty.
    """
    ours, theirs = normalized(answer).split(), normalized(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def squad_scores(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 with the nearest reference.

    Args:
      answer: "" for none.
      references: those without a word are passed over; where none is left, no answer is right.
    """
    known = [reference for reference in references if normalized(reference)] or [""]
    return (
        max(exact_match(answer, reference) for reference in known),
        max(f1(answer, reference) for reference in known),
    )


def quac_references(answers: Sequence[str]) -> list[str]:
    """Those answers of people that count: if half of them or more found none, that alone, else the others."""
    spans = [answer for answer in answers if answer != CANNOT_ANSWER]
    return spans if 2 * len(spans) > len(answers) else [CANNOT_ANSWER]


def quac_f1(answer: str, references: Sequence[str]) -> float:
    """F1 as for people, of whom each is compared with all others: mean, over the reference left out, of the
    highest F1 with another. Of one reference, F1 with it.
    """
    scores = [f1(answer, reference) for reference in references]
    if len(scores) == 1:
        return scores[0]
    return sum(max(scores[:left] + scores[left + 1 :]) for left in range(len(scores))) / len(scores)


def human_f1(references: Sequence[str]) -> float:
    """Mean of the highest F1 of each reference with another; 1 if there is only one."""
    if len(references) == 1:
        return 1.0
    return sum(
        max(f1(own, other) for place, other in enumerate(references) if place != left)
        for left, own in enumerate(references)
    ) / len(references)
