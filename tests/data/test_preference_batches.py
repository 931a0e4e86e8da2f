import itertools

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data import preference_batches
from llama2_jax.data.chat import CHATML, LLAMA2, Message
from llama2_jax.data.packing import shuffled_order
from llama2_jax.data.preference_batches import EncodedPair, PairLoader, encode_pairs, encode_response
from llama2_jax.data.preferences import Preference
from llama2_jax.data.records import DataError

MARGINS = (0.0, 1.0, 2.0, 3.0)
QUESTION = (Message("user", "the river?"),)


def preference(chosen="a stone", rejected="a garden", **changes):
    return Preference(QUESTION, chosen, rejected, "helpfulness", **changes)


def encoded(tokenizer, preferences, *, max_length=64, **options):
    return encode_pairs(preferences, tokenizer, LLAMA2, max_length=max_length, **options)


def test_a_pair_is_two_whole_dialogues_that_end_with_eos(tokenizer):
    (pair,) = encoded(tokenizer, [preference()]).pairs
    for tokens, answer in ((pair.chosen, "a stone"), (pair.rejected, "a garden")):
        assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert tokenizer.decode(tokens[1:-1]).strip() == f"[INST] the river? [/INST] {answer}"


def test_a_response_ends_with_the_stop_token_where_the_template_goes_on(chatml_tokenizer):
    tokens = encode_response([*QUESTION, Message("assistant", "the user")], chatml_tokenizer, CHATML)
    assert tokens[-1] == chatml_tokenizer.special_id("<|im_end|>")
    assert tokens.count(tokens[-1]) == 2


@pytest.mark.parametrize(
    ("rating", "wanted"),
    [("significantly_better", 3), ("better", 2), ("slightly_better", 1), ("unsure", 0), (None, -1)],
)
def test_ratings_by_number(tokenizer, rating, wanted):
    assert encoded(tokenizer, [preference(rating=rating)]).pairs[0].rating == wanted


@pytest.mark.parametrize(
    ("safety", "wanted"),
    [("chosen_safe", (1, 0)), ("both_safe", (1, 1)), ("both_unsafe", (0, 0)), (None, (-1, -1))],
)
def test_safety_bins_label_each_response(tokenizer, safety, wanted):
    assert encoded(tokenizer, [preference(safety=safety)]).pairs[0].safe == wanted


def test_pairs_that_are_equal_as_tokens_are_dropped_and_counted(tokenizer):
    twin = preference("a stone", " a stone ")
    found = encoded(tokenizer, [twin, preference(), twin])
    assert (len(found.pairs), found.numbers, found.identical, found.too_long) == (1, [1], 2, 0)
    with pytest.raises(DataError, match=r"none of 2 pair\(s\) is usable: .* 2 with two equal answers"):
        encoded(tokenizer, [twin, twin])


def test_answers_beyond_the_context_are_refused_or_skipped_never_cut(tokenizer):
    long = preference(rejected="stone " * 90, prompt_id="p7")
    with pytest.raises(
        DataError, match=r"pair 1 \(prompt 'p7', 'the river\?'\) takes \d+ tokens, more than 64; raise"
    ):
        encoded(tokenizer, [preference(), long])
    found = encoded(tokenizer, [preference(), long], on_bad_line="skip")
    assert (found.numbers, found.too_long) == ([0], 1)
    exact = max(len(tokens) for tokens in found.pairs[0][:2])
    assert encoded(tokenizer, [preference()], max_length=exact).too_long == 0
    with pytest.raises(DataError):
        encoded(tokenizer, [preference()], max_length=exact - 1)


def loader(count=10, batch_size=4, *, epochs=3, seed=0, **rows):
    """Pair ``i`` is known by its token 100 + i; its rating is i mod 4, or none for the last."""
    pairs = [
        EncodedPair([100 + i] * (i + 1), [100 + i, 5], i % 4 if i < count - 1 else -1, (1, 0))
        for i in range(count)
    ]
    return PairLoader(pairs, MARGINS, batch_size=batch_size, epochs=epochs, seed=seed, **rows)


def ids(batch):
    """Which pairs are in a batch, row by row."""
    return [
        int(row[place]) - 100
        for row, last_PC in zip(batch.tokens_BT, batch.last_BPC, strict=True)
        for place in last_PC[:, 0]
        if place >= 0
    ]


def test_an_epoch_has_every_pair_once_and_the_next_another_order():
    pairs = loader()
    assert pairs.num_batches == 9
    parts = (0.1, 0.5, 1.1)  # 0.3, 1.5 and 3.3 of the three batches
    assert [loader(epochs=part).num_batches for part in parts] == [1, 2, 4]
    batches = [sorted(ids(batch)) for batch in pairs.iterate()]
    epochs = [batches[first : first + 3] for first in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(10))
    assert epochs[0] == [[1, 2, 3, 8], [0, 4, 6, 7], [5, 9]]  # never changes
    assert epochs[1] == [[1, 4, 5, 7], [2, 6, 8, 9], [0, 3]]
    assert epochs[2] not in epochs[:2]
    assert epochs[0] != [sorted(ids(batch)) for batch in loader(seed=1, epochs=1).iterate()]


def test_the_order_of_an_epoch_is_made_once(monkeypatch):
    made = []

    def counted(count, seed):
        made.append(seed)
        return shuffled_order(count, seed)

    monkeypatch.setattr(preference_batches, "shuffled_order", counted)
    assert len(list(loader(seed=7, epochs=2).iterate())) == 6
    assert made == [(7, 0), (7, 1)] * 2  # to measure the batches, and to make them


PAIRS = [
    EncodedPair([1, 2, 3], [1, 2, 4, 4], 2, (1, 0)),
    EncodedPair([5, 6], [7, 8, 9, 10], -1, (-1, -1)),
    EncodedPair([11] * 12, [11], 3, (0, 0)),
]


def test_a_row_holds_pairs_and_once_what_both_responses_begin_with():
    (batch,) = PairLoader(PAIRS, MARGINS, batch_size=3, epochs=1, seed=0).iterate()
    wanted = {
        "tokens_BT": [[*[11] * 13, 0, 0, 0], [5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 4, 0, 0, 0, 0, 0]],
        "segment_ids_BT": [[*[1] * 12, 2, 0, 0, 0], [1, 1, 2, 2, 2, 2, 3, 3, 4, 5, 5, 0, 0, 0, 0, 0]],
        "prefix_ids_BT": [[0] * 16, [0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3, 0, 0, 0, 0, 0]],
        "positions_BT": [[*range(12), 0, 0, 0, 0], [0, 1, 0, 1, 2, 3, 0, 1, 2, 2, 3, 0, 0, 0, 0, 0]],
        "last_BPC": [[[11, 12], [-1, -1]], [[1, 5], [8, 10]]],  # of a response that the other begins with too
        "margin_BP": [[3, 0], [0, 2]],  # unrated: no margin
        "safe_BPC": [[[0, 0], [-1, -1]], [[-1, -1], [1, 0]]],
    }
    for name, value in batch._asdict().items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)
        assert value.dtype == (np.float32 if name == "margin_BP" else np.int32)


def test_where_prefixes_are_not_served_every_response_is_whole():
    loader = PairLoader(PAIRS[:1], MARGINS, batch_size=1, epochs=1, seed=0, share_prompts=False)
    (batch,) = loader.iterate()
    assert batch.prefix_ids_BT is None
    np.testing.assert_array_equal(batch.tokens_BT[0, :8], [1, 2, 3, 1, 2, 4, 4, 0])
    np.testing.assert_array_equal(batch.segment_ids_BT[0, :8], [1, 1, 1, 2, 2, 2, 2, 0])
    np.testing.assert_array_equal(batch.positions_BT[0, :8], [0, 1, 2, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(batch.last_BPC, [[[2, 6]]])


def test_every_batch_has_the_rows_and_the_pairs_of_a_row_of_the_fullest():
    pairs = loader(count=21, batch_size=6, row_multiple=4)
    batches = list(pairs.iterate())
    shapes = {tuple(array.shape for array in batch) for batch in batches}
    assert len(shapes) == 1
    used = [int((batch.last_BPC[:, 0, 0] >= 0).sum()) for batch in batches]
    assert pairs.num_rows == batches[0].tokens_BT.shape[0] == -(-max(used) // 4) * 4
    most = max(int((batch.last_BPC[..., 0] >= 0).sum(axis=1).max()) for batch in batches)
    assert most == batches[0].last_BPC.shape[1]


@pytest.mark.parametrize("epochs", [0.3, 1, 2.5])
def test_how_full_the_batches_of_the_run_are(epochs):
    pairs = loader(count=41, batch_size=6, epochs=epochs)
    batches = list(pairs.iterate())
    tokens = sum(int((batch.segment_ids_BT > 0).sum()) for batch in batches)
    assert pairs.fill_fraction == pytest.approx(tokens / (len(batches) * batches[0].tokens_BT.size))
    with pytest.raises(ConfigError, match=f"no batch {len(batches)}; there are {len(batches)}"):
        pairs.batch(len(batches))


def test_an_empty_row_is_padding():
    (batch,) = loader(count=1, epochs=1, row_multiple=2).iterate()
    assert batch.last_BPC.tolist() == [[[0, 2]], [[-1, -1]]]
    assert not batch.segment_ids_BT[1].any()
    assert (batch.safe_BPC[1] == -1).all()


def test_a_token_with_the_id_of_padding_is_counted():
    pair = EncodedPair([5, 0, 9, 0], [0], -1, (-1, -1))
    (batch,) = PairLoader([pair], MARGINS, batch_size=1, epochs=1, seed=0).iterate()
    assert batch.last_BPC.tolist() == [[[3, 4]]]
    assert (batch.segment_ids_BT > 0).sum() == 5
    np.testing.assert_array_equal(batch.tokens_BT[0, :6], [5, 0, 9, 0, 0, 0])


def test_batches_depend_on_the_step_alone():
    stream = loader().iterate(4)
    for step in (4, 5, 6):
        for found, wanted in zip(next(stream), loader().batch(step), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_two_hosts_hold_the_batch_of_one():
    whole = loader(count=40, batch_size=9, row_multiple=2).batch(2)
    assert len(ids(whole)) == 9
    halves = [
        loader(count=40, batch_size=9, row_multiple=2, host_index=host, host_count=2).batch(2)
        for host in range(2)
    ]
    for name, wanted in whole._asdict().items():
        np.testing.assert_array_equal(np.concatenate([getattr(half, name) for half in halves]), wanted)
    for hosts in ({"host_index": 2, "host_count": 2}, {"host_count": 3}):
        with pytest.raises(ConfigError, match=r"hosts, of which this is \d, cannot share 2 rows"):
            loader(row_multiple=2, **hosts)


def test_rows_are_as_long_as_the_longest_pair_rounded_up():
    assert loader(count=63).row_length == 64  # 63 tokens and one that the other response adds
    assert loader(count=64).row_length == 80
