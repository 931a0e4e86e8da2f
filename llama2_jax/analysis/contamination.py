"""Which tokens of evaluation samples stand in training text (Llama 2, A.6; CONT-1 to CONT-4).

A span is a stretch of a sample and an equally long one of one training document that agree in their first 10
tokens and in the last, and place by place (D75) differ at most 4 times between (CONT-3). A token is
contaminated at the minimum length L if it lies in a span of at least L tokens (D73) and agrees there: where
the two differ, the sample's token does not count (D74).

The paper builds suffix arrays of the corpus. Here the samples are indexed by their 10-grams and the corpus
streams past once, which gives the longest span of every token and with it all L. A span is followed from
where a run of equal tokens begins: one that began later in the run would end at the same place. ``merge``
joins what parts of a corpus gave, so they can be scanned anywhere.

At 10-grams that are one token repeated, or that stand in more than ``max_places`` places of the samples
(boilerplate, few-shot examples that all share), no span is started: a training text full of them would hit
all those places each time. A run that holds any other 10-gram is still found whole. ``Scan.unused_hits``
says how often training text had one.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from llama2_jax.analysis.contamination_index import SEED, SampleIndex, gram_hashes, join

BUDGET = 4
"""Places in which a span may differ."""

_GAP = -2  # around every document; not the gap of the samples, so that none agrees beyond its ends
_BLOCK = 1 << 20  # tokens of training text that are looked at together, in whole documents
_SLICE = 1 << 15  # of which so many are hashed at a time: they stay in the cache
_PAIRS = 1 << 14  # places of training text and sample compared at a time: bounds the memory
_WINDOW = 32  # tokens that a span is followed at a time


class Document(NamedTuple):
    """A tokenised training document: the one of this number in its file or folder."""

    source: str
    number: int
    tokens: np.ndarray


class Match(NamedTuple):
    """The training side of a span; offsets and length in tokens."""

    source: str
    document: int  # its number
    document_offset: int
    sample_offset: int
    length: int
    tokens: tuple[int, ...]


class Scan(NamedTuple):
    """What some training text has of the samples."""

    longest: np.ndarray  # int32, of each place in ``SampleIndex.tokens``: longest span it agrees in, or 0
    matches: dict[int, Match]  # number of a sample -> its longest span
    documents: int
    tokens: int
    unused_hits: int  # places of the training text with a 10-gram at which no span is started


class _Spans(NamedTuple):
    """Spans as arrays: first place in the training text, first place in the samples, length."""

    text: np.ndarray
    sample: np.ndarray
    length: np.ndarray


def scan(index: SampleIndex, documents: Iterable[Document]) -> Scan:
    """Look for the samples in documents, which are read once."""
    return functools.reduce(
        merge, (_scan_block(index, block) for block in _blocks(documents)), empty_scan(index)
    )


def empty_scan(index: SampleIndex) -> Scan:
    """What no text has of the samples."""
    return Scan(np.zeros(index.tokens.size, np.int32), {}, 0, 0, 0)


def merge(one: Scan, other: Scan) -> Scan:
    """What two parts of a corpus have together; of matches equally long, that of ``one`` stays."""
    longer = {
        sample: match
        for sample, match in other.matches.items()
        if sample not in one.matches or match.length > one.matches[sample].length
    }
    counts = (a + b for a, b in zip(one[2:], other[2:], strict=True))
    return Scan(np.maximum(one.longest, other.longest), {**one.matches, **longer}, *counts)


def contaminated_share(index: SampleIndex, found: Scan, *, length: int) -> np.ndarray:
    """Of each sample, the share of its tokens that is contaminated at minimum length ``length`` (CONT-2)."""
    sums = np.concatenate([[0], np.cumsum(found.longest >= length)])
    return (sums[index.starts + index.sizes] - sums[index.starts]) / np.maximum(index.sizes, 1)


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents in groups of about ``_BLOCK`` tokens."""
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document.tokens)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _scan_block(index: SampleIndex, block: list[Document]) -> Scan:
    text, starts, sizes = join([document.tokens for document in block], gap=_GAP)
    longest = np.zeros(index.tokens.size, np.int32)
    best = _Spans(*np.zeros((3, index.sizes.size), np.int64))  # of each sample
    unused = 0
    for places, grams in _hits(index, text):
        usable = index.usable[grams]
        unused += int((~usable).sum())
        for pairs in _pairs(index, places[usable], grams[usable]):
            spans = _spans(index, text, starts + sizes, *_run_starts(index, text, *pairs))
            _raise_longest(longest, index, text, spans)
            _keep_best(best, index, spans)
    found = np.flatnonzero(best.length).tolist()
    matches = {sample: _match(index, block, text, starts, best, sample) for sample in found}
    return Scan(longest, matches, len(block), int(sizes.sum()), unused)


def _hits(index: SampleIndex, text: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of the text whose 10-gram has an indexed hash, and which one."""
    for begin in range(0, text.size, _SLICE):
        hashes = gram_hashes(text[begin : begin + _SLICE + SEED - 1])
        at = np.flatnonzero(index.leading[hashes >> index.shift])
        grams = np.searchsorted(index.hashes, hashes[at])
        grams = np.minimum(grams, index.hashes.size - 1)
        same = index.hashes[grams] == hashes[at]
        if same.any():
            yield begin + at[same], grams[same]


def _pairs(
    index: SampleIndex, places: np.ndarray, grams: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each place with each of its gram's places in the samples, some ``_PAIRS`` at a time."""
    totals = np.cumsum(index.counts[grams])
    if not totals.size:
        return
    cuts = np.searchsorted(totals, np.arange(_PAIRS, totals[-1], _PAIRS), side="right")
    for some in np.split(np.arange(places.size), np.unique(cuts)):
        counts = index.counts[grams[some]]
        if some.size:
            yield np.repeat(places[some], counts), index.places[_ranges(index.firsts[grams[some]], counts)]


def _run_starts(
    index: SampleIndex, text: np.ndarray, place: np.ndarray, sample: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of places with one 10-gram, the first of each run, moved to where the run begins."""
    later = (text[place - 1] == index.tokens[sample - 1]) & index.starts_span[sample - 1]
    place, sample = place[~later], sample[~later]
    seed = np.arange(SEED)
    same = (text[place[:, None] + seed] == index.tokens[sample[:, None] + seed]).all(axis=1)
    place, sample = place[same], sample[same]
    while (back := text[place - 1] == index.tokens[sample - 1]).any():  # over grams that are not used
        place, sample = place - back, sample - back
    return place, sample


def _spans(
    index: SampleIndex, text: np.ndarray, ends: np.ndarray, place: np.ndarray, sample: np.ndarray
) -> _Spans:
    """The longest span from each start: to the last token that agrees before the budget is exceeded."""
    sample_ends = index.starts + index.sizes
    room = np.minimum(
        ends[np.searchsorted(ends, place, side="right")] - place,
        sample_ends[np.searchsorted(sample_ends, sample, side="right")] - sample,
    )
    length, differ = np.full(place.size, SEED), np.zeros(place.size, np.int64)
    alive, offset = np.flatnonzero(room > SEED), SEED
    while alive.size:
        ahead = np.arange(offset, offset + _WINDOW)
        same = text.take(place[alive, None] + ahead, mode="clip") == index.tokens.take(
            sample[alive, None] + ahead, mode="clip"
        )
        same &= ahead < room[alive, None]
        differing = differ[alive, None] + np.cumsum(~same, axis=1)
        last = np.where(same & (differing <= BUDGET), ahead + 1, 0).max(axis=1)
        length[alive] = np.maximum(length[alive], last)
        differ[alive] = differing[:, -1]
        offset += _WINDOW
        alive = alive[(differ[alive] <= BUDGET) & (room[alive] > offset)]
    return _Spans(place, sample, length)


def _raise_longest(longest: np.ndarray, index: SampleIndex, text: np.ndarray, spans: _Spans) -> None:
    """Set ``longest``, in place, to at least the length of each span where its sides agree."""
    sample, length = _ranges(spans.sample, spans.length), np.repeat(spans.length, spans.length)
    raised = length > longest[sample]  # few, of a text that is met again and again
    sample, place = sample[raised], _ranges(spans.text, spans.length)[raised]
    same = text[place] == index.tokens[sample]
    np.maximum.at(longest, sample[same], length[raised][same].astype(np.int32))


def _keep_best(best: _Spans, index: SampleIndex, spans: _Spans) -> None:
    """Put the longest span of a sample, the first of equals, in its place in ``best``, if it is longer."""
    samples = index.sample_at(spans.sample)
    longer = np.flatnonzero(spans.length > best.length[samples])
    order = longer[np.lexsort((spans.text[longer], -spans.length[longer]))]
    samples, firsts = np.unique(samples[order], return_index=True)
    for kept, new in zip(best, spans, strict=True):
        kept[samples] = new[order[firsts]]


def _match(
    index: SampleIndex, block: list[Document], text: np.ndarray, starts: np.ndarray, best: _Spans, sample: int
) -> Match:
    place, sample_place, length = (int(values[sample]) for values in best)
    number = int(np.searchsorted(starts, place, side="right")) - 1
    return Match(
        block[number].source,
        block[number].number,
        document_offset=place - int(starts[number]),
        sample_offset=sample_place - int(index.starts[sample]),
        length=length,
        tokens=tuple(text[place : place + length].tolist()),
    )


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``starts[0], starts[0] + 1, ...``, ``sizes[0]`` numbers, then those of the next start, and so on."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if ends.size else 0)
