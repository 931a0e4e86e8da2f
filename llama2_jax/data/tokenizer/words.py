"""Encode a text word by word, each word once.

Where no piece of a vocabulary goes on beyond the end of a word, the merges of a word do not depend on the
next, and the ids of a text are those of its words. Texts repeat their words: most are looked up.
"""

import functools
import re
from collections.abc import Callable, Iterable

SPACE = "\u2581"  # SentencePiece's
WORDS = re.compile(r" *[^ \n]+| +|\n")  # with the spaces before it
REMEMBERED, LONGEST = 2**18, 64  # words, and characters of one: long ones do not come again

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

    def alone(word: str) -> list[int]:
        return encode("\n" + word)[before:]  # behind a line end no space is added

    remembered = functools.lru_cache(REMEMBERED)(alone)

    def encode_words(text: str) -> list[int]:
        text = text.replace(SPACE, " ")  # to SentencePiece the same
        ids: list[int] = []
        for found in WORDS.finditer(" " + text if text and adds_space else text):
            word = found[0]
            ids += remembered(word) if len(word) <= LONGEST else alone(word)
        return ids

    return encode_words
