"""Encode a text word by word, each word once.

Where no piece of a vocabulary goes on beyond the end of a word, the merges of a word do not depend on the
next, and the ids of a text are those of its words. Most words come again, and are looked up.
"""

import re
from array import array
from collections.abc import Callable, Iterable

SPACE = "\u2581"  # SentencePiece's
WORDS = re.compile(r" *[^ \n]+| +|\n")  # with the spaces before it

LEARNED = 2**16  # words that are remembered whatever the text; then only of texts that repeat most of theirs
REMEMBERED = 2**18  # at most: about 60 MB
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
    known: dict[str, array[int]] = {}

    def alone(word: str) -> list[int]:
        return encode("\n" + word)[before:]  # behind a line end no space is added

    def encode_words(text: str) -> list[int]:
        text = text.replace(SPACE, " ")  # to SentencePiece the same
        words = WORDS.findall(" " + text if text and adds_space else text)
        new = {word for word in words if word not in known}
        if len(known) >= LEARNED and 4 * len(new) > len(words):
            return encode(text)  # numbers, or a script without spaces
        for word in new:
            if len(word) <= LONGEST and len(known) < REMEMBERED:
                known[word] = array("i", alone(word))
        ids: list[int] = []
        for word in words:
            found = known.get(word)
            ids += alone(word) if found is None else found
        return ids

    return encode_words
