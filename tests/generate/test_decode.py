import jax
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.generate.decode import PromptError, advance, few_lengths, generate, start, stream
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score
from llama2_jax.model.transformer import decoding_model, unstack
from tests.generate.test_sampling import reference_distribution
from tests.model import numpy_llama, tiny

NEW = 8
GREEDY = SamplingConfig(max_new_tokens=NEW, temperature=0.0)
RANDOM = SamplingConfig(max_new_tokens=NEW, temperature=1.0, top_p=0.95)
PROMPTS = [tiny.tokens(n, seed=20 + n).tolist() for n in (5, 1, 12, 3)]
SEEDS = [11, 22, 33, 44]


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jax.numpy.asarray, tiny.params())


@pytest.fixture(scope="module")
def greedy_tokens():
    return [numpy_llama.greedy(tiny.params(), prompt, tiny.CONFIG, NEW) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def random_batch(params):
    return generate(tiny.MODEL, params, PROMPTS, RANDOM, seeds=SEEDS)


def test_ragged_greedy_decoding_equals_full_forward_passes_of_each_prompt(params, greedy_tokens):
    found = generate(tiny.MODEL, params, PROMPTS, GREEDY)
    assert found.tokens_BC.tolist() == greedy_tokens
    assert found.lengths_B.tolist() == [NEW] * 4
    assert not found.stopped_B.any()


def test_a_row_is_the_same_alone_and_among_others_in_any_order(params, random_batch):
    order = [2, 0, 3, 1]
    shuffled = generate(
        tiny.MODEL, params, [PROMPTS[i] for i in order], RANDOM, seeds=[SEEDS[i] for i in order]
    )
    np.testing.assert_array_equal(shuffled.tokens_BC, random_batch.tokens_BC[order])
    np.testing.assert_allclose(shuffled.raw_logprobs_BC, random_batch.raw_logprobs_BC[order], atol=1e-5)
    for i in (1, 2):
        alone = generate(tiny.MODEL, params, [PROMPTS[i]], RANDOM, seeds=[SEEDS[i]])
        np.testing.assert_array_equal(alone.tokens_BC[0], random_batch.tokens_BC[i])


def test_tokens_are_the_same_where_64_bits_are_enabled(params, greedy_tokens, random_batch):
    jax.config.update("jax_enable_x64", True)
    try:
        found = [generate(tiny.MODEL, params, PROMPTS, how, seeds=SEEDS) for how in (GREEDY, RANDOM)]
        unstacked = list(stream(decoding_model(tiny.MODEL), unstack(params), PROMPTS[0], GREEDY))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert found[0].tokens_BC.tolist() == greedy_tokens
    assert unstacked == greedy_tokens[0]
    np.testing.assert_array_equal(found[1].tokens_BC, random_batch.tokens_BC)


def test_equal_rows_differ_by_their_seed_only(params):
    found = generate(tiny.MODEL, params, [PROMPTS[0]] * 4, RANDOM, seeds=[7, 8, 7, 9])
    rows = [tuple(row) for row in found.tokens_BC.tolist()]
    assert rows[0] == rows[2]
    assert len(set(rows)) == 3
    unsaid, said = (
        generate(tiny.MODEL, params, [PROMPTS[0]] * 2, RANDOM, **kw) for kw in ({}, {"seeds": [0, 1]})
    )
    np.testing.assert_array_equal(unsaid.tokens_BC, said.tokens_BC)


def test_logprobs_equal_score_and_a_full_forward_pass(params, random_batch):
    rows = [prompt + random_batch.tokens_BC[i].tolist() for i, prompt in enumerate(PROMPTS)]
    scored = score(tiny.MODEL, params, rows)
    for i, row in enumerate(rows):
        raw = random_batch.raw_logprobs_BC[i]
        np.testing.assert_allclose(raw, scored[i][-NEW:], atol=1e-5)
        np.testing.assert_allclose(
            raw, numpy_llama.next_logprobs(tiny.params(), row, tiny.CONFIG)[-NEW:], atol=2e-5
        )
        logits, _ = numpy_llama.forward(tiny.params(), row, tiny.CONFIG)
        for c in range(NEW):
            at = len(PROMPTS[i]) + c
            probs = reference_distribution(logits[at - 1], temperature=1.0, top_p=0.95)
            wanted = np.log(probs[row[at]])
            np.testing.assert_allclose(random_batch.sample_logprobs_BC[i, c], wanted, atol=5e-5)


def test_a_stop_token_ends_its_row_only_and_is_part_of_it(params, greedy_tokens):
    stops = (greedy_tokens[0][2], greedy_tokens[3][4])
    found = generate(tiny.MODEL, params, PROMPTS, GREEDY, stop_ids=stops)
    free = generate(tiny.MODEL, params, PROMPTS, GREEDY)
    for row, tokens in enumerate(greedy_tokens):
        first = next((at for at, token in enumerate(tokens) if token in stops), None)
        length = NEW if first is None else first + 1
        assert found.lengths_B[row] == length
        assert found.stopped_B[row] == (first is not None)
        assert found.tokens_BC[row].tolist() == tokens[:length] + [-1] * (NEW - length)
        np.testing.assert_allclose(
            found.raw_logprobs_BC[row, :length], free.raw_logprobs_BC[row, :length], atol=1e-5
        )
        assert (found.raw_logprobs_BC[row, length:] == 0).all()
    assert found.stopped_B.any()


def test_past_the_end_of_a_row_there_is_nothing(params, random_batch):
    stop = int(random_batch.tokens_BC[0, 2])
    found = generate(tiny.MODEL, params, PROMPTS, RANDOM, seeds=SEEDS, stop_ids=(stop,))
    past = np.arange(NEW) >= found.lengths_B[:, None]
    assert 0 < past.sum() < past[0].sum() * 4
    for values, nothing in (
        (found.tokens_BC, -1),
        (found.raw_logprobs_BC, 0),
        (found.sample_logprobs_BC, 0),
    ):
        assert ((values == nothing) == past).all()


def test_the_loop_ends_as_soon_as_every_row_stopped(params, greedy_tokens):
    def run(stop_ids):
        state = start(tiny.MODEL, params, PROMPTS, max_new_tokens=NEW, seeds=range(len(PROMPTS)))
        return advance(tiny.MODEL, params, state, GREEDY.numbers, stop_ids=stop_ids, num_tokens=NEW)

    state, out = run(tuple(sorted({tokens[0] for tokens in greedy_tokens})))
    assert int(state.count) == 1
    assert out.lengths_B.tolist() == [1] * 4
    state, out = run(tuple(range(tiny.CONFIG.vocab_size)))
    assert int(state.count) == 1
    state, _ = run(())
    assert int(state.count) == NEW


def test_prompts_up_to_a_given_length_are_padded_to_it(params):
    for prompt, slots in ((PROMPTS[2], 24), (PROMPTS[0], 24), ([*PROMPTS[2], 1], 72)):  # 12, 5 and 13 tokens
        state = start(tiny.MODEL, params, [prompt], max_new_tokens=NEW, seeds=[0], prompt_length=12)
        assert state.cache.segment_ids_BS.shape == (1, slots)


def test_rows_end_where_the_cache_is_full(params, greedy_tokens):
    state = start(tiny.MODEL, params, PROMPTS, max_new_tokens=NEW, seeds=range(4))
    _, out = advance(tiny.MODEL, params, state, GREEDY.numbers, stop_ids=(), num_tokens=NEW + 3)
    assert out.lengths_B.tolist() == [NEW] * 4
    assert out.tokens_BC.tolist() == [[*row, -1, -1, -1] for row in greedy_tokens]


def test_rows_end_at_the_context_of_the_model(params):
    context = tiny.CONFIG.max_context
    prompts = [tiny.tokens(context - 3).tolist(), tiny.tokens(context - 1, seed=1).tolist()]
    found = generate(tiny.MODEL, params, prompts, GREEDY)
    assert found.lengths_B.tolist() == [3, 1]
    assert (found.tokens_BC[0, 3:] == -1).all()
    assert (found.tokens_BC[1, 1:] == -1).all()
    for row, prompt in enumerate(prompts):
        length = found.lengths_B[row]
        wanted = numpy_llama.greedy(tiny.params(), prompt, tiny.CONFIG, int(length))
        assert found.tokens_BC[row, :length].tolist() == wanted
    assert not found.stopped_B.any()
    # what a row would draw after its end stops it no more
    others = set(range(tiny.CONFIG.vocab_size)) - set(found.tokens_BC.flat)
    again = generate(tiny.MODEL, params, prompts, GREEDY, stop_ids=tuple(others))
    np.testing.assert_array_equal(again.tokens_BC, found.tokens_BC)
    assert not again.stopped_B.any()


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[1], []], "prompt 1 is empty"),
        ([[1] * 64], "prompt 0 has 64 tokens.*context is 64"),
        ([[1, 56]], r"prompt 0 has token id 56.*0\.\.55"),
        ([[1], [2, -1]], "prompt 1 has token id -1"),
    ],
)
def test_prompts_the_model_cannot_take_are_refused(prompts, words):
    with pytest.raises(PromptError, match=words):
        generate(tiny.MODEL, tiny.params(), prompts, GREEDY)


def test_no_prompt_or_too_few_seeds_are_refused():
    with pytest.raises(ConfigError, match="no prompt"):
        generate(tiny.MODEL, tiny.params(), [], GREEDY)
    with pytest.raises(ConfigError, match="1 seeds for 2 prompts"):
        generate(tiny.MODEL, tiny.params(), [[1], [2]], GREEDY, seeds=[3])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, float("nan")])
def test_seeds_that_do_not_fit_are_refused(params, seed):
    with pytest.raises(ConfigError, match=f"seed {seed} is outside 0 to 4294967295"):
        generate(tiny.MODEL, params, [[1], [2]], GREEDY, seeds=[0, seed])
    with pytest.raises(ConfigError, match=f"seed {seed} is outside"):
        list(stream(tiny.MODEL, params, [1], GREEDY, seed=seed))


def test_the_largest_seed_is_a_seed(params):
    found = generate(tiny.MODEL, params, PROMPTS[:2], RANDOM, seeds=[2**32 - 1, 0])
    assert found.lengths_B.tolist() == [NEW] * 2


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_stream_in_chunks_of_nothing_is_refused(params, chunk):
    with pytest.raises(ConfigError, match=f"chunk = {chunk} must be positive"):
        list(stream(tiny.MODEL, params, [1], GREEDY, chunk=chunk))


def test_a_prompt_one_short_of_the_context_gives_one_token(params):
    """GEN-2."""
    prompt = tiny.tokens(tiny.CONFIG.max_context - 1, seed=1).tolist()
    wanted = numpy_llama.greedy(tiny.params(), prompt, tiny.CONFIG, 1)
    found = generate(tiny.MODEL, params, [prompt], GREEDY)
    assert (found.tokens_BC[0, :1].tolist(), found.lengths_B.tolist()) == (wanted, [1])
    assert list(stream(tiny.MODEL, params, prompt, GREEDY)) == wanted


def test_a_stop_id_in_the_prompt_ends_nothing(params, greedy_tokens):
    """GEN-7: multi-turn prompts have one after every answer."""
    stop = next(token for token in PROMPTS[2] if token not in greedy_tokens[2])
    found = generate(tiny.MODEL, params, [PROMPTS[2]], GREEDY, stop_ids=(stop,))
    assert found.tokens_BC[0].tolist() == greedy_tokens[2]


def test_score_gives_what_echo_gave(params):
    """GEN-6, GEN-7: log-probabilities of the prompt, also of one that leaves no room to generate."""
    prompt = tiny.tokens(tiny.CONFIG.max_context, seed=2).tolist()
    with pytest.raises(PromptError, match="has 64 tokens"):
        generate(tiny.MODEL, params, [prompt], GREEDY)
    (echoed,) = score(tiny.MODEL, params, [prompt])
    np.testing.assert_allclose(
        echoed, numpy_llama.next_logprobs(tiny.params(), prompt, tiny.CONFIG), rtol=1e-5, atol=3e-5
    )


def test_defaults_are_those_of_the_reference_code():
    """GEN-1, GEN-9."""
    assert SamplingConfig() == SamplingConfig(max_new_tokens=256, temperature=0.6, top_p=0.9, top_k=0)


def test_prompts_may_be_numpy_arrays(params, greedy_tokens):
    found = generate(tiny.MODEL, params, [np.asarray(prompt) for prompt in PROMPTS], GREEDY)
    assert found.tokens_BC.tolist() == greedy_tokens


@pytest.mark.parametrize("chunk", [3, 8])
def test_the_stream_equals_generate(params, random_batch, chunk):
    found = list(stream(tiny.MODEL, params, PROMPTS[2], RANDOM, seed=33, chunk=chunk))
    assert found == random_batch.tokens_BC[2].tolist()


def test_the_stream_ends_after_a_stop_token(params, random_batch):
    wanted = random_batch.tokens_BC[2].tolist()
    stop = wanted[4]
    found = list(stream(tiny.MODEL, params, PROMPTS[2], RANDOM, seed=33, chunk=3, stop_ids=(stop,)))
    assert found == wanted[: wanted.index(stop) + 1]


def test_the_stream_ends_at_the_context(params):
    prompt = tiny.tokens(tiny.CONFIG.max_context - 2).tolist()
    found = list(stream(tiny.MODEL, params, prompt, GREEDY, chunk=3))
    assert found == numpy_llama.greedy(tiny.params(), prompt, tiny.CONFIG, 2)


def test_the_state_is_donated(params):
    state = start(tiny.MODEL, params, PROMPTS, max_new_tokens=NEW, seeds=range(len(PROMPTS)))
    leaves = jax.tree.leaves(state)
    advance(tiny.MODEL, params, state, GREEDY.numbers, stop_ids=(), num_tokens=NEW)
    assert all(leaf.is_deleted() for leaf in leaves)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_near_the_context_few_numbers_of_new_tokens_are_compiled(params):
    sampling = SamplingConfig(max_new_tokens=200, temperature=0)
    assert [few_lengths(n, sampling) for n in (1, 64, 65, 128, 129, 200)] == [64, 64, 128, 128, 192, 200]
    prompts = [tiny.tokens(n).tolist() for n in (40, 41, 45)]  # of one padded length
    found = [generate(tiny.MODEL, params, prompts[:1], sampling)]
    compiled = advance._cache_size()
    found += [generate(tiny.MODEL, params, [prompt], sampling) for prompt in prompts[1:]]
    assert advance._cache_size() == compiled
    assert [one.lengths_B.tolist() for one in found] == [[24], [23], [19]]  # the context is 64
    streamed = [list(stream(tiny.MODEL, params, prompts[0], sampling))]
    compiled = advance._cache_size()
    streamed += [list(stream(tiny.MODEL, params, prompt, sampling)) for prompt in prompts[1:]]
    assert advance._cache_size() == compiled
    assert [one.tokens_BC[0, : one.lengths_B[0]].tolist() for one in found] == streamed


def test_temperatures_and_thresholds_share_one_compiled_loop(params):
    settings = [SamplingConfig(NEW, temperature, top_p) for temperature, top_p in ((0.5, 0.9), (1.3, 0.2))]
    found = [generate(tiny.MODEL, params, PROMPTS, settings[0]).tokens_BC]
    compiled = advance._cache_size()
    found.append(generate(tiny.MODEL, params, PROMPTS, settings[1]).tokens_BC)
    assert advance._cache_size() == compiled
    assert (found[0] != found[1]).any()
