import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.branches import Bundle, lay_out
from llama2_jax.kernels import reference
from llama2_jax.losses.ppo import entropy
from llama2_jax.model.cache import empty_cache
from llama2_jax.model.transformer import (
    UNROLLED_LAYERS,
    Transformer,
    abstract_params,
    attention_probabilities,
)
from llama2_jax.structs import TokenBatch
from llama2_jax.train.step import loss_sums
from tests.model import numpy_llama, tiny


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, segments=None, positions=None):
    return model.apply({"params": params}, tokens, segment_ids_BT=segments, positions_BT=positions).logits_BTV


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(model, params, batch):
    return jax.value_and_grad(lambda p: loss_sums(model, p, batch).loss_sum)(params)


def batch_logits(batch: TokenBatch):
    return np.asarray(
        logits(tiny.MODEL, tiny.params(), batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 1},
        {"num_kv_heads": 4},
        {"num_kv_heads": 1, "head_dim": 6, "rope_base": 500_000.0, "norm_epsilon": 1e-2},
        {"tie_embeddings": True},
    ],
    ids=["gqa", "one_block", "mha", "mqa_other_head_dim", "tied"],
)
def test_logits_equal_a_numpy_float64_implementation(changes):
    model = tiny.with_config(**changes)
    params = tiny.params(model.config)
    tokens = tiny.tokens(2, 11)
    found = logits(model, params, tokens)
    wanted = np.stack([numpy_llama.forward(params, row, model.config)[0] for row in tokens])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=5e-5)


def test_spare_rows_get_no_probability_and_no_gradient():
    plain, spared = (tiny.with_config(tokenizer_size=size) for size in (0, 40))
    params, tokens = tiny.params(), tiny.tokens(2, 11) % 40

    def entropy_of(model, params):
        return entropy(logits(model, params, tokens)).sum()

    cut = np.asarray(logits(plain, params, tokens))[..., :40]
    found = jax.nn.log_softmax(logits(spared, params, tokens))
    np.testing.assert_allclose(found[..., :40], jax.nn.log_softmax(cut), rtol=1e-5, atol=1e-5)
    assert (np.exp(found[..., 40:]) == 0).all()
    total, grads = jax.value_and_grad(entropy_of, argnums=1)(spared, params)
    assert float(total) == pytest.approx(float(entropy(cut).sum()), rel=1e-5)
    assert (grads["unembedding_DV"][:, 40:] == 0).all()
    assert np.isfinite(grads["unembedding_DV"]).all()
    assert np.abs(grads["unembedding_DV"][:, :40]).max() > 0


def test_tied_model_has_no_unembedding():
    assert "unembedding_DV" not in tiny.params(tiny.with_config(tie_embeddings=True).config)


def test_gqa_equals_mha_with_repeat_interleaved_keys_and_values():
    grouped, tokens = tiny.params(), tiny.tokens(2, 9)
    full = jax.tree.map(np.copy, grouped)
    for name in ("w_k_DKH", "w_v_DKH"):
        full["layers"]["attention"][name] = np.repeat(grouped["layers"]["attention"][name], 2, axis=2)
    found = logits(tiny.with_config(num_kv_heads=4), full, tokens)
    np.testing.assert_allclose(found, logits(tiny.MODEL, grouped, tokens), rtol=1e-5, atol=1e-5)


def test_the_logits_of_a_token_depend_on_it_and_earlier_ones_only():
    embedded = tiny.params()["embedding_VD"]
    length = 6

    # every position looks up its own row of the table, so d logits / d row is d logits / d input
    def summed(table):
        params = {**tiny.params(), "embedding_VD": table}
        return tiny.MODEL.apply({"params": params}, jnp.arange(length)[None]).logits_BTV[0].sum(axis=-1)

    jacobian = np.abs(np.asarray(jax.jit(jax.jacrev(summed))(embedded))).max(axis=-1)[:, :length]
    for t in range(length):
        assert (jacobian[t, : t + 1] > 1e-4).all()
        assert (jacobian[t, t + 1 :] == 0).all()


def test_padding_and_its_garbage_change_nothing():
    document = tiny.tokens(7).tolist()
    alone = batch_logits(tiny.pack([[document]], 7))
    params = tiny.params()
    for garbage in (0, -1, 55, 10**6):
        padded = tiny.pack([[document]], 12, padding=garbage)
        found = batch_logits(padded)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, :7], alone, rtol=1e-5, atol=1e-5)
    loss, grads = loss_and_grads(tiny.MODEL, params, tiny.pack([[document], [], [document]], 16))
    for garbage in (-1, 10**6):
        padded = tiny.pack([[document], [], [document]], 16, padding=garbage)
        found_loss, found = loss_and_grads(tiny.MODEL, params, padded)
        np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
        tiny.assert_trees_close(found, grads, atol=1e-5)


def test_a_row_of_padding_only_has_finite_logits_and_no_gradient():
    empty = tiny.pack([[], [], []], 16, padding=-1)
    assert np.isfinite(batch_logits(empty)).all()
    loss, grads = loss_and_grads(tiny.MODEL, tiny.params(), empty)
    assert loss == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))


def test_packed_documents_equal_each_alone_in_logits_loss_and_gradients():
    a, b, c = (tiny.tokens(n, seed=n).tolist() for n in (5, 7, 4))
    packed, apart = tiny.pack([[a, b], [c], []], 16), tiny.pack([[a], [b], [c]], 16)
    found, wanted = batch_logits(packed), batch_logits(apart)
    np.testing.assert_allclose(found[0, :5], wanted[0, :5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0, 5:12], wanted[1, :7], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found[0, 5:12], numpy_llama.forward(tiny.params(), b, tiny.CONFIG)[0], atol=1e-4
    )
    found_loss, found_grads = loss_and_grads(tiny.MODEL, tiny.params(), packed)
    wanted_loss, wanted_grads = loss_and_grads(tiny.MODEL, tiny.params(), apart)
    by_hand = -sum(numpy_llama.next_logprobs(tiny.params(), d, tiny.CONFIG).sum() for d in (a, b, c))
    np.testing.assert_allclose([found_loss, wanted_loss], by_hand, rtol=1e-5)
    tiny.assert_trees_close(found_grads, wanted_grads, rtol=1e-4, atol=1e-5)


def branched():
    """A prompt with two answers in a row, behind another document; the same as two rows and the document."""
    prompt, other = (tiny.tokens(n, seed=n).tolist() for n in (6, 4))
    texts = [prompt + tiny.tokens(n, seed=n).tolist() for n in (3, 5)]
    row, _ = lay_out([Bundle((other,), 0), Bundle(tuple(texts), len(prompt))], 20)
    return row, [other, *texts]


def test_a_prompt_is_computed_once_for_several_answers():
    row, (other, first, second) = branched()

    def one_row(params):
        row_B = jax.tree.map(lambda array: array[None], row)
        return tiny.MODEL.apply(
            {"params": params}, row_B.tokens_T, segment_ids_BT=row_B.segment_ids_T,
            positions_BT=row_B.positions_T, prefix_ids_BT=row_B.prefix_ids_T,
        ).logits_BTV[0]  # fmt: skip

    def apart(params):
        logits_of = [logits(tiny.MODEL, params, np.array([text]))[0] for text in (other, first, second)]
        return jnp.concatenate([logits_of[0], logits_of[1], logits_of[2][6:]])

    # the gradients of the prompt come from its own outputs and from those of both answers
    weights = np.random.default_rng(0).standard_normal((18, 56)).astype(np.float32)
    found, found_grads = jax.value_and_grad(lambda p: (one_row(p)[:18] * weights).sum())(tiny.params())
    wanted, wanted_grads = jax.value_and_grad(lambda p: (apart(p) * weights).sum())(tiny.params())
    np.testing.assert_allclose(one_row(tiny.params())[:18], apart(tiny.params()), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    tiny.assert_trees_close(found_grads, wanted_grads, rtol=1e-4, atol=1e-4)
    by_hand = numpy_llama.forward(tiny.params(), second, tiny.CONFIG)[0]
    np.testing.assert_allclose(one_row(tiny.params())[13:18], by_hand[6:], atol=1e-4)


def test_prefixes_need_positions_and_no_cache():
    row, _ = branched()
    ids = row.segment_ids_T[None], row.prefix_ids_T[None]
    with pytest.raises(ConfigError, match="prefix_ids_BT needs positions_BT"):
        tiny.MODEL.apply(
            {"params": tiny.params()}, row.tokens_T[None], segment_ids_BT=ids[0], prefix_ids_BT=ids[1]
        )


def test_a_shifted_document_is_the_same_document_and_an_unsegmented_row_is_not():
    a, b = tiny.tokens(5, seed=5).tolist(), tiny.tokens(7, seed=7).tolist()
    packed = tiny.pack([[a, b]], 12)
    shifted = packed._replace(positions_BT=np.arange(12, dtype=np.int32)[None])
    np.testing.assert_allclose(
        batch_logits(shifted), batch_logits(packed), rtol=1e-3, atol=1e-4
    )  # RoPE is relative
    joined = packed._replace(segment_ids_BT=np.ones((1, 12), np.int32), positions_BT=shifted.positions_BT)
    assert np.abs(batch_logits(joined) - batch_logits(packed))[0, 5:].max() > 0.1


def test_remat_policies_change_neither_loss_nor_gradients():
    batch = tiny.pack([[tiny.tokens(7).tolist(), tiny.tokens(4, seed=1).tolist()], [], []], 16)
    loss, grads = loss_and_grads(tiny.MODEL, tiny.params(), batch)
    for policy in ("full", "dots", "attention"):
        found_loss, found = loss_and_grads(tiny.with_config(remat_policy=policy), tiny.params(), batch)
        np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
        tiny.assert_trees_close(found, grads, atol=1e-5)


@pytest.mark.parametrize(("length", "padded"), [(12, 12), (300, 320)])  # the loop keeps whole tiles
def test_remat_policies_keep_what_they_promise(length, padded):
    batch = tiny.pack([[tiny.tokens(length).tolist()]], length)

    def saved(policy):
        model = tiny.with_config(remat_policy=policy)
        out = jax.eval_shape(
            lambda p: jax.vjp(lambda q: loss_sums(model, q, batch).loss_sum, p)[1], tiny.params()
        )
        return sum(leaf.size for leaf in jax.tree.leaves(out))

    sizes = {policy: saved(policy) for policy in ("none", "full", "dots", "attention")}
    assert sizes["full"] < sizes["attention"] < sizes["dots"] < sizes["none"], sizes
    # "attention" keeps the output (L, B, T, N, H) and the log-sum-exp (L, B, T, N) more than "full"
    assert sizes["attention"] - sizes["full"] == 2 * 1 * padded * 4 * (8 + 1), sizes


@pytest.mark.parametrize(
    ("changes", "loops"),
    [({}, False), ({"remat_policy": "full"}, True), ({"num_layers": UNROLLED_LAYERS + 1}, True)],
)
def test_the_loop_over_layers_stays_where_it_is_needed(changes, loops):
    model = tiny.with_config(**changes)
    params, tokens = abstract_params(model.config), tiny.tokens(12)
    assert ("while" in logits.lower(model, params, tokens[None]).as_text()) == loops


def test_bfloat16_compute_stays_close_and_gives_float32_logits():
    tokens = tiny.tokens(2, 16)
    exact = np.asarray(logits(tiny.MODEL, tiny.params(), tokens))
    found = logits(tiny.with_config(compute_dtype="bfloat16"), tiny.params(), tokens)
    assert found.dtype == jnp.float32
    error = np.abs(np.asarray(found) - exact)
    assert 1e-4 < error.mean() < 0.03 * exact.std(), (error.mean(), exact.std())
    batch = tiny.pack([[[1, 2, 3]]], 4)
    grads = jax.eval_shape(
        functools.partial(loss_and_grads, tiny.with_config(compute_dtype="bfloat16")), tiny.params(), batch
    )[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}  # master weights


@pytest.mark.parametrize("policy", ["none", "full"])
def test_attention_probabilities_equal_numpy(policy):
    tokens = tiny.tokens(2, 9)
    found = np.asarray(attention_probabilities(tiny.with_config(remat_policy=policy), tiny.params(), tokens))
    assert found.shape == (2, 2, 4, 9, 9)  # L, B, N, T, S
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
    wanted = np.stack([numpy_llama.forward(tiny.params(), row, tiny.CONFIG)[1] for row in tokens], axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_attention_probabilities_of_padding_are_zero():
    batch = tiny.pack([[[1, 2, 3]]], 5)
    found = attention_probabilities(
        tiny.MODEL,
        tiny.params(),
        batch.tokens_BT,
        segment_ids_BT=batch.segment_ids_BT,
        positions_BT=batch.positions_BT,
    )
    assert (np.asarray(found)[..., 3:, :] == 0).all()
    assert (np.asarray(found)[..., 3:] == 0).all()


def test_bfloat16_attention_has_a_float32_softmax():
    generator = np.random.default_rng(0)
    q, k = (jnp.asarray(generator.standard_normal((1, 6, 4, 8)), jnp.bfloat16) for _ in range(2))
    probs = reference.attention_probs(q, k, jnp.ones((1, 6, 6), bool))
    assert probs.dtype == jnp.float32
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-6)


def test_the_mask_goes_by_segment_and_position_not_by_slot():
    mask = reference.attention_mask(
        query_segment_ids_BT=np.array([[1, 2, 0]]),
        query_positions_BT=np.array([[1, 0, 0]]),
        key_segment_ids_BS=np.array([[2, 1, 1, 1, 0]]),
        key_positions_BS=np.array([[0, 2, 1, 0, 0]]),
    )
    wanted = [[[False, False, True, True, False], [True, False, False, False, False], [False] * 5]]
    np.testing.assert_array_equal(mask, wanted)


def test_the_mask_of_an_answer_has_its_prompt():
    ids, positions = np.array([[1, 1, 2, 3, 3]]), np.array([[0, 1, 2, 2, 3]])
    mask = reference.attention_mask(
        query_segment_ids_BT=ids, query_positions_BT=positions, key_segment_ids_BS=ids,
        key_positions_BS=positions, query_prefix_ids_BT=np.array([[0, 0, 1, 1, 1]]),
    )  # fmt: skip
    wanted = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    np.testing.assert_array_equal(mask[0], np.array(wanted, bool))


def test_cached_decoding_equals_the_full_forward_in_chunks_of_any_length():
    tokens = tiny.tokens(2, 12)
    full = logits(tiny.MODEL, tiny.params(), tokens)

    def step(cache, part, at):
        positions = np.broadcast_to(at + np.arange(part.shape[1], dtype=np.int32), part.shape)
        return apply(tiny.params(), part, positions, cache)

    @jax.jit
    def apply(params, part, positions, cache):
        return tiny.MODEL.apply({"params": params}, part, positions_BT=positions, cache=cache)

    cache, at, found = empty_cache(tiny.CONFIG, batch_size=2, num_slots=15), 0, []
    for length in (5, 3, 1, 1, 2):
        out = step(cache, tokens[:, at : at + length], at)
        cache, at = out.cache, at + length
        found.append(out.logits_BTV)
    np.testing.assert_allclose(np.concatenate(found, axis=1), full, rtol=1e-5, atol=1e-5)
    assert int(cache.index) == 12


def test_the_cache_is_kept_in_the_compute_dtype_and_holds_rotated_keys():
    model = Transformer(tiny.CONFIG)
    tokens = tiny.tokens(1, 4)
    cache = empty_cache(tiny.CONFIG, batch_size=1, num_slots=6)
    out = model.apply({"params": tiny.params()}, tokens, cache=cache, is_prompt=True)
    weights = numpy_llama.layer_weights(tiny.params(), 0)
    x = tiny.params()["embedding_VD"][tokens[0]].astype(np.float64)
    normed = numpy_llama.rms_norm(x, weights["attention_norm"]["scale_D"], 1e-5)
    for t in range(4):
        for head in range(2):
            wanted = numpy_llama.rotate(normed[t] @ weights["attention"]["w_k_DKH"][:, head], t, 10_000.0)
            np.testing.assert_allclose(out.cache.k_LBKSH[0, 0, head, t], wanted, atol=1e-5)
    assert (np.asarray(out.cache.k_LBKSH[:, :, :, 4:]) == 0).all()
    bfloat16 = tiny.with_config(compute_dtype="bfloat16").config
    assert empty_cache(bfloat16, batch_size=1, num_slots=2).v_LBKSH.dtype == jnp.bfloat16


def test_more_tokens_than_the_cache_has_slots_for_are_refused():
    cache = empty_cache(tiny.CONFIG, batch_size=1, num_slots=8)

    def read(cache, length, **kwargs):
        at = {"positions_BT": int(cache.index) + jnp.arange(length)[None], "cache": cache}
        return tiny.MODEL.apply({"params": tiny.params()}, tiny.tokens(1, length), **at, **kwargs).cache

    with pytest.raises(
        ValueError, match="the cache has 8 slots, 0 of them used, and 9 new tokens do not fit"
    ):
        read(cache, 9)
    with pytest.raises(
        ValueError, match="the cache has 8 slots, 5 of them used, and 4 new tokens do not fit"
    ):
        read(read(cache, 5), 4)
    with pytest.raises(ValueError, match="a prompt needs an empty cache, this one holds 5 tokens"):
        read(read(cache, 5), 3, is_prompt=True)


def test_tokens_after_others_need_their_positions():
    cache = empty_cache(tiny.CONFIG, batch_size=1, num_slots=8)
    with pytest.raises(ValueError, match="positions_BT is missing: tokens after those in the cache"):
        tiny.MODEL.apply({"params": tiny.params()}, tiny.tokens(1, 5), cache=cache)


def test_inside_jit_tokens_beyond_the_cache_give_nan_and_no_wrong_logits():
    cache = empty_cache(tiny.CONFIG, batch_size=1, num_slots=8)

    @jax.jit
    def read(params, cache, tokens):
        positions = cache.index + jnp.arange(tokens.shape[1])[None]
        return tiny.MODEL.apply({"params": params}, tokens, positions_BT=positions, cache=cache)

    first = read(tiny.params(), cache, tiny.tokens(1, 5))
    assert np.isfinite(first.logits_BTV).all()
    for more, is_finite in ((3, True), (4, False)):
        logits = read(tiny.params(), first.cache, tiny.tokens(1, more)).logits_BTV
        assert (np.isfinite(logits) == is_finite).all()


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_hessian_products_forward_over_reverse_are_those_of_reverse_over_reverse(impl):
    model, params = tiny.with_config(attention_impl=impl), jax.tree.map(jnp.asarray, tiny.params())
    batch = tiny.pack([[tiny.tokens(9, seed=1).tolist(), tiny.tokens(7, seed=2).tolist()]], 16)
    along = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), params
    )
    gradient = jax.grad(lambda p: loss_sums(model, p, batch).loss_sum)
    forward = jax.jit(lambda p: jax.jvp(gradient, (p,), (along,))[1])(params)
    reverse = jax.jit(jax.grad(lambda p: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient(p), along)))))(
        params
    )
    tiny.assert_gradients_close(forward, reverse, 1e-4)
