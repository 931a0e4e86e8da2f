import itertools
import random

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import EncodedDialogue
from llama2_jax.data.packing import (
    PackedDialogues,
    PackedDocuments,
    best_fit_decreasing,
    make_row,
    shuffled_order,
)
from llama2_jax.data.records import DataError


class ListCorpus:
    """Documents of unique ids, so that every token can be followed through packing."""

    def __init__(self, lengths, *, first=1):
        self.lengths = np.array(lengths, np.int64)
        ends = np.cumsum(self.lengths) + first
        self.documents = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    def part(self, index, start, stop):
        assert 0 <= start < stop <= self.lengths[index]
        return self.documents[index][start:stop]


LENGTHS = [[5, 3, 9, 2, 2, 17, 4], [30], [2, 2], [2] * 11, [1, 1, 1], [8, 8, 9]]


def rows_of(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def brute_force_row(documents, index, length, document_mask):
    """Row ``index`` token by token, from the definition."""
    stream = [(number, token) for number, ids in enumerate(documents) for token in ids.tolist()]
    window = stream[index * length : index * length + length + 1]
    row = {name: [] for name in ("tokens", "targets", "loss_mask", "segment_ids", "positions")}
    segment, position, previous = 0, -1, None
    for slot in range(length):
        if slot >= len(window):
            for column in row.values():
                column.append(0)
            continue
        number, token = window[slot]
        new_segment = segment == 0 or (document_mask and number != previous)
        segment, position, previous = segment + new_segment, 0 if new_segment else position + 1, number
        following = window[slot + 1] if slot + 1 < len(window) else None
        counts = following is not None and (not document_mask or following[0] == number)
        row["tokens"].append(token)
        row["targets"].append(following[1] if counts else 0)
        row["loss_mask"].append(int(counts))
        row["segment_ids"].append(segment)
        row["positions"].append(position)
    return row


@pytest.mark.parametrize("first", [0, 1])  # 0 is the id of padding too
@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("length", [1, 4, 7, 64])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_rows_equal_brute_force(lengths, length, document_mask, first):
    corpus = ListCorpus(lengths, first=first)
    packed = PackedDocuments(corpus, sequence_length=length, seed=None, document_mask=document_mask)
    assert len(packed) == -(-(sum(lengths) - 1) // length)
    for index, row in enumerate(rows_of(packed)):
        expected = brute_force_row(corpus.documents, index, length, document_mask)
        for name, values in row.items():
            assert values.tolist() == expected[name], (name, index)


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_every_token_but_the_first_is_a_target_once(seed):
    generator = random.Random(1)
    lengths = [generator.randint(2, 40) for _ in range(300)]  # more documents than a byte can number
    packed = PackedDocuments(ListCorpus(lengths), sequence_length=16, seed=seed, document_mask=False)
    counted = [row["targets"][row["loss_mask"] > 0].tolist() for row in rows_of(packed)]
    first = packed[0]["tokens"][0]
    assert sorted([first, *itertools.chain(*counted)]) == list(range(1, sum(lengths) + 1))


def test_with_document_mask_every_token_but_the_first_of_each_document_is_a_target_once():
    lengths = [random.Random(1).randint(2, 40) for _ in range(50)]
    corpus = ListCorpus(lengths)
    packed = PackedDocuments(corpus, sequence_length=16, seed=3, document_mask=True)
    counted = [row["targets"][row["loss_mask"] > 0].tolist() for row in rows_of(packed)]
    expected = [token for ids in corpus.documents for token in ids[1:].tolist()]
    assert sorted(itertools.chain(*counted)) == expected


def test_order_depends_on_the_seed_only_and_never_changes():
    corpus = ListCorpus([2] * 6)

    def firsts(seed):
        packed = PackedDocuments(corpus, sequence_length=2, seed=seed, document_mask=True)
        return [int(row["tokens"][0]) for row in rows_of(packed)]

    assert firsts(None) == [1, 3, 5, 7, 9, 11]
    assert firsts(0) == firsts(0) == [7, 5, 3, 1, 9, 11]
    assert firsts(1) != firsts(0)


def test_shuffled_order_has_every_number_once_and_never_changes():
    assert shuffled_order(5, None).tolist() == [0, 1, 2, 3, 4]
    assert shuffled_order(10, 3).tolist() == [0, 4, 9, 7, 1, 5, 6, 3, 8, 2]
    assert shuffled_order(10, (0, 1)).tolist() == [7, 4, 5, 1, 9, 8, 6, 2, 0, 3]
    assert sorted(shuffled_order(1000, (3, 8))) == list(range(1000))
    assert shuffled_order(0, 3).tolist() == []


def test_dtypes_and_shapes():
    row = PackedDocuments(ListCorpus([5]), sequence_length=8, seed=0, document_mask=False)[0]
    assert {name: str(values.dtype) for name, values in row.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "loss_mask": "float32",
        "segment_ids": "int32",
        "positions": "int32",
    }
    assert {values.shape for values in row.values()} == {(8,)}


def test_documents_refuse_what_cannot_be_packed():
    with pytest.raises(DataError, match="1 token"):
        PackedDocuments(ListCorpus([1]), sequence_length=8, seed=0, document_mask=False)
    with pytest.raises(ConfigError, match="sequence_length is 0"):
        PackedDocuments(ListCorpus([5]), sequence_length=0, seed=0, document_mask=False)
    with pytest.raises(IndexError):
        PackedDocuments(ListCorpus([5]), sequence_length=8, seed=0, document_mask=False)[1]


def make_dialogues(count: int, *, longest: int, seed: int = 0) -> list[EncodedDialogue]:
    """Unique ids from 1; the mask is 0 for the first token and random after, 1 at the end."""
    rng, token, dialogues = random.Random(seed), itertools.count(1), []
    for _ in range(count):
        length = rng.randint(2, longest)
        mask = [0, *(rng.randint(0, 1) for _ in range(length - 2)), 1]
        dialogues.append(EncodedDialogue([next(token) for _ in range(length)], mask))
    return dialogues


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("longest", [10, 70])
def test_every_learned_token_is_a_counted_target_once_after_its_predecessor(longest, document_mask):
    dialogues = make_dialogues(60, longest=longest)
    packed = PackedDialogues(dialogues, sequence_length=16, document_mask=document_mask)
    pairs = [
        (int(token), int(target))
        for row in rows_of(packed)
        for token, target, counts in zip(row["tokens"], row["targets"], row["loss_mask"], strict=True)
        if counts
    ]
    expected = [
        (before, token)
        for dialogue in dialogues
        for before, token, learned in zip(
            dialogue.tokens, dialogue.tokens[1:], dialogue.loss_mask[1:], strict=False
        )
        if learned
    ]
    assert sorted(pairs) == expected
    assert packed.report.learned_tokens == len(expected)
    assert packed.report.dialogues == 60
    assert packed.report.rows == len(packed)


def test_dialogue_segments_and_positions():
    dialogues = [EncodedDialogue([1, 2, 3, 4], [0, 0, 1, 1]), EncodedDialogue([5, 6, 7], [0, 1, 1])]
    masked = PackedDialogues(dialogues, sequence_length=8, document_mask=True)[0]
    assert masked["segment_ids"].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert masked["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert masked["loss_mask"].tolist() == [0, 1, 1, 0, 1, 1, 0, 0]
    whole = PackedDialogues(dialogues, sequence_length=8, document_mask=False)[0]
    assert whole["segment_ids"].tolist() == [1, 1, 1, 1, 1, 1, 1, 0]
    assert whole["positions"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert whole["loss_mask"].tolist() == [0, 1, 1, 0, 1, 1, 0, 0]


def test_a_token_with_the_id_of_padding_is_a_token():
    dialogue = EncodedDialogue([0, 5, 0, 6, 0], [0, 0, 1, 1, 1])
    row = PackedDialogues([dialogue], sequence_length=7, document_mask=True)[0]
    assert row["tokens"].tolist() == [0, 5, 0, 6, 0, 0, 0]
    assert row["targets"].tolist() == [5, 0, 6, 0, 0, 0, 0]
    assert row["loss_mask"].tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert row["segment_ids"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 3, 4, 0, 0]


def test_long_dialogues_are_split_and_empty_pieces_dropped_and_counted():
    long = EncodedDialogue(list(range(1, 14)), [0] * 11 + [1, 1])
    silent = EncodedDialogue([50, 51], [0, 0])
    packed = PackedDialogues([long, silent], sequence_length=4, document_mask=False)
    assert packed.report.split_dialogues == 1
    assert packed.report.dropped_pieces == 3  # two of the long one, and the silent one
    assert len(packed) == 1
    assert packed[0]["tokens"].tolist() == [9, 10, 11, 12]
    assert packed[0]["loss_mask"].tolist() == [0, 0, 1, 1]


def test_a_continued_piece_is_not_predicted_from_its_neighbour():
    continued = EncodedDialogue([1, 2, 3, 4, 5, 6, 7], [0, 1, 1, 1, 1, 1, 1])
    other = EncodedDialogue([20, 21], [0, 1])
    packed = PackedDialogues([continued, other], sequence_length=4, document_mask=False)
    pairs = {
        (int(token), int(target))
        for row in rows_of(packed)
        for token, target, counts in zip(row["tokens"], row["targets"], row["loss_mask"], strict=True)
        if counts
    }
    assert pairs == {(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (20, 21)}


def test_nothing_to_learn_is_an_error():
    with pytest.raises(DataError, match=r"zero in all of 2 dialogue"):
        PackedDialogues([EncodedDialogue([1, 2], [0, 0])] * 2, sequence_length=4, document_mask=False)


def brute_force_best_fit(sizes, capacity):
    bins = []
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rooms = [capacity - sum(sizes[i] for i in each) for each in bins]
        fitting = [(room, number) for number, room in enumerate(rooms) if room >= sizes[item]]
        if fitting:
            bins[min(fitting)[1]].append(item)
        else:
            bins.append([item])
    return bins


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_equals_brute_force(seed):
    rng = random.Random(seed)
    sizes = [rng.randint(1, 30) for _ in range(120)]
    assert best_fit_decreasing(sizes, 30) == brute_force_best_fit(sizes, 30)


def test_packing_fills_rows():
    packed = PackedDialogues(make_dialogues(500, longest=40), sequence_length=64, document_mask=True)
    assert packed.report.fill_fraction > 0.98


@pytest.mark.parametrize(
    ("lengths", "masks", "message"),
    [
        ((3, 3), (3, 3), "6 tokens do not fit in a row of 4 and the target of its last"),
        ((2, 3), (3, 2), r"parts of \[2, 3\] tokens have masks of \[3, 2\]"),
        ((2, 3), (2,), r"parts of \[2, 3\] tokens have masks of \[2\]"),
    ],
)
def test_a_row_of_what_does_not_fit_is_refused(lengths, masks, message):
    parts, learned = ([np.ones(n, np.int32) for n in some] for some in (lengths, masks))
    with pytest.raises(ConfigError, match=message):
        make_row(parts, learned=learned, sequence_length=4, document_mask=True)
