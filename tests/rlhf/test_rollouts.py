import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.generate.decode import PromptError
from llama2_jax.generate.sampler import make_sampler
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.rlhf import doctor
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.rollouts import (
    check_context,
    check_prompt_lengths,
    draw_prompts,
    draw_seeds,
    map_rows,
    response_logprobs,
    response_mask,
    response_tokens,
    response_values,
    row_lengths,
    sample_rollout,
)
from llama2_jax.sharding.rules import single_device
from llama2_jax.structs import Rollout
from tests.model import numpy_llama, tiny

CONFIG = PPOConfig(prompt_length=8, response_length=6, batch_size=4, mini_batch_size=2, temperature=0.7)
PROMPTS = [tiny.tokens(n, seed=30 + n).tolist() for n in (8, 1, 5, 3)]
SEEDS = [1, 2, 3, 4]
LOGPROBS = jax.jit(functools.partial(response_logprobs, tiny.MODEL), static_argnames="temperature")


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, tiny.params())


@pytest.fixture(scope="module")
def free(params):
    """Answers that nothing ends."""
    return sample(params, ())


def sample(params, stop_ids, config=CONFIG):
    sampler = make_sampler(tiny.MODEL, single_device())
    return sample_rollout(
        sampler.model, sampler.weights(params), PROMPTS, config, stop_ids=stop_ids, seeds=SEEDS
    )


def logprobs(params, rollout, temperature=CONFIG.temperature):
    return np.asarray(LOGPROBS(params, rollout, temperature=temperature))


def stops(free):
    """The third token of row 0 and the first of row 2: they end early, there or before."""
    tokens = np.asarray(response_tokens(free))
    return int(tokens[0, 2]), int(tokens[2, 0])


def test_the_response_follows_its_prompt_and_shapes_depend_on_the_config_alone(free):
    assert free.tokens_BT.shape == (4, 14)
    assert free.response_lengths_B.tolist() == [6] * 4
    for row, prompt in enumerate(PROMPTS):
        assert free.tokens_BT[row, : len(prompt)].tolist() == prompt
        assert not free.tokens_BT[row, len(prompt) + 6 :].any()
    assert response_mask(free).all()


def test_answers_made_in_parts_are_the_same(params, free):
    stop_ids = stops(free)
    whole = sample(params, stop_ids)
    in_parts = sample(params, stop_ids, dataclasses.replace(CONFIG, sample_batch_size=2))
    for name in whole._fields:
        found, wanted = getattr(in_parts, name), getattr(whole, name)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 if "logprobs" in name else 0)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logprobs_are_of_the_sampled_tokens_at_the_temperature(params, temperature):
    rollout = sample(params, (), dataclasses.replace(CONFIG, temperature=temperature))
    found = logprobs(params, rollout, temperature)
    np.testing.assert_allclose(found, rollout.sampler_logprobs_BC, atol=2e-5)
    for row, prompt in enumerate(PROMPTS):  # an independent forward pass; logit t scores token t + 1
        ids = rollout.tokens_BT[row, : len(prompt) + 6].tolist()
        logits, _ = numpy_llama.forward(tiny.params(), ids, tiny.CONFIG)
        scaled = logits[len(prompt) - 1 : -1] / temperature
        wanted = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
        chosen = np.take_along_axis(wanted, np.array(ids[len(prompt) :])[:, None], axis=-1)[:, 0]
        np.testing.assert_allclose(found[row], chosen, atol=5e-5)


def test_rows_as_short_as_their_longest_answer_have_finite_gradients(params):
    """The first row's prompt and the second's answer: together they would be longer than both."""
    long_prompt, long_answer = tiny.tokens(8, seed=1), tiny.tokens(8, seed=2)
    rollout = Rollout(
        tokens_BT=np.stack([long_prompt, long_answer]),
        prompt_lengths_B=np.array([6, 1], np.int32),
        response_lengths_B=np.array([2, 7], np.int32),
        stopped_B=np.array([True, True]),
        sampler_logprobs_BC=np.zeros((2, 7), np.float32),
    )
    padded = rollout._replace(tokens_BT=np.pad(rollout.tokens_BT, ((0, 0), (0, 6))))

    def loss(params, rollout):
        logprobs_BC = response_logprobs(tiny.MODEL, params, rollout, temperature=1.0)
        return jnp.where(response_mask(rollout), logprobs_BC, 0.0).sum()

    gradient = jax.jit(jax.value_and_grad(loss))
    found, wanted = (gradient(params, one) for one in (rollout, padded))
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5)
    tiny.assert_trees_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)


def test_the_stop_token_counts_and_what_follows_does_not(params, free):
    rollout = sample(params, stops(free))
    tokens = np.asarray(response_tokens(rollout))
    assert rollout.stopped_B[0]
    assert rollout.stopped_B[2]
    for row, length in enumerate(rollout.response_lengths_B):
        assert np.asarray(response_mask(rollout))[row].sum() == length
        np.testing.assert_array_equal(tokens[row, :length], np.asarray(response_tokens(free))[row, :length])
        if rollout.stopped_B[row]:
            assert tokens[row, length - 1] in stops(free)
    assert rollout.response_lengths_B[2] == 1


@pytest.mark.parametrize("padding", [0, -1, 2, 55])
def test_padding_may_be_any_id_even_that_of_the_stop_token(params, free, padding):
    rollout = sample(params, stops(free))
    at = np.arange(14) >= np.asarray(row_lengths(rollout))[:, None]
    assert at.any()
    padding = stops(free)[0] if padding == 2 else padding
    other = rollout._replace(tokens_BT=np.where(at, padding, rollout.tokens_BT))
    mask = np.asarray(response_mask(rollout))
    np.testing.assert_array_equal(logprobs(params, other)[mask], logprobs(params, rollout)[mask])
    assert np.array_equal(np.asarray(response_mask(other)), mask)


def test_four_times_the_padding_changes_nothing(params, free):
    rollout = sample(params, stops(free))
    wide = rollout._replace(
        tokens_BT=np.pad(rollout.tokens_BT, [(0, 0), (0, 42)], constant_values=9),
        sampler_logprobs_BC=np.pad(rollout.sampler_logprobs_BC, [(0, 0), (0, 18)]),
    )
    mask = np.asarray(response_mask(rollout))
    np.testing.assert_allclose(
        logprobs(params, wide)[:, :6][mask], logprobs(params, rollout)[mask], atol=1e-5
    )
    assert np.asarray(response_mask(wide)).sum() == mask.sum()


def test_one_row_alone_has_the_logprobs_it_has_among_others(params, free):
    together = logprobs(params, free)
    for row in range(4):
        alone = Rollout(*(leaf[row : row + 1] for leaf in free))
        np.testing.assert_allclose(logprobs(params, alone)[0], together[row], atol=1e-5)


def test_values_are_read_before_each_token_and_after_the_last(params, free):
    rollout = sample(params, stops(free))
    model = ScoreModel(tiny.CONFIG)
    value_params = score_params_from_chat(params, key=jax.random.key(1))
    found = jax.jit(functools.partial(response_values, model))(value_params, rollout)
    apply = jax.jit(functools.partial(model.apply, {"params": value_params}))
    for row, prompt in enumerate(PROMPTS):
        length = int(rollout.response_lengths_B[row])
        ids = rollout.tokens_BT[row : row + 1, : len(prompt) + length]
        scores = np.asarray(apply(ids))[0]
        np.testing.assert_allclose(found.values_BC[row, :length], scores[len(prompt) - 1 : -1], atol=1e-5)
        np.testing.assert_allclose(found.final_values_B[row], scores[-1], atol=1e-5)


def test_a_new_value_model_says_zero(params, free):
    value_params = score_params_from_chat(params, key=None)
    found = response_values(ScoreModel(tiny.CONFIG), value_params, free)
    assert not np.asarray(found.values_BC).any()


def test_rows_in_parts_are_the_same_rows_in_the_same_order(params, free):
    function = functools.partial(LOGPROBS, params, temperature=0.7)
    np.testing.assert_allclose(map_rows(function, free, parts=2), function(free), atol=1e-5)


def test_the_sampler_is_the_policy_and_a_stale_copy_is_noticed(params):
    sampler = make_sampler(tiny.MODEL, single_device())
    weights = sampler.weights(params)
    changed = {**params, "embedding_VD": params["embedding_VD"].at[3, 4].add(1e-6)}
    assert doctor.checksum(weights) == doctor.checksum(sampler.weights(params))
    assert doctor.checksum(weights) != doctor.checksum(sampler.weights(changed))


def test_every_prompt_once_per_pass_in_orders_of_their_own():
    drawn = [i for k in range(6) for i in draw_prompts(9, batch_size=6, seed=3, iteration=k)]
    passes = [drawn[i : i + 9] for i in range(0, 36, 9)]
    assert all(sorted(one) == list(range(9)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert draw_prompts(9, batch_size=6, seed=3, iteration=2) == drawn[12:18]  # whatever came before


def test_seeds_differ_between_iterations_and_rows_and_runs():
    seeds = [tuple(draw_seeds(8, seed=s, iteration=k)) for s in (0, 1) for k in (0, 1)]
    assert len({seed for row in seeds for seed in row}) == 32
    assert tuple(draw_seeds(8, seed=1, iteration=1)) == seeds[3]


def test_two_answers_to_one_prompt_differ(params):
    sampler = make_sampler(tiny.MODEL, single_device())
    rollout = sample_rollout(
        sampler.model, sampler.weights(params), [PROMPTS[0]] * 4, CONFIG, stop_ids=(), seeds=SEEDS
    )
    assert len({tuple(row) for row in np.asarray(response_tokens(rollout)).tolist()}) == 4


def test_long_prompts_and_rows_are_refused(params):
    with pytest.raises(PromptError, match=r"prompt b has 9 tokens, ppo.prompt_length is 8"):
        check_prompt_lengths([[1], [1] * 9], CONFIG, ["a", "b"])
    with pytest.raises(PromptError, match=r"prompt 1 has 9 tokens, ppo.prompt_length is 8"):
        sample_rollout(tiny.MODEL, params, [[1], [1] * 9], CONFIG, stop_ids=(), seeds=[0, 1])
    with pytest.raises(ConfigError, match=r"= 14 is beyond the context 13 of the reward model"):
        check_context(13, CONFIG, what="reward model")
    check_context(14, CONFIG, what="reward model")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperature": 0.0}, "temperature = 0.0 must be positive"),
        ({"kl_coef": 0.0}, "kl_coef = 0.0 must be positive"),
        ({"kl_coef": -0.1}, "kl_coef = -0.1 must be positive"),
        ({"kl_estimator": "k3"}, "k3 in the reward: its gradient .* vanishes at the reference"),
        ({"kl_estimator": "k2"}, "k2 in the reward: .* as a loss it is"),
        ({"kl_placement": "loss"}, "k1 in the loss: its gradient is zero in expectation"),
        ({"kl_placement": "loss", "kl_estimator": "k3"}, "the other direction"),
        ({"batch_size": 10, "mini_batch_size": 4}, "batch_size = 10 is not divisible by .* = 4"),
        ({"accumulation_steps": 3}, "mini_batch_size = 2 is not divisible by .* = 3"),
        ({"forward_batch_size": 3}, "batch_size = 4 is not divisible by .* = 3"),
        ({"batch_size": 1, "mini_batch_size": 1}, "no deviation to whiten with"),
        ({"missing_eos": "drop"}, "'none', 'penalty', 'replace'"),
        ({"gae_lambda": 1.5}, r"gae_lambda = 1.5 must be in \[0, 1\]"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(CONFIG, **changes)


def test_k2_in_the_loss_is_offered_and_the_paper_has_eight_updates():
    dataclasses.replace(CONFIG, kl_placement="loss", kl_estimator="k2")
    assert PPOConfig(prompt_length=1, response_length=1).num_updates == 8


def test_answers_are_drawn_from_the_whole_vocabulary():
    assert (CONFIG.sampling.top_p, CONFIG.sampling.top_k) == (1, 0)


def test_passes_without_gradient_take_the_answers_they_are_given():
    assert CONFIG.forward_parts == 1
    assert dataclasses.replace(CONFIG, forward_batch_size=2).forward_parts == 2
