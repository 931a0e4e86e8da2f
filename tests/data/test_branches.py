"""Bundles of texts, against all ways to make them, and rows by hand."""

import itertools

import numpy as np
import pytest

from llama2_jax.data import branches
from llama2_jax.data.branches import Bundle, common_prefix, grouped, lay_out


def test_a_row_by_hand():
    prompt_with_two_answers = Bundle(([5, 6, 7, 8], [5, 6, 9]), shared=2)
    alone = Bundle(([1, 2],), shared=0)
    assert (prompt_with_two_answers.size, alone.size) == (5, 2)
    row, offsets = lay_out([prompt_with_two_answers, alone], 9)
    wanted = {
        "tokens_T": [5, 6, 7, 8, 9, 1, 2, 0, 0],
        "segment_ids_T": [1, 1, 2, 2, 3, 4, 4, 0, 0],
        "prefix_ids_T": [0, 0, 1, 1, 1, 0, 0, 0, 0],
        "positions_T": [0, 1, 2, 3, 2, 0, 1, 0, 0],
    }
    for name, value in row._asdict().items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)
        assert value.dtype == np.int32
    assert offsets == [[0, 2], [5]]  # token 2 of the second text stands at 4


@pytest.mark.parametrize(
    ("first", "second", "wanted"), [([1, 2, 3], [1, 2, 4], 2), ([1], [1, 2], 1), ([1], [2], 0), ([], [1], 0)]
)
def test_common_prefix(first, second, wanted):
    assert common_prefix(first, second) == common_prefix(np.array(second), np.array(first)) == wanted


def most_saved(texts):
    """By bundles: all texts that begin alike are one, or each part of them with the same next token."""
    if len(texts) < 2:
        return 0
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    shared = min(len(list(same)), *(len(text) - 1 for text in texts))
    parts = [list(part) for _, part in itertools.groupby(sorted(texts), key=lambda text: text[: shared + 1])]
    alone = [text for text in texts if len(text) == shared + 1]  # it may share no more
    deeper = [[text for text in part if text not in alone] for part in parts]
    return max((len(texts) - 1) * shared, sum(map(most_saved, deeper)))


@pytest.mark.parametrize("seed", range(20))
def test_groups_save_the_most(seed, monkeypatch):
    monkeypatch.setattr(branches, "LEAST_SHARED", 1)
    rng = np.random.default_rng(seed)
    texts = [tuple(rng.integers(0, 2, rng.integers(1, 9)).tolist()) for _ in range(12)]
    groups = grouped(texts, [len(text) - 1 for text in texts], room=1000)
    assert sorted(index for group in groups for index in group.members) == list(range(12))
    for group in groups:
        assert len({texts[index][: group.shared] for index in group.members}) == 1
    size = sum(group.bundle(texts).size for group in groups)
    assert sum(map(len, texts)) - size == most_saved(texts) > 0


def test_a_bundle_has_room_and_what_may_not_be_shared_is_not():
    shots = tuple(range(100, 120))
    texts = [(*shots, number, number) for number in range(10)]
    groups = grouped(texts, [20] * 10, room=27)
    assert [(len(group.members), group.shared) for group in groups] == [(3, 20)] * 3 + [(1, 0)]
    assert grouped(texts, [19] * 10, room=1000)[0].shared == 19
    assert {group.shared for group in grouped(texts, [15] * 10, room=1000)} == {0}  # too little


def test_texts_that_each_begin_the_next_are_no_deep_recursion():
    text = list(range(3000))
    texts = [text[:length] for length in range(1, 3000, 2)]
    groups = grouped(texts, [len(own) - 1 for own in texts], room=12_000)
    assert sum(len(group.members) for group in groups) == 1500


def test_no_texts():
    assert grouped([], [], room=0) == []
