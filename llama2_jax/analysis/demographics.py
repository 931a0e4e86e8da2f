"""Whom documents mention: pronouns and identity terms (Llama 2, section 4.1, Tables 9a and 9b; SPRE-1..3).

A family is a set of named groups of terms: the pronouns by gender, or an identity axis of which every
term is a group. Counted are documents, not words: those with any term of the family, and of these the
share with a term of each group (D64). A term is found as whole words in any case, so "US" is "us" and
"Americans" is not "American"; only the pronoun "I" is looked for as written. Words are letters and
digits: "_" is Markdown's italics more often than part of one. Each term is looked for
by itself: "African-American" mentions "American" too.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

Families = Mapping[str, Mapping[str, frozenset[str]]]
"""Name of a family to name of a group to its terms."""

SHE = frozenset({"she", "her", "hers", "herself"})
HE = frozenset({"he", "him", "his", "himself"})
UNSPECIFIED = frozenset({"they", "them", "their", "theirs", "theirself", "themself", "themselves"})  # D65
FIRST = frozenset({"I", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"})
SECOND = frozenset({"you", "your", "yours", "yourself", "yourselves"})
THIRD = SHE | HE | UNSPECIFIED | {"it", "its", "itself"}

GENDER, PERSON = "gender pronouns", "person pronouns"
PRONOUNS: Families = {
    GENDER: {"She": SHE, "He": HE, "Unspecified": UNSPECIFIED},
    PERSON: {"1st": FIRST, "2nd": SECOND, "3rd": THIRD},
}

AS_WRITTEN = frozenset({"I"})  # D64
LETTER = r"[^\W_]"  # or digit
WORD = re.compile(f"{LETTER}+")
BREAK = r"[\s\u2010\u2011-]+"  # inside a term: white space and hyphens stand for each other
APOSTROPHE = "['\u2019]"


class Mention(NamedTuple):
    """A family that a document has a term of (``group`` empty), or one of its groups."""

    family: str
    group: str = ""


class Shares(NamedTuple):
    """Of all documents, those with any term of a family; of these, those with a term of each group.

    A share of no documents is NaN.
    """

    any: float
    within: dict[str, float]


def mention_finder(families: Families) -> Callable[[str], set[Mention]]:
    """A function from a document to what it mentions; counting is ``Counter.update`` with its results."""
    mentions: defaultdict[str, set[Mention]] = defaultdict(set)
    for family, groups in families.items():
        for group, terms in groups.items():
            for term in terms:
                mentions[fold(term)] |= {Mention(family), Mention(family, group)}
    find = term_finder(mentions)

    def mentioned(text: str) -> set[Mention]:
        return {mention for term in find(text) for mention in mentions[term]}

    return mentioned


def term_finder(terms: Iterable[str]) -> Callable[[str], set[str]]:
    """A function from a text to those of the folded ``terms`` that it contains.

    The text is split into words once, however many terms there are. Terms of several words are then
    searched for in the few texts that have all of their words.
    """
    terms = set(terms)
    single = {term for term in terms if WORD.fullmatch(term)}
    as_written = single & AS_WRITTEN
    phrases = [(term, frozenset(WORD.findall(term)), _phrase(term)) for term in sorted(terms - single)]

    def found(text: str) -> set[str]:
        text = unicodedata.normalize("NFC", text)  # otherwise an accent of its own would end a word
        written = set(WORD.findall(text))
        words = {word.casefold() for word in written}
        hits = (words & single) | (written & as_written)
        possible = [(term, pattern) for term, needed, pattern in phrases if needed <= words]
        if possible:
            text = text.casefold()
            hits.update(term for term, pattern in possible if pattern.search(text))
        return hits

    return found


def fold(term: str) -> str:
    """The form in which a term is looked for."""
    if term in AS_WRITTEN:
        return term
    return unicodedata.normalize("NFC", term).replace("\u2019", "'").casefold()


def family_shares(
    counts: Mapping[Mention, int], family: str, groups: Iterable[str], *, documents: int
) -> Shares:
    """Shares of a family in [0, 1], from the number of documents with each mention."""
    any_ = counts.get(Mention(family), 0)
    within = {group: _share(counts.get(Mention(family, group), 0), any_) for group in groups}
    return Shares(_share(any_, documents), within)


def top_groups(counts: Mapping[Mention, int], family: str, *, size: int) -> list[str]:
    """The groups of a family that most documents mention, most frequent first."""
    found = Counter({m.group: count for m, count in counts.items() if m.family == family and m.group})
    return sorted(found, key=lambda group: (-found[group], group))[:size]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _phrase(term: str) -> re.Pattern[str]:
    pieces = (re.escape(piece).replace("'", APOSTROPHE) for piece in re.split(BREAK, term))
    return re.compile(rf"(?<!{LETTER}){BREAK.join(pieces)}(?!{LETTER})")
