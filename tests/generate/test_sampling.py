import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.generate.sampling import SamplingConfig, keep_top, likeliest, row_keys, sample
from tests.model import numpy_llama


def reference_distribution(logits, *, temperature, top_p=1.0, top_k=0):
    """What the reference code draws from (GEN-4, GEN-5), in float64, in vocabulary order."""
    order = np.argsort(-np.asarray(logits, np.float64), kind="stable")
    probs = numpy_llama.softmax(np.asarray(logits, np.float64)[order] / temperature)
    if top_k:
        probs[top_k:] = 0
        probs /= probs.sum()
    cumulative = 0.0
    kept = np.zeros_like(probs)
    for i, p in enumerate(probs):
        cumulative += p
        kept[i] = 0.0 if cumulative - p > top_p else p
    out = np.zeros_like(kept)
    out[order] = kept / kept.sum()
    return out


@pytest.mark.parametrize(
    ("probs", "top_p", "kept"),
    [
        ([0.5, 0.3, 0.15, 0.05], 0.0, 1),
        ([0.5, 0.3, 0.15, 0.05], 0.4, 1),  # the first token crosses at once
        ([0.5, 0.3, 0.15, 0.05], 0.6, 2),  # the second crosses 0.6 and is kept
        ([0.5, 0.3, 0.15, 0.05], 0.81, 3),
        ([0.5, 0.3, 0.15, 0.05], 0.96, 4),
        ([0.5, 0.3, 0.15, 0.05], 1.0, 4),
        ([0.5, 0.25, 0.125, 0.125], 0.5, 2),  # likelier than the second: 0.5, not more than 0.5
        ([0.25, 0.25, 0.25, 0.25], 0.1, 4),  # of equals none is likelier
        ([0.5, 0.2, 0.15, 0.15], 0.75, 4),
        ([0.5, 0.2, 0.15, 0.15], 0.65, 2),
        ([0.97, 0.01, 0.01, 0.01], 0.9, 1),
    ],
)
def test_nucleus_keeps_the_token_that_crosses(probs, top_p, kept):
    found = keep_top(jnp.log(jnp.asarray([probs])), top_p=top_p)
    np.testing.assert_array_equal(np.isfinite(found)[0], np.arange(4) < kept)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_of_16_bits_lose_the_same_and_keep_their_dtype(dtype):
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]], dtype))
    for found, kept in ((keep_top(logits, top_p=0.6), 2), (keep_top(logits, top_k=3), 3)):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[0, :kept], logits[0, :kept])
        assert (found[0, kept:] == -np.inf).all()


def test_nucleus_of_certain_tokens_keeps_the_top_one():
    for logits in ([100.0, -100.0, -100.0], [0.0, -np.inf, -np.inf]):
        assert np.isfinite(keep_top(jnp.asarray([logits]), top_p=0.0))[0].tolist() == [True, False, False]


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (0.999, 0), (0.3, 0), (1.0, 40), (0.95, 500)])
def test_large_vocabularies_keep_what_sorting_would_keep(top_p, top_k):
    logits = 3 * np.random.default_rng(1).standard_normal((4, 32_000)).astype(np.float32)
    found = np.isfinite(keep_top(jnp.asarray(logits), top_p=top_p, top_k=top_k or None))
    for row, kept in zip(logits, found, strict=True):
        wanted = reference_distribution(row, temperature=1.0, top_p=top_p, top_k=top_k) > 0
        # sums of tens of thousands of float32 numbers: at the threshold one or two may differ
        assert (kept != wanted).sum() <= (0 if top_p == 1 else 2)
        assert row[kept].min() > row[~kept].max()


def test_top_k_is_applied_before_the_nucleus():
    found = keep_top(jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]])), top_p=0.6, top_k=2)
    # renormalised to 4/7, 3/7: before the second 0.571 <= 0.6
    assert np.isfinite(found)[0].tolist() == [True, True, False, False]
    found = keep_top(jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]])), top_p=0.5, top_k=2)
    assert np.isfinite(found)[0].tolist() == [True, False, False, False]


LOGITS = np.array([0.3, -1.0, 2.0, 1.7, -0.2, 0.9, -3.0, 1.0], np.float32)
DRAWS = 2000
CASES = {
    "plain": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "cold": {"temperature": 0.5, "top_p": 1.0, "top_k": 0},
    "hot": {"temperature": 2.0, "top_p": 1.0, "top_k": 0},
    "top_k": {"temperature": 1.0, "top_p": 1.0, "top_k": 3},
    "nucleus": {"temperature": 1.0, "top_p": 0.7, "top_k": 0},
    "defaults": {"temperature": 0.6, "top_p": 0.9, "top_k": 0},
    "all": {"temperature": 1.5, "top_p": 0.8, "top_k": 5},
}


def draw(case, index=3):
    batch = jnp.broadcast_to(jnp.asarray(LOGITS), (DRAWS, len(LOGITS)))
    keys = row_keys(jnp.arange(DRAWS, dtype=jnp.uint32), jnp.asarray(index))
    return [np.asarray(x) for x in jax.jit(sample)(batch, keys, SamplingConfig(**CASES[case]).numbers)]


@pytest.mark.parametrize("case", CASES)
def test_frequencies_follow_the_distribution(case):
    wanted = reference_distribution(LOGITS, **CASES[case])
    tokens, _, _ = draw(case)
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert (counts[wanted == 0] == 0).all()
    support = wanted > 0
    expected = DRAWS * wanted[support]
    chi_square = ((counts[support] - expected) ** 2 / expected).sum()
    assert chi_square < 30, (counts, expected)  # 7 degrees of freedom: p < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_raw_logprobs_are_of_the_logits_and_sample_logprobs_of_what_is_drawn_from(case):
    tokens, raw, drawn = draw(case)
    np.testing.assert_allclose(raw, numpy_llama.log_softmax(LOGITS)[tokens], atol=1e-5)
    np.testing.assert_allclose(
        drawn, np.log(reference_distribution(LOGITS, **CASES[case])[tokens]), atol=1e-5
    )


def test_temperature_0_is_argmax_whatever_the_seed():
    logits = np.random.default_rng(0).standard_normal((50, 9)).astype(np.float32)
    keys = row_keys(jnp.arange(50, dtype=jnp.uint32), jnp.asarray(0))
    tokens, raw, drawn = sample(logits, keys, SamplingConfig(temperature=0.0, top_p=0.1, top_k=3).numbers)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(raw, numpy_llama.log_softmax(logits).max(axis=-1), atol=1e-5)
    assert (np.asarray(drawn) == 0).all()


def test_the_likeliest_is_the_first_of_the_highest():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 5, (64, 300)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.3] = -np.inf
    logits[3] = -np.inf
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits)), logits.argmax(axis=-1))


@pytest.mark.parametrize("changes", [{"top_p": 0.0}, {"top_p": 1.0, "top_k": 1}])
def test_one_candidate_is_greedy(changes):
    logits = np.random.default_rng(0).standard_normal((50, 9)).astype(np.float32)
    keys = row_keys(jnp.arange(50, dtype=jnp.uint32), jnp.asarray(0))
    tokens, _, drawn = sample(logits, keys, SamplingConfig(temperature=5.0, **changes).numbers)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(drawn, 0, atol=1e-6)


@pytest.mark.parametrize("changes", [{"top_p": 0.0}, {"top_p": 1.0, "top_k": 1}])
def test_of_equally_likely_tokens_one_candidate_is_the_first(changes):
    logits = jnp.asarray(np.tile([1.0, 2.0, 2.0, 0.0], (40, 1)), jnp.float32)
    keys = row_keys(jnp.arange(40, dtype=jnp.uint32), jnp.asarray(0))
    tokens, _, drawn = sample(logits, keys, SamplingConfig(temperature=1.0, **changes).numbers)
    assert set(tokens.tolist()) == {1}
    assert (np.asarray(drawn) == 0).all()


def test_a_row_draws_by_its_own_seed_whatever_generator_is_the_default():
    numbers = SamplingConfig(temperature=1.0, top_p=1.0).numbers

    def tokens(*seeds):
        logits_BV = jnp.zeros((len(seeds), 4096))
        return sample(logits_BV, row_keys(jnp.array(seeds, jnp.uint32), 0), numbers)[0].tolist()

    wanted = tokens(5, 6)
    with jax.default_prng_impl("rbg"):  # as JAX_DEFAULT_PRNG_IMPL may say
        assert tokens(5, 6) == wanted
        assert [*tokens(5), *tokens(6)] == wanted


def test_draws_of_one_row_at_successive_tokens_are_independent():
    # the share of equal neighbours is the collision probability of the distribution
    first, second = draw("plain", index=0)[0], draw("plain", index=1)[0]
    wanted = (reference_distribution(LOGITS, temperature=1.0) ** 2).sum()
    assert abs((first == second).mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / DRAWS)


def test_more_than_the_vocabulary_in_top_k_keeps_all():
    assert np.isfinite(keep_top(jnp.zeros((1, 4)), top_k=99)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": 1e-38}, "temperature = 1e-38 must be 0, which is greedy, or at least 1e-06"),
        ({"top_p": 1.1}, "top_p = 1.1"),
        ({"top_p": -0.1}, "top_p = -0.1"),
        ({"top_k": -1}, "top_k = -1"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        SamplingConfig(**changes)
