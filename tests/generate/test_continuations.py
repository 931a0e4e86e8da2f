import collections
import re

import jax
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.text_batches import TextBatch, text_batches
from llama2_jax.generate import continuations
from llama2_jax.generate.continuations import iterate_continuations, score_continuations
from llama2_jax.generate.decode import LogitsError, PromptError, generate
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import CHUNK
from llama2_jax.model.transformer import abstract_params
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import place_tree
from llama2_jax.sharding.rules import make_partitioner
from tests.model import numpy_llama, tiny


def scores(pairs):
    return [one.logprob for one in score_continuations(tiny.MODEL, tiny.params(), pairs, batch_size=8)]


@pytest.fixture
def batches(monkeypatch):
    """Which texts are in each row of each batch, and its number of rows."""
    seen = []

    def spy(*args, **kwargs):
        for batch, places in text_batches(*args, **kwargs):
            rows = collections.defaultdict(list)
            for text, place in places.items():
                rows[place.row].append(text)
            seen.append((list(rows.values()), len(batch.tokens_BT)))
            yield batch, places

    monkeypatch.setattr(continuations, "text_batches", spy)
    return seen


CONTEXTS = [tiny.tokens(n, seed=n).tolist() for n in (9, 1, 60)]


def test_continuations_equal_numpy_in_the_order_given():
    pairs = [(context, tiny.tokens(n, seed=7 * n).tolist()) for n in (1, 4, 2, 5) for context in CONTEXTS]
    found = score_continuations(tiny.MODEL, tiny.params(), pairs, batch_size=2)
    arrays = [tuple(map(np.array, pair)) for pair in pairs]
    assert score_continuations(tiny.MODEL, tiny.params(), arrays, batch_size=2) == found
    for (context, continuation), result in zip(pairs, found, strict=True):
        logprobs = numpy_llama.next_logprobs(tiny.params(), [*context, *continuation], tiny.CONFIG)
        np.testing.assert_allclose(result.logprob, logprobs[len(context) - 1 :].sum(), rtol=1e-4, atol=1e-4)


def test_a_continuation_is_greedy_if_greedy_decoding_makes_it():
    sampling = SamplingConfig(max_new_tokens=4, temperature=0)
    made = generate(tiny.MODEL, tiny.params(), CONTEXTS, sampling).tokens_BC.tolist()
    other = [[*row[:place], (row[place] + 1) % 56, *row[place + 1 :]] for row in made for place in range(4)]
    pairs = [
        *zip(CONTEXTS, made, strict=True),
        *zip([c for c in CONTEXTS for _ in range(4)], other, strict=True),
    ]
    found = score_continuations(tiny.MODEL, tiny.params(), pairs, batch_size=4)
    assert [result.is_greedy for result in found] == [True] * 3 + [False] * 12


def test_answers_of_one_token_share_a_pass_over_their_question(batches):
    pairs = [(context, [answer]) for context in CONTEXTS for answer in (3, 5, 8, 13)]
    together = scores(pairs)
    assert [rows for rows, _ in batches] == [[[2], [0], [1]]]
    np.testing.assert_allclose(together, [scores([pair])[0] for pair in pairs], atol=1e-5)


def questions(count=6, *, examples=20, answers=4, seed=0):
    """Contexts that begin with the same examples, each with answers of three tokens."""
    rng = np.random.default_rng(seed)
    shared = tiny.tokens(examples, seed=seed).tolist()
    contexts = [shared + rng.integers(0, 56, 2 + number % 7).tolist() for number in range(count)]
    return [(context, rng.integers(0, 56, 3).tolist()) for context in contexts for _ in range(answers)]


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        (questions(1), [[4]]),  # the answers to a question
        (questions(7, answers=1), [[7]]),  # the questions after some examples
    ],
)
def test_what_contexts_share_is_computed_once(batches, pairs, wanted):
    found = scores(pairs)
    assert [list(map(len, rows)) for rows, _ in batches] == wanted
    by_hand = [
        numpy_llama.next_logprobs(tiny.params(), [*context, *rest], tiny.CONFIG)[len(context) - 1 :].sum()
        for context, rest in pairs
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-4)


def test_a_batch_has_no_more_tokens_than_whole_texts_would(monkeypatch):
    seen = []
    monkeypatch.setattr(
        continuations, "_scores", lambda model, params, batch, asked: seen.append(batch) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        score_continuations(tiny.MODEL, tiny.params(), questions(40, examples=50, answers=1), batch_size=8)
    ((rows, length),) = [batch.tokens_BT.shape for batch in seen]
    assert (rows, length) == (2, 256)  # the longest text is 64 tokens long
    assert (seen[0].segment_ids_BT > 0).sum() > 300


def test_where_attention_serves_no_prefix_every_text_is_a_row(batches):
    model = tiny.with_config(attention_impl="xla")
    pairs = questions(2)
    found = [one.logprob for one in score_continuations(model, tiny.params(), pairs, batch_size=8)]
    assert [(len(rows), num_rows) for rows, num_rows in batches] == [(8, 8)]
    np.testing.assert_allclose(found, scores(pairs), rtol=1e-5, atol=1e-5)


def test_results_come_a_batch_at_a_time():
    pairs = questions(6)
    parts = list(iterate_continuations(tiny.MODEL, tiny.params(), pairs, batch_size=4))
    assert len(parts) > 1
    assert sorted(index for part in parts for index in part) == list(range(24))


def test_rows_are_made_whole_for_every_device_of_a_mesh():
    partitioner = make_partitioner(MeshConfig(preset="fsdp_tensor", fsdp=2, tensor=2, sequence=2))
    model = tiny.MODEL.clone(partitioner=partitioner)
    params, pairs = place_tree(partitioner, tiny.params()), [*questions(3), ([1, 2], [3])]
    found = [one.logprob for one in score_continuations(model, params, pairs, batch_size=5)]
    np.testing.assert_allclose(found, scores(pairs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (([], [1]), "pair 2 has 0 tokens of context and 1 of continuation"),
        (([1], []), "pair 2 has 1 tokens of context and 0 of continuation"),
        (([1], [99]), "pair 2 has token id 99"),
        (([1], [2, 99]), "pair 2 has token id 99"),
        (([1], [2, -1]), "pair 2 has token id -1"),
        (([1] * 60, [1] * 6), "pair 2 has 65 tokens.*64"),
        (([99], [1]), "pair 2 has token id 99"),
    ],
)
def test_pairs_the_model_cannot_take_are_refused(pair, words):
    with pytest.raises(PromptError, match=words):
        score_continuations(tiny.MODEL, tiny.params(), [([1], [2]), ([1], [3]), pair])


def test_logits_that_are_no_numbers_are_an_error():
    broken = {**tiny.params(), "embedding_VD": np.full_like(tiny.params()["embedding_VD"], np.nan)}
    with pytest.raises(LogitsError, match="the logits of row 0 are not finite"):
        score_continuations(tiny.MODEL, broken, [([1], [2])])
    with pytest.raises(LogitsError, match="the logits of row 1 are not finite"):  # the longest comes first
        score_continuations(tiny.MODEL, broken, [([1], [2]), ([1, 2, 3], [4])], batch_size=1)
    table = np.array(tiny.params()["embedding_VD"])
    table[4] = np.nan
    with pytest.raises(LogitsError, match="the logits of row 2"):
        score_continuations(
            tiny.MODEL, {**broken, "embedding_VD": table}, [([1], [2]), ([1], [3]), ([4], [5])]
        )


def test_a_batch_size_of_0_is_refused():
    with pytest.raises(ConfigError, match="batch_size = 0"):
        score_continuations(tiny.MODEL, tiny.params(), [([1], [2])], batch_size=0)


def test_no_pairs_give_no_results():
    assert score_continuations(tiny.MODEL, tiny.params(), []) == []


def test_logits_of_all_positions_never_exist_at_once():
    model = tiny.with_config(vocab_size=4000, max_context=1024)
    rows, asked = (jax.ShapeDtypeStruct((8, size), np.int32) for size in (1024, 256))
    batch, asked = TextBatch(rows, rows, rows, rows), continuations._Asked(asked, asked)
    text = continuations._scores.lower(model, abstract_params(model.config), batch, asked).as_text()
    with_vocabulary = re.findall(r"tensor<(\d+)x(\d+)x4000xf32>", text)
    assert max(int(rows) * int(positions) for rows, positions in with_vocabulary) == 8 * CHUNK
