"""What is counted in a corpus, document by document (Llama 2, section 4.1; SPRE-1..5)."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llama2_jax.analysis.demographics import Mention
from llama2_jax.analysis.languages import ENGLISH


class CorpusCounts(NamedTuple):
    """Numbers of documents: by language, and of the English ones by what they mention."""

    languages: Counter[str]
    mentions: Counter[Mention]
    characters: int

    @property
    def documents(self) -> int:
        """All of them."""
        return self.languages.total()

    @property
    def english(self) -> int:
        """Those that ``mentions`` are of."""
        return self.languages[ENGLISH]


def count_documents(
    texts: Iterable[str], *, identify: Callable[[str], str], mentioned: Callable[[str], set[Mention]]
) -> CorpusCounts:
    """Read the texts once and count; memory does not grow with their number.

    Args:
      identify: from a text to the code of its language.
      mentioned: from a text to what it mentions.
    """
    languages: Counter[str] = Counter()
    mentions: Counter[Mention] = Counter()
    characters = 0
    for text in texts:
        language = identify(text)
        languages[language] += 1
        characters += len(text)
        if language == ENGLISH:
            mentions.update(mentioned(text))
    return CorpusCounts(languages, mentions, characters)


def together(parts: Iterable[CorpusCounts]) -> CorpusCounts:
    """The counts of several corpora as of one."""
    languages, mentions, characters = zip(*parts, strict=True)
    return CorpusCounts(sum(languages, Counter()), sum(mentions, Counter()), sum(characters))
