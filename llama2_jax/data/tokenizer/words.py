"""Encode a text word by word, each word once.

Where no piece of a vocabulary goes on beyond the end of a word, the merges of a word do not depend on the
next, and the ids of a text are those of its words. Most words come again, and are looked up.
"""

import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Sequence

SPACE = "\u2581"  # SentencePiece's
WORDS = re.compile(r" *[^ \n]+| +|\n")  # with the spaces before it

LEARNED = 2**16  # words that are remembered whatever the text; then only of texts that begin with known ones
REMEMBERED = 2**18  # at most: about 60 MB
LOOKED_AT = 64  # words of a text that say whether most of it is known
LONGEST = 24  # characters; longer words do not come again
Encode = Callable[[str], list[int]]


def pieces_end_with_words(pieces: Iterable[str]) -> bool:
    """Whether no piece has a space behind another character, or a line end beside any."""
    return all(SPACE not in piece.lstrip(SPACE) and ("\n" not in piece or piece == "\n") for piece in pieces)


def by_words(encode: Encode, *, adds_space: bool) -> Encode:
    """The same ids as ``encode`` of a whole text, of a vocabulary for which ``pieces_end_with_words``.

    Args:
      adds_space: ``encode`` puts a space before a text.
    """
    before = len(encode("\n"))
    known: dict[str, Sequence[int]] = {}

    def ids_of(word: str) -> Sequence[int]:
        found = known.get(word)
        if found is None:
            found = array("i", encode("\n" + word)[before:])  # behind a line end no space is added
            if len(word) <= LONGEST and len(known) < REMEMBERED:
                known[word] = found
        return found

    def is_known(text: str) -> bool:
        first = [found[0] for found in itertools.islice(WORDS.finditer(text), LOOKED_AT)]
        return sum(word in known for word in first) >= 0.75 * len(first)

    def encode_words(text: str) -> list[int]:
        spaced = text.replace(SPACE, " ")  # to SentencePiece the same
        if spaced and adds_space:
            spaced = " " + spaced
        if len(known) >= LEARNED and not is_known(spaced):
            return encode(text)  # numbers, or a script without spaces
        ids: list[int] = []
        for word in WORDS.findall(spaced):
            ids += ids_of(word)
        return ids

    return encode_words
