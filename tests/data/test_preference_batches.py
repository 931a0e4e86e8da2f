import itertools

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data import preference_batches
from llama2_jax.data.chat import CHATML, LLAMA2, Message
from llama2_jax.data.packing import shuffled_order
from llama2_jax.data.preference_batches import EncodedPair, PairLoader, encode_pairs, encode_response
from llama2_jax.data.preferences import Preference
from llama2_jax.data.sources import DataError

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
    with pytest.raises(DataError, match=r"pair 1 \(prompt 'p7'\) takes \d+ tokens, more than 64; raise"):
        encoded(tokenizer, [preference(), long])
    found = encoded(tokenizer, [preference(), long], on_bad_line="skip")
    assert (found.numbers, found.too_long) == ([0], 1)
    exact = max(len(tokens) for tokens in found.pairs[0][:2])
    assert encoded(tokenizer, [preference()], max_length=exact).too_long == 0
    with pytest.raises(DataError):
        encoded(tokenizer, [preference()], max_length=exact - 1)


def loader(count=10, batch_size=4, *, seed=0, **hosts):
    """Pair ``i`` is known by its token 100 + i; its rating is i mod 4, or none for the last."""
    pairs = [
        EncodedPair([100 + i] * (i + 1), [100 + i, 5], i % 4 if i < count - 1 else -1, (1, 0))
        for i in range(count)
    ]
    return PairLoader(pairs, MARGINS, batch_size=batch_size, seed=seed, **hosts)


def ids(batch):
    return [int(row[0, 0]) - 100 for row in batch.tokens_BCT if row.any()]


def test_an_epoch_has_every_pair_once_and_the_next_another_order():
    pairs = loader()
    assert pairs.batches_per_epoch == 3
    epochs = [[i for step in range(first, first + 3) for i in ids(pairs.batch(step))] for first in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[:2] == [[3, 2, 1, 8, 6, 0, 7, 4, 5, 9], [7, 4, 5, 1, 9, 8, 6, 2, 0, 3]]  # never changes
    assert epochs[0] != [i for step in range(3) for i in ids(loader(seed=1).batch(step))]


def test_the_order_of_an_epoch_is_made_once(monkeypatch):
    made = []

    def counted(count, seed):
        made.append(seed)
        return shuffled_order(count, seed)

    monkeypatch.setattr(preference_batches, "shuffled_order", counted)
    list(itertools.islice(loader(seed=7).iterate(), 6))
    assert made == [(7, 0), (7, 1)]


def test_the_last_batch_is_filled_with_empty_pairs():
    batch = loader().batch(2)
    np.testing.assert_array_equal(batch.lengths_BC[2:], 0)
    np.testing.assert_array_equal(batch.safe_BC[2:], -1)
    assert (batch.lengths_BC[:2] > 0).all()


def test_what_a_batch_holds_of_a_pair():
    batch = loader(count=4).batch(0)
    assert batch.tokens_BCT.shape == (4, 2, 16)
    assert batch.tokens_BCT.dtype == batch.lengths_BC.dtype == np.int32
    for row, i in enumerate(ids(batch)):
        np.testing.assert_array_equal(batch.lengths_BC[row], [i + 1, 2])
        np.testing.assert_array_equal(batch.tokens_BCT[row, 0], [100 + i] * (i + 1) + [0] * (15 - i))
        np.testing.assert_array_equal(batch.tokens_BCT[row, 1], [100 + i, 5] + [0] * 14)
        assert batch.margin_B[row] == (MARGINS[i] if i < 3 else 0)  # unrated: no margin
        np.testing.assert_array_equal(batch.safe_BC[row], [1, 0])


def test_a_token_with_the_id_of_padding_is_counted():
    pair = EncodedPair([5, 0, 9, 0], [0], -1, (-1, -1))
    batch = PairLoader([pair], MARGINS, batch_size=1, seed=0).batch(0)
    np.testing.assert_array_equal(batch.lengths_BC, [[4, 1]])
    np.testing.assert_array_equal(batch.tokens_BCT[0, 0, :5], [5, 0, 9, 0, 0])


def test_batches_depend_on_the_step_alone():
    stream = loader().iterate(4)
    for step in (4, 5, 6):
        for found, wanted in zip(next(stream), loader().batch(step), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_two_hosts_hold_the_batch_of_one():
    whole = loader().batch(2)
    halves = [loader(host_index=host, host_count=2).batch(2) for host in range(2)]
    for name, wanted in whole._asdict().items():
        np.testing.assert_array_equal(np.concatenate([getattr(half, name) for half in halves]), wanted)
    with pytest.raises(ConfigError, match="batch_size 4 is not a positive multiple of the 3"):
        loader(host_count=3)
    with pytest.raises(ConfigError, match=r"host_index 2 is outside 0\.\.1"):
        loader(host_index=2, host_count=2)


def test_rows_are_as_long_as_the_longest_response_rounded_up():
    assert loader(count=64).row_length == 64
    assert loader(count=65).row_length == 80
