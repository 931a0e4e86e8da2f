"""Where a document begins among all tokens, for more documents than running sums would fit in memory."""

from typing import NamedTuple

import numpy as np

BLOCK = 256


class Place(NamedTuple):
    """A document by its number in the order of the text, and the token of the whole at which it begins."""

    number: int
    begin: int


class Offsets:
    """Sums of document lengths: one int64 is kept per ``BLOCK`` documents, the rest is added when asked.

    Args:
      lengths: tokens of every document.
      order: documents in the order in which their tokens follow one another; None for their own.
    """

    def __init__(self, lengths: np.ndarray, order: np.ndarray | None = None) -> None:
        self._lengths, self._order = lengths, order
        firsts = np.arange(0, len(lengths), BLOCK)
        sizes = lengths if order is None else lengths[order]
        sums = np.add.reduceat(sizes, firsts, dtype=np.int64) if len(firsts) else firsts
        self._begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(sums, dtype=np.int64)])
        self.total = int(self._begins[-1])

    def begin(self, number: int) -> int:
        """The token at which the ``number``-th document of the order begins."""
        block, inside = divmod(number, BLOCK)
        return int(self._begins[block] + self._block(block)[:inside].sum(dtype=np.int64))

    def at(self, token: int) -> Place:
        """The document of the order that holds a token; it must be below ``total``."""
        block = int(np.searchsorted(self._begins, token, side="right")) - 1
        ends = self._begins[block] + np.cumsum(self._block(block), dtype=np.int64)
        inside = int(np.searchsorted(ends, token, side="right"))
        begin = ends[inside - 1] if inside else self._begins[block]
        return Place(block * BLOCK + inside, int(begin))

    def _block(self, block: int) -> np.ndarray:
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        return self._lengths[part] if self._order is None else self._lengths[self._order[part]]
