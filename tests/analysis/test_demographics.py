import math
import random
import re
from collections import Counter

import pytest

from llama2_jax.analysis.demographics import (
    GENDER,
    PERSON,
    PRONOUNS,
    Mention,
    family_shares,
    fold,
    mention_finder,
    term_finder,
    top_groups,
)


def groups(text: str) -> set[str]:
    """Groups of pronouns that the text has."""
    return {mention.group for mention in mention_finder(PRONOUNS)(text) if mention.group}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She's here.", {"She", "3rd"}),
        ("she\u2019s here", {"She", "3rd"}),
        ("HERS", {"She", "3rd"}),
        ("a he-man", {"He", "3rd"}),
        ("Themself, theirself!", {"Unspecified", "3rd"}),
        ("It rains.", {"3rd"}),
        ("I'm", {"1st"}),
        ("i", set()),  # D64
        ("İstanbul", set()),  # lower-cased, it begins with an i and a dot of its own
        ("the US", {"1st"}),  # case folding
        ("yourselves", {"2nd"}),
        ("The theory of usher shelves, thee, thy, ye, one, who, this", set()),
        ("_He_ ran, *__she__*", {"He", "She", "3rd"}),  # Markdown
        ("he_llo her2", {"He", "3rd"}),
        ("2me me2", set()),
        ("he\u0301", set()),  # an e with an accent of its own
        ("они her", {"She", "3rd"}),
        ("", set()),
    ],
)
def test_pronouns_by_hand(text, found):
    assert groups(text) == found


def test_the_lists_are_those_of_the_paper():
    assert sum(len(terms) for terms in PRONOUNS[GENDER].values()) == 4 + 4 + 7
    assert [len(terms) for terms in PRONOUNS[PERSON].values()] == [10, 5, 4 + 4 + 7 + 3]
    assert PRONOUNS[PERSON]["3rd"] > frozenset.union(*PRONOUNS[GENDER].values())


def test_shares_within_the_documents_of_a_family():
    documents = ["She sees him.", "He reads.", "They see us.", "It is mine.", "You!", "Nothing of this kind."]
    find = mention_finder(PRONOUNS)
    counts = Counter(mention for text in documents for mention in find(text))
    gender = family_shares(counts, GENDER, PRONOUNS[GENDER], documents=len(documents))
    assert gender.any == 3 / 6
    assert gender.within == {"She": 1 / 3, "He": 2 / 3, "Unspecified": 1 / 3}  # of three, not of six
    person = family_shares(counts, PERSON, PRONOUNS[PERSON], documents=len(documents))
    assert person.any == 5 / 6
    assert person.within == {"1st": 2 / 5, "2nd": 1 / 5, "3rd": 4 / 5}


def test_shares_of_nothing_are_no_number():
    shares = family_shares({}, GENDER, ["She"], documents=0)
    assert math.isnan(shares.any)
    assert math.isnan(shares.within["She"])


@pytest.mark.parametrize(
    ("term", "text", "found"),
    [
        ("African-American", "an african american author", True),
        ("American Indian", "AMERICAN\n  INDIAN", True),
        ("American Indian", "American, Indian", False),
        ("American", "a Latin-American dance", True),  # each term by itself
        ("American", "Americans", False),
        ("non-binary", "non\u2011binary", True),
        ("non-binary", "nonbinary", False),
        ("LGBTQ+", "the LGBTQ+ community", True),
        ("LGBTQ+", "LGBTQ", False),
        ("LGBTQ", "LGBTQ+", True),
        ("Bahá'í", "BAHÁ\u2019Í", True),
        ("Bahá\u2019í", "baha\u0301'i\u0301", True),
        ("Bahá'í", "Bahai", False),
        ("Jehovah's Witness", "Jehovah's Witnesses", False),
        ("trans female", "female trans", False),
        ("American Indian", "an _American Indian_", True),
        ("LGBTQ+", "_LGBTQ+_", True),
        ("LGBTQ+", "xLGBTQ+ LGBTQ+2", False),
    ],
)
def test_terms_by_hand(term, text, found):
    assert term_finder([fold(term)])(text) == ({fold(term)} if found else set())


def test_one_pass_finds_what_a_search_for_each_term_does():
    draw = random.Random(0)
    pieces = ["A", "b", "é", "É", "ß", "+", "'", "\u2019", "I", "i", "_", "7", ".", "中"]
    gaps = [" ", "-", "\n", "  ", "\u2010", ", "]

    def text(size: int, gaps: list[str]) -> str:
        return "".join(draw.choice(pieces) + draw.choice(gaps) * (draw.random() < 0.4) for _ in range(size))

    terms = {fold(text(draw.randint(1, 3), [" ", "-"]).strip(" -")) for _ in range(400)}
    terms = {term for term in terms if re.search(r"\w", term)}
    find, hits = term_finder(terms), 0
    for _ in range(300):
        document = text(draw.randint(0, 40), gaps)
        expected = {term for term in terms if search(term, document)}
        assert find(document) == expected
        hits += len(expected)
    assert hits > 1000


def search(term: str, document: str) -> bool:
    """By every position of the document: the term there, and no part of a word beside it."""

    def plain(text: str) -> str:
        return re.sub("[ \n\u2010-]+", " ", text if term == "I" else text.casefold()).replace("\u2019", "'")

    document, term = f" {plain(document)} ", plain(term)
    places = [i for i in range(len(document)) if document.startswith(term, i)]
    inside = [(document[i - 1], document[i + len(term)]) for i in places]
    return any(not is_word(before) and not is_word(after) for before, after in inside)


def is_word(character: str) -> bool:
    return character.isalnum()


def test_the_most_frequent_groups_ties_by_name():
    counts = {
        Mention("a"): 9,
        Mention("a", "y"): 2,
        Mention("a", "x"): 2,
        Mention("a", "z"): 5,
        Mention("b", "w"): 7,
    }
    assert top_groups(counts, "a", size=2) == ["z", "x"]
