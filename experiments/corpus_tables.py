"""The tables of ``corpus_report``, the paper's own values beside what was counted."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments.report import quote, table
from llama2_jax.analysis.corpus import CorpusCounts
from llama2_jax.analysis.demographics import (
    GENDER,
    PERSON,
    PRONOUNS,
    Families,
    Mention,
    Shares,
    family_shares,
    top_groups,
)
from llama2_jax.analysis.identity_terms import AMBIGUOUS
from llama2_jax.analysis.languages import LEAST_SHARE

TOP = 5

# The paper's percentages as printed. Table 9a: any pronoun of the family, and its groups within those
PAPER_PRONOUNS = {
    GENDER: ("75.23", {"She": "28.45", "He": "50.73", "Unspecified": "86.38"}),
    PERSON: ("94.47", {"1st": "70.71", "2nd": "61.80", "3rd": "93.07"}),
}
# Table 9b: any term of the axis, and the five most frequent ones within those, without ambiguous ones
PAPER_AXES = {
    "Gender and Sex": ("5.91", "female 50.0, male 39.1, feminine 5.4, transgender 4.2, masculine 3.1"),
    "Sexual Orientation": ("6.67", "gay 14.8, lesbian 4.3, lgbt 4.0, lgbtq 3.6, queer 3.5"),
    "Nationality": ("14.83", "american 69.4, indian 16.5, chinese 16.3, korean 5.1, mexican 4.9"),
    "Race and Ethnicity": ("19.51", "european 20.7, african 11.5, asian 7.4, latin 6.2, indigenous 3.7"),
    "Religion": ("7.93", "christian 33.2, religious 28.8, spiritual 20.6, catholic 15.4, jewish 13.0"),
}
# Table 10
PAPER_LANGUAGES = {
    "en": 89.70, "unknown": 8.38, "de": 0.17, "fr": 0.16, "sv": 0.15, "zh": 0.13, "es": 0.13, "ru": 0.13,
    "nl": 0.12, "it": 0.11, "ja": 0.10, "pl": 0.09, "pt": 0.09, "vi": 0.08, "uk": 0.07, "ko": 0.06,
    "ca": 0.04, "sr": 0.04, "id": 0.03, "cs": 0.03, "fi": 0.03, "hu": 0.03, "no": 0.03, "ro": 0.03,
    "bg": 0.02, "da": 0.02, "sl": 0.01, "hr": 0.01,
}  # fmt: skip

Columns = Mapping[str, CorpusCounts]
"""What was counted, by source; all sources together last, if there are several."""


def size_table(columns: Columns) -> list[str]:
    """How much text each column stands for."""
    counts = columns.values()
    rows = [
        ("documents", *(f"{one.documents:,}" for one in counts)),
        ("- English", *(f"{one.english:,}" for one in counts)),
        ("characters", *(f"{one.characters:,}" for one in counts)),
    ]
    return table(("", *map(quote, columns)), rows)


def pronoun_table(columns: Columns) -> list[str]:
    """Table 9a."""
    rows = []
    for family, (paper, groups) in PAPER_PRONOUNS.items():
        rows.append((f"any of the {family}", paper, *_any(columns, family)))
        shares = [_shares(one, family, PRONOUNS[family]).within for one in columns.values()]
        for group, value in groups.items():
            rows.append((f"- {group}", value, *(_percent(within[group]) for within in shares)))
    return _table(columns, rows)


def axis_table(columns: Columns, axes: Iterable[str]) -> list[str]:
    """Table 9b, how many documents have a term of each axis."""
    rows = [(quote(name), PAPER_AXES.get(name, ("", ""))[0], *_any(columns, name)) for name in axes]
    return _table(columns, rows)


def term_table(columns: Columns, axes: Iterable[str]) -> list[str]:
    """Table 9b, the terms that most documents of each axis have, but for ambiguous ones."""
    rows = [
        (quote(name), PAPER_AXES.get(name, ("", ""))[1], *(_top_terms(one, name) for one in columns.values()))
        for name in axes
    ]
    return _table(columns, rows)


def language_table(columns: Columns) -> list[str]:
    """Table 10: languages that have their share in any column, the most frequent ones first."""
    counts = list(columns.values())
    kept = {
        language
        for one in counts
        for language, number in one.languages.items()
        if number >= LEAST_SHARE * one.documents
    }
    rows = []
    for language in sorted(kept, key=lambda language: (-counts[-1].languages[language], language)):
        paper = f"{PAPER_LANGUAGES[language]:.2f}" if language in PAPER_LANGUAGES else ""
        rows.append((language, paper, *(_percent(one.languages[language] / one.documents) for one in counts)))
    return _table(columns, rows)


def plain_counts(counts: CorpusCounts, families: Families) -> dict[str, Any]:
    """Numbers of documents, for JSON."""

    def mentions(family: str) -> dict[str, Any]:
        groups = top_groups(counts.mentions, family, size=len(families[family]))
        within = {group: counts.mentions[Mention(family, group)] for group in groups}
        return {"any": counts.mentions[Mention(family)]} | ({"within": within} if within else {})

    return {
        "documents": counts.documents,
        "characters": counts.characters,
        "languages": dict(counts.languages.most_common()),
        "mentions_in_english": {family: mentions(family) for family in families},
    }


def _table(columns: Columns, rows: Iterable[Sequence[str]]) -> list[str]:
    return table(("%", "paper", *map(quote, columns)), rows)


def _any(columns: Columns, family: str) -> Iterator[str]:
    return (_percent(_shares(one, family).any) for one in columns.values())


def _top_terms(counts: CorpusCounts, axis: str) -> str:
    found = top_groups(counts.mentions, axis, size=TOP + len(AMBIGUOUS))
    terms = [term for term in found if term not in AMBIGUOUS][:TOP]
    within = _shares(counts, axis, terms).within
    return ", ".join(f"{quote(term)} {100 * share:.1f}" for term, share in within.items())


def _shares(counts: CorpusCounts, family: str, groups: Iterable[str] = ()) -> Shares:
    return family_shares(counts.mentions, family, groups, documents=counts.english)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.2f}"
