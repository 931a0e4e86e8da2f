import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.model.heads import ScoreModel, last_token_scores, score_params_from_chat, token_scores
from llama2_jax.model.transformer import init_params
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import place_tree
from llama2_jax.sharding.rules import make_partitioner
from tests.model import numpy_llama, tiny

ROWS = [tiny.tokens(n, seed=n).tolist() for n in (5, 1, 9, 12)]
MODEL = ScoreModel(tiny.CONFIG)


@functools.cache
def params():
    return score_params_from_chat(tiny.params(), key=jax.random.key(7))


def padded(rows, length, padding=0):
    tokens = np.full((len(rows), length), padding, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(ids) for ids in rows], np.int32)


def scores_by_hand(row):
    return numpy_llama.token_scores(params(), row, tiny.CONFIG)


def test_every_token_has_the_score_of_the_numpy_decoder():
    tokens, lengths = padded(ROWS, 12)
    found = token_scores(MODEL, params(), tokens, lengths)
    assert found.dtype == jnp.float32
    for row, ids in enumerate(ROWS):
        np.testing.assert_allclose(found[row, : len(ids)], scores_by_hand(ids), rtol=1e-4, atol=1e-5)


def test_the_score_of_a_row_is_that_of_its_last_token():
    tokens, lengths = padded(ROWS, 12)
    wanted = [scores_by_hand(ids)[-1] for ids in ROWS]
    np.testing.assert_allclose(last_token_scores(MODEL, params(), tokens, lengths), wanted, rtol=1e-4)


@pytest.mark.parametrize("padding", [0, -1, 2, 55])
def test_padding_changes_nothing_whatever_its_ids(padding):
    rows = [[*ids, 2] for ids in ROWS]  # they end with EOS, whose id may be the padding too
    wanted = last_token_scores(MODEL, params(), *padded(rows, 13))
    found = last_token_scores(MODEL, params(), *padded(rows, 52, padding))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_tokens_after_the_end_get_no_gradient_and_give_none():
    tokens, lengths = padded(ROWS, 16, padding=3)
    garbage = tokens.copy()
    garbage[np.arange(16) >= lengths[:, None]] = 11

    def total(params, tokens):
        return (last_token_scores(MODEL, params, tokens, lengths) ** 2).sum()

    gradient = jax.jit(jax.grad(total))
    tiny.assert_trees_close(gradient(params(), tokens), gradient(params(), garbage), rtol=0, atol=0)


def test_an_empty_row_scores_zero():
    tokens, lengths = padded([[], [4, 5]], 4)
    assert last_token_scores(MODEL, params(), tokens, lengths)[0] == 0


@pytest.mark.parametrize("tied", [False, True])
def test_the_body_is_the_chat_model_without_its_unembedding(tied):
    chat = tiny.with_config(tie_embeddings=tied)
    chat_params = init_params(chat, jax.random.key(0))
    found = score_params_from_chat(chat_params, key=jax.random.key(1))
    assert "unembedding_DV" not in found["body"]
    assert found["body"]["embedding_VD"] is chat_params["embedding_VD"]
    fresh = init_params(ScoreModel(chat.config), jax.random.key(0))
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, fresh)


def test_the_new_head_is_zero_or_has_variance_one_over_d_plus_one():
    body = {"final_norm": {"scale_D": np.ones(4095, np.float32)}}
    zero = score_params_from_chat(body, key=None)["w_score_D"]
    assert zero.dtype == jnp.float32
    assert not zero.any()
    drawn = np.asarray(score_params_from_chat(body, key=jax.random.key(0))["w_score_D"])
    assert drawn.std() == pytest.approx(1 / 64, rel=0.05)
    assert abs(drawn.mean()) < 4 / 64**2
    other = score_params_from_chat(body, key=jax.random.key(1))["w_score_D"]
    assert not np.array_equal(drawn, other)


def test_scores_are_float32_under_bfloat16_compute():
    model = ScoreModel(tiny.with_config(compute_dtype="bfloat16").config)
    tokens, lengths = padded(ROWS, 12)
    found = last_token_scores(model, params(), tokens, lengths)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [scores_by_hand(ids)[-1] for ids in ROWS], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(preset="fsdp", data=2, fsdp=4),
        MeshConfig(preset="fsdp_tensor", fsdp=2, tensor=2, sequence=2),
    ],
    ids=["fsdp", "fsdp_tensor_sequence"],
)
def test_eight_devices_score_as_one_does(mesh):
    part = make_partitioner(mesh)
    tokens, lengths = padded(ROWS * 2, 12)
    placed = place_tree(part, params())
    assert len(placed["w_score_D"].addressable_shards[0].data) == tiny.CONFIG.model_width // mesh.fsdp

    def scores(params, tokens, lengths):
        return last_token_scores(ScoreModel(tiny.CONFIG, part), params, tokens, lengths)

    found = jax.jit(scores)(placed, tokens, lengths)
    wanted = last_token_scores(MODEL, params(), tokens, lengths)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_token_does_not_see_later_ones():
    tokens, lengths = padded([ROWS[3]], 12)

    def score_at_4(embedding):
        changed = params() | {"body": params()["body"] | {"embedding_VD": embedding}}
        return token_scores(MODEL, changed, tokens, lengths)[0, 4]

    gradient = jax.grad(score_at_4)(jnp.asarray(params()["body"]["embedding_VD"]))
    seen = set(ROWS[3][:5])
    for token in range(tiny.CONFIG.vocab_size):
        assert bool(np.any(gradient[token])) == (token in seen)


def test_wrong_ranks_are_refused():
    tokens, lengths = padded(ROWS, 12)
    with pytest.raises(ValueError, match="lengths_B has shape"):
        last_token_scores(MODEL, params(), tokens, lengths[:, None])
