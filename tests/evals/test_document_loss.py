import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.evals.document_loss import Window, document_nats, position_edges, sums_by_position, windows
from llama2_jax.generate.decode import PromptError
from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer, init_params

CONFIG = model_config("nano", vocab_size=40, max_context=16, init_stddev=0.3)
MODEL = Transformer(CONFIG)
PARAMS = init_params(MODEL, jax.random.key(0))


def test_windows_by_hand() -> None:
    assert windows(5, window=8) == [Window(0, 5, 1)]
    assert windows(8, window=8) == [Window(0, 8, 1)]
    assert windows(9, window=8) == [Window(0, 8, 1), Window(1, 9, 8)]
    assert windows(14, window=8) == [Window(0, 8, 1), Window(4, 12, 8), Window(6, 14, 12)]
    assert windows(8, window=3) == [Window(0, 3, 1), Window(2, 5, 3), Window(4, 7, 5), Window(5, 8, 7)]


@pytest.mark.parametrize("window", [2, 3, 8, 9])
@pytest.mark.parametrize("length", [2, 3, 8, 9, 31, 32, 33])
def test_every_token_is_counted_once_after_enough_others(window: int, length: int) -> None:
    seen = {}
    for start, stop, counted in windows(length, window=window):
        assert stop - start <= window
        for token in range(counted, stop):
            assert token not in seen
            seen[token] = token - start
    assert sorted(seen) == list(range(1, length))
    for token, before in seen.items():
        assert before == token if token < window else window // 2 <= before < window


def test_losses_are_those_of_a_loop_over_single_tokens() -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 40, length) for length in (2, 7, 16, 37)]
    apply = jax.jit(lambda tokens: MODEL.apply({"params": PARAMS}, tokens).logits_BTV)
    for window in (8, 16):
        found = document_nats(MODEL, PARAMS, documents, window=window, batch_size=3)
        for tokens, nats in zip(documents, found, strict=True):
            assert len(nats) == len(tokens) - 1
            for token in range(1, len(tokens)):
                # the window that ends at the first multiple of its half (16: 8) where the token is inside
                stop = window
                while stop <= token:
                    stop += window // 2
                stop = min(stop, len(tokens))
                start = max(stop - window, 0)
                row = np.zeros((1, 16), np.int64)
                row[0, : token - start] = tokens[start:token]
                logits = np.asarray(apply(jnp.asarray(row)))[0, token - start - 1].astype(np.float64)
                expected = np.log(np.exp(logits).sum()) - logits[tokens[token]]
                assert nats[token - 1] == pytest.approx(expected, abs=2e-5)


def test_sums_by_position_are_a_loop_over_tokens() -> None:
    edges = position_edges(11, 4)
    assert edges == [0, 2, 5, 8, 11]
    nats = np.random.default_rng(0).random(14)
    expected = [0.0] * 4
    for token in range(1, 11):  # with so many tokens before it
        part = next(part for part in range(4) if token < edges[part + 1])
        expected[part] += nats[token - 1]
    assert sums_by_position(nats, edges) == pytest.approx(expected)
    assert sums_by_position(nats[:10], edges) == pytest.approx(expected)
    assert sums_by_position(nats[:9], edges) is None


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="held-out document 1 has 1 token"):
        document_nats(MODEL, PARAMS, [np.array([1, 2]), np.array([1])], window=8, batch_size=2)
    with pytest.raises(ConfigError, match="a window of 1 token"):
        windows(3, window=1)
    with pytest.raises(PromptError, match="the model's context is 16"):
        document_nats(MODEL, PARAMS, [np.ones(20, int)], window=17, batch_size=2)
