"""Evaluation samples by the hashes of their 10-grams, for ``contamination.py``."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SEED = 10
"""Tokens at the start of a span that must agree; also the shortest span (CONT-3)."""

_GAP = -1  # around every sample, so that none agrees with anything beyond its ends
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, its bits without a pattern: 2^64 divided by the golden ratio
_ENTRIES_PER_GRAM = 16  # of the table of leading bits: at most 1 in 16 places of other text passes it

log = logging.getLogger(__name__)


class SampleIndex(NamedTuple):
    """Tokenised samples, and where each of their 10-grams stands in ``tokens``."""

    tokens: np.ndarray  # int32: a gap, the first sample, a gap, the second, ..., a gap
    starts: np.ndarray  # of each sample in ``tokens``
    sizes: np.ndarray  # tokens of each sample
    hashes: np.ndarray  # uint64, sorted, of each different 10-gram
    counts: np.ndarray  # in how many places it stands
    firsts: np.ndarray  # where its places begin in ``places``
    places: np.ndarray  # in ``tokens``, ordered by hash
    usable: np.ndarray  # whether a span is started at it
    starts_span: np.ndarray  # the same of each place in ``tokens``
    leading: np.ndarray  # whether any hash begins with these bits
    shift: np.uint64  # that leaves those bits

    def sample_at(self, places: np.ndarray) -> np.ndarray:
        """Numbers of the samples that these places of ``tokens`` are in."""
        return np.searchsorted(self.starts, places, side="right") - 1


def index_samples(samples: Sequence[Sequence[int]], *, max_places: int) -> SampleIndex:
    """Index samples; no span is started at 10-grams of one token, or in more than ``max_places`` places."""
    tokens, starts, sizes = join(samples, gap=_GAP)
    grams = np.lib.stride_tricks.sliding_window_view(np.pad(tokens, (0, SEED), constant_values=_GAP), SEED)
    smallest, largest = grams.min(axis=1), grams.max(axis=1)
    places = np.flatnonzero(smallest > _GAP)
    hashes = gram_hashes(tokens)[places]
    order = np.argsort(hashes, kind="stable")
    places = places[order]
    unique, firsts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    usable = (counts <= max_places) & (smallest != largest)[places[firsts]]
    if not usable.all():
        log.warning(
            "no span is started at %d of the %d different 10-grams of the samples: one token repeated, or in "
            "more than %d places; how often training text has them is counted",
            *((~usable).sum(), usable.size, max_places),
        )
    starts_span = np.zeros(tokens.size, bool)
    starts_span[places] = np.repeat(usable, counts)
    bits = max(16, (_ENTRIES_PER_GRAM * unique.size - 1).bit_length())
    leading, shift = np.zeros(1 << bits, bool), np.uint64(64 - bits)
    leading[unique >> shift] = True
    return SampleIndex(
        tokens, starts, sizes, unique, counts, firsts, places, usable, starts_span, leading, shift
    )


def join(
    texts: Sequence[Sequence[int] | np.ndarray], *, gap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids in one int32 array with ``gap`` before, between and after; where each begins; their sizes."""
    sizes = np.array([len(text) for text in texts], np.int64)
    starts = 1 + np.cumsum(sizes + 1) - (sizes + 1)
    tokens = np.full(int(sizes.sum()) + len(texts) + 1, gap, np.int32)
    for start, size, text in zip(starts, sizes, texts, strict=True):
        tokens[start : start + size] = text
    return tokens, starts, sizes


def gram_hashes(tokens: np.ndarray) -> np.ndarray:
    """uint64 hash of the 10-gram at each place that has one: a polynomial of its tokens modulo 2^64.

    Put together from grams of 2, 4 and 8 tokens: four multiplications per place instead of nine.
    """
    step_1, step_2, step_4 = (np.uint64(pow(_MULTIPLIER, size, 1 << 64)) for size in (1, 2, 4))
    one = tokens.astype(np.uint64) * step_1  # spreads the last token over all bits as well
    two = one[:-1] * step_1 + one[1:]
    four = two[:-2] * step_2 + two[2:]
    eight = four[:-4] * step_4 + four[4:]
    return eight[:-2] * step_2 + two[8:]
