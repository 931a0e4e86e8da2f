"""Spans against a search written from the definition, and the fixture table of small cases."""

import collections
import functools
import itertools
import random

import numpy as np
import pytest

from llama2_jax.analysis import contamination
from llama2_jax.analysis.contamination import Document, Scan, contaminated_share, empty_scan, merge, scan
from llama2_jax.analysis.contamination_index import SampleIndex, gram_hashes, index_samples

SAMPLE = list(range(100, 130))


def run(samples, documents, *, max_places=256) -> tuple[SampleIndex, Scan]:
    index = index_samples(samples, max_places=max_places)
    texts = enumerate(np.array(document, np.int32) for document in documents)
    return index, scan(index, (Document("text", number, tokens) for number, tokens in texts))


def by_definition(samples, documents, starts_allowed=lambda run: True) -> list[list[int]]:
    """Of each token, the longest span: every pair of places, every length, nothing clever."""
    longest = [[0] * len(sample) for sample in samples]
    for (sample, best), document in itertools.product(zip(samples, longest, strict=True), documents):
        for at, there in itertools.product(range(len(sample)), range(len(document))):
            same = [x == y for x, y in zip(sample[at:], document[there:], strict=False)]
            if (
                len(same) < 10
                or not all(same[:10])
                or not starts_allowed(whole_run(sample, at, document, there))
            ):
                continue
            for length in range(10, len(same) + 1):
                span = same[:length]
                if span[-1] and span.count(False) <= 4:
                    for offset in range(length):
                        if span[offset]:
                            best[at + offset] = max(best[at + offset], length)
    return longest


def whole_run(sample, at, document, there) -> list[int]:
    """The longest stretch around a pair of places in which both agree everywhere."""
    while min(at, there) > 0 and sample[at - 1] == document[there - 1]:
        at, there = at - 1, there - 1
    pairs = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(sample[at:], document[there:], strict=False)
    )
    return [token for token, _ in pairs]


def grams(tokens) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + 10]) for i in range(len(tokens) - 9)]


def longest_of(index: SampleIndex, found: Scan) -> list[list[int]]:
    places = zip(index.starts, index.sizes, strict=True)
    return [found.longest[start : start + size].tolist() for start, size in places]


def random_texts(draw: random.Random) -> tuple[list[list[int]], list[list[int]]]:
    """Samples of few different tokens, and documents of their stretches with substitutions and noise."""
    vocabulary = draw.choice([2, 3, 5, 50])

    def noise(most: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(draw.randrange(most))]

    samples = [noise(45) for _ in range(draw.randint(1, 4))]
    documents = []
    for _ in range(draw.randint(1, 4)):
        document = noise(8)
        for _ in range(draw.randint(1, 2)):
            source = draw.choice(samples)
            rate = draw.choice([0, 0.05, 0.15])
            copied = source[draw.randrange(len(source) + 1) :]
            document += [draw.randrange(vocabulary) if draw.random() < rate else token for token in copied]
            document += noise(6)
        documents.append(document)
    return samples, documents


@pytest.fixture
def small_bounds(monkeypatch):
    """Sizes that even small cases exceed."""
    for name, size in {"_BLOCK": 40, "_SLICE": 16, "_PAIRS": 5, "_WINDOW": 7}.items():
        monkeypatch.setattr(contamination, name, size)


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("part", range(4))
def test_every_token_as_by_definition(part):
    draw = random.Random(part)
    contaminated = []
    while len(contaminated) < 100:
        samples, documents = random_texts(draw)
        if any(len(set(gram)) == 1 for sample in samples for gram in grams(sample)):
            continue  # no span starts there, see below
        index, found = run(samples, documents)
        expected = by_definition(samples, documents)
        assert longest_of(index, found) == expected
        longest_spans = {i: max(best) for i, best in enumerate(expected) if any(best)}
        assert {i: match.length for i, match in found.matches.items()} == longest_spans
        contaminated.append(any(map(any, expected)))
    assert 30 < sum(contaminated) < 100


@pytest.mark.usefixtures("small_bounds")
def test_starts_that_are_passed_over():
    draw = random.Random(0)
    fewer = 0
    for _ in range(100):
        samples, documents = random_texts(draw)
        samples.append(samples[0][:20])  # what two samples share
        count = collections.Counter(gram for sample in samples for gram in grams(sample))
        used = {gram for gram in count if count[gram] <= 1 and len(set(gram)) > 1}
        expected = by_definition(samples, documents, lambda run, used=used: not used.isdisjoint(grams(run)))
        index, found = run(samples, documents, max_places=1)
        assert longest_of(index, found) == expected
        assert index.hashes.size - index.usable.sum() == len(set(count) - used)
        hits = [gram for document in documents for gram in grams(document) if gram in count]
        assert found.unused_hits == sum(gram not in used for gram in hits)
        fewer += expected != by_definition(samples, documents)
    assert 10 < fewer < 100


@pytest.mark.parametrize(
    ("documents", "percent"),
    [
        ([SAMPLE[5:20]], {10: 50, 15: 50, 20: 0, 24: 0, 30: 0}),
        ([SAMPLE[:10]], {10: 33.33, 15: 0, 20: 0, 24: 0, 30: 0}),
        ([SAMPLE[:9]], dict.fromkeys((10, 15, 20, 24, 30), 0)),
        ([SAMPLE[:9], SAMPLE[9:18]], dict.fromkeys((10, 15, 20, 24, 30), 0)),
        ([SAMPLE[:15], SAMPLE[15:]], {10: 100, 15: 100, 20: 0, 24: 0, 30: 0}),
        ([[*SAMPLE[:15], 0, *SAMPLE[15:]]], {10: 100, 15: 100, 20: 0, 24: 0, 30: 0}),
        (
            [[0 if i in (12, 15, 18, 21) else token for i, token in enumerate(SAMPLE)]],
            dict.fromkeys((10, 15, 20, 24, 30), 86.67),
        ),
        (
            [[0 if i in (12, 15, 18, 21, 24) else token for i, token in enumerate(SAMPLE)]],
            {10: 66.67, 15: 66.67, 20: 66.67, 24: 66.67, 30: 0},  # 24 tokens, of which 4 differ
        ),
        (
            [[0 if i == 5 else token for i, token in enumerate(SAMPLE)]],
            {10: 80, 15: 80, 20: 80, 24: 80, 30: 0},
        ),
    ],
)
def test_share_of_a_sample_at_each_minimum_length(documents, percent):
    index, found = run([SAMPLE], documents)
    for length, expected in percent.items():
        (share,) = contaminated_share(index, found, length=length)
        assert 100 * share == pytest.approx(expected, abs=0.005)


def test_shares_are_of_the_sample_and_exact_at_a_bound():
    index, found = run([SAMPLE[:10] + list(range(40)), [7], SAMPLE[:12]], [SAMPLE])
    assert contaminated_share(index, found, length=10).tolist() == [0.2, 0.0, 1.0]


def test_the_match_says_where():
    index = index_samples([[1, 2, 3], [9, *SAMPLE]], max_places=256)
    document = [5, 5, *SAMPLE[:12], 0, *SAMPLE[13:20], 5]
    documents = [Document("a.txt", 7 + i, tokens) for i, tokens in enumerate(([5, 6], document, document))]
    found = scan(index, documents)
    assert found.matches == {1: ("a.txt", 8, 2, 1, 20, tuple(document[2:22]))}
    assert (found.documents, found.tokens, found.unused_hits) == (3, 2 + 2 * 23, 0)
    assert index.tokens[index.starts[1] :][: index.sizes[1]].tolist() == [9, *SAMPLE]


@pytest.mark.usefixtures("small_bounds")
def test_parts_of_a_corpus_merge_to_the_whole():
    draw = random.Random(3)
    for _ in range(30):
        samples, documents = random_texts(draw)
        index, whole = run(samples, documents)
        parts = [run(samples, [document])[1] for document in documents]
        forth = functools.reduce(merge, parts, empty_scan(index))
        back = functools.reduce(merge, reversed(parts), empty_scan(index))
        for found in (forth, back):
            assert found.longest.tolist() == whole.longest.tolist()
            assert found[2:] == whole[2:]
            assert {i: m.length for i, m in found.matches.items()} == {
                i: m.length for i, m in whole.matches.items()
            }


@pytest.mark.parametrize("samples", [[[1, 2, 3]], [[4] * 30], [[1], list(range(9))]])
def test_samples_without_a_place_to_start(samples):
    index, found = run(samples, [[4] * 50, [], list(range(20))])
    assert not found.longest.any()
    assert found.unused_hits == (41 if len(samples[0]) == 30 else 0)
    assert contaminated_share(index, found, length=10).tolist() == [0.0] * len(samples)


def test_boilerplate_does_not_hide_what_follows_it(caplog):
    prompt = list(range(40))
    samples = [[*prompt, *range(1000 + 20 * i, 1020 + 20 * i)] for i in range(5)]
    index, found = run(samples, [prompt, samples[3]], max_places=4)
    assert found.unused_hits == 2 * 31
    assert "no span is started at 31 of the 131 different 10-grams" in caplog.text
    assert contaminated_share(index, found, length=50).tolist() == [0, 0, 0, 1, 0]


def test_hash_is_the_polynomial_of_ten_tokens():
    tokens = [random.Random(1).randrange(2**31) for _ in range(40)]
    factor = 0x9E3779B97F4A7C15
    expected = [
        sum(token * factor ** (10 - i) for i, token in enumerate(gram)) % 2**64 for gram in grams(tokens)
    ]
    assert gram_hashes(np.array(tokens, np.int32)).tolist() == expected
    for size in range(10):
        assert gram_hashes(np.arange(size, dtype=np.int32)).size == 0
