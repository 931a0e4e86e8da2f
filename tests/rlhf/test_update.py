import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.rlhf import doctor
from llama2_jax.rlhf.doctor import DoctorError
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.ppo_iteration import PromptBatch, Scores, Stopwatch, _means
from llama2_jax.rlhf.rollouts import draw_seeds, response_logprobs, response_mask, response_values
from llama2_jax.rlhf.update import make_experience, policy_loss, value_loss
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import place_tree
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Experience, ResponseValues, Rollout
from llama2_jax.train.optimizer import ScheduleState, with_num_steps
from tests.model.tiny import assert_trees_close
from tests.rlhf import tiny_ppo
from tests.train.tiny_run import assert_bitwise_equal

# Closed form: the best policy under KL-regularised reward is pi* ~ p0 exp(R / beta).
P0, REWARDS = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 0, 0.5, 1.0])
BEST = {1.0: (0.30732, 0.23049, 0.25334, 0.20885), 0.5: (0.20176, 0.15132, 0.27422, 0.37270)}
ONE_TOKEN = dataclasses.replace(
    tiny_ppo.MODEL, vocab_size=4, model_width=16, num_layers=1, feed_forward_width=16
)
SMALL = PPOConfig(prompt_length=4, response_length=6, batch_size=16, mini_batch_size=4)


def one_token_policy():
    """Parameters that answer [0] with the probabilities P0."""
    model = Transformer(ONE_TOKEN)
    params = init_params(model, jax.random.key(0))
    hidden, _ = model.apply({"params": params}, jnp.zeros((1, 1), jnp.int32), method="hidden")
    hidden = hidden[0, 0]
    return {**params, "unembedding_DV": jnp.outer(hidden / (hidden @ hidden), jnp.log(P0))}


def probabilities(params):
    logits = Transformer(ONE_TOKEN).apply({"params": params}, jnp.zeros((1, 1), jnp.int32)).logits_BTV
    return np.asarray(jax.nn.softmax(logits[0, 0]))


@pytest.mark.parametrize(
    ("beta", "placement", "estimator"),
    [(1.0, "reward", "k1"), (0.5, "reward", "k1"), (0.5, "loss", "k2")],
)
def test_one_token_answers_reach_the_closed_form(beta, placement, estimator):
    size, iterations = 256, 30
    ppo = PPOConfig(
        prompt_length=1, response_length=1, batch_size=size, mini_batch_size=size // 8, kl_coef=beta,
        whitening="none", kl_placement=placement, kl_estimator=estimator,
    )  # fmt: skip
    learner, state = tiny_ppo.make_learner(
        ppo, model=ONE_TOKEN, params=one_token_policy(), learning_rate=3e-3, num_iterations=iterations,
        schedule="cosine", final_fraction=0.01, weight_decay=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(probabilities(state.policy.params), P0, atol=1e-6)
    score = tiny_ppo.rule(lambda tokens_BC, mask_BC: REWARDS[tokens_BC[:, 0]])
    for iteration in range(iterations):
        seeds = draw_seeds(size, seed=0, iteration=iteration)
        batch = PromptBatch(["0"] * size, [[0]] * size, np.zeros(size, bool), seeds)
        state = learner.iterate(state, batch, score).state
    np.testing.assert_allclose(probabilities(state.policy.params), BEST[beta], atol=0.02)


def test_emit_token_7():
    model = dataclasses.replace(
        tiny_ppo.MODEL, model_width=64, num_heads=4, num_kv_heads=4, feed_forward_width=128
    )
    ppo = PPOConfig(prompt_length=4, response_length=8, batch_size=64, mini_batch_size=8, kl_coef=0.01)
    learner, state = tiny_ppo.make_learner(ppo, model=model, learning_rate=3e-3)
    scores = []
    for iteration in range(20):
        batch = tiny_ppo.prompt_batch(64, iteration=iteration)
        state, _, metrics = learner.iterate(state, batch, tiny_ppo.rule(tiny_ppo.share_of_sevens))
        scores.append(metrics["ppo/score"])
        assert metrics["ppo/reward_kl"] == pytest.approx(-0.01 * metrics["ppo/kl_per_answer"], abs=1e-6)
        if scores[-1] > 0.6:
            break
    assert scores[0] < 0.1
    assert scores[-1] > 0.6


@pytest.fixture(scope="module")
def small():
    """One learner, compiled once."""
    # with so large an epsilon an update is a smooth function of the gradient
    return tiny_ppo.make_learner(SMALL, epsilon=1.0, stop_ids=tuple(range(6)))[0]


@pytest.fixture(scope="module")
def small_result(small):
    return next(iterate(small, tiny_ppo.start(small), 1))


@pytest.fixture(scope="module")
def first_iterations():
    """Three iterations at a temperature of 0.7, with answers that end."""
    ppo = dataclasses.replace(SMALL, temperature=0.7)
    learner, state = tiny_ppo.make_learner(ppo, learning_rate=1e-2, stop_ids=tuple(range(6)))
    return learner, list(iterate(learner, state, 3))


def iterate(learner, state, count):
    for iteration in range(count):
        batch = tiny_ppo.prompt_batch(16, iteration=iteration)
        result = learner.iterate(state, batch, tiny_ppo.rule(tiny_ppo.share_of_sevens))
        state = result.state
        yield result


def assert_nothing_is_apart(metrics):
    assert metrics["kl_largest"] == metrics["kl_per_answer"] == metrics["reward_kl"] == 0
    assert metrics["sampler_ratio_error"] < 1e-5


def test_before_the_first_update_the_divergence_is_zero_at_any_temperature(first_iterations, small_result):
    for result in (first_iterations[1][0], small_result):  # 0.7 and 1.0; 1.3 is below
        metrics = result.metrics
        assert_nothing_is_apart({name.removeprefix("ppo/"): value for name, value in metrics.items()})
        assert metrics["ppo/entropy"] > 1


def test_iterations_learn_and_count(first_iterations):
    _, results = first_iterations
    assert [result.state.iteration for result in results] == [1, 2, 3]
    assert int(results[-1].state.policy.step) == int(results[-1].state.value.step) == 3 * 4
    assert results[1].metrics["ppo/kl_k3_per_token"] > 1e-4  # the policy moved, the reference did not
    assert 0 < results[0].metrics["ppo/stopped_fraction"] < 1
    assert results[0].metrics["ppo/clip_fraction"] > 0  # later mini-batches are off-policy: ratio is not 1
    tokens = [np.asarray(result.sampled.rollout.tokens_BT).tolist() for result in results]
    assert tokens[0] != tokens[1]


def schedule(state):
    """Updates so far, and those of the whole run, as its schedule knows them."""

    def is_schedule(leaf):
        return isinstance(leaf, ScheduleState)

    (found,) = filter(is_schedule, jax.tree.leaves(state.opt_state, is_leaf=is_schedule))
    return int(found.count), int(found.num_steps)


def test_schedules_count_updates_and_not_iterations(first_iterations):
    learner, results = first_iterations
    state = results[-1].state
    assert schedule(state.policy) == schedule(state.value) == (3 * 4, 100 * 4)
    shorter = [  # the states of a run of 7 updates
        each._replace(opt_state=with_num_steps(each.opt_state, tiny_ppo.optimizer(1e-2), num_steps=7))
        for each in (state.policy, state.value)
    ]
    assert schedule(shorter[0]) == (3 * 4, 7)
    stored = [tree for each in shorter for tree in (each.params, each.opt_state)]
    restored = learner.restored_state(3, *stored)
    assert schedule(restored.policy) == schedule(restored.value) == (3 * 4, 100 * 4)
    assert int(restored.policy.step) == int(restored.value.step) == 3 * 4


def test_metrics_are_means_over_tokens_and_not_over_mini_batches():
    learned = {
        "entropy": np.array([2.0, 0.0]), "grad_norm": np.array([1.0, 3.0]), "tokens": np.array([1.0, 8.0])
    }  # fmt: skip
    assert _means(learned) == {"entropy": pytest.approx(2 / 9), "grad_norm": 2.0}


def test_the_reference_survives_and_does_not_move(first_iterations):
    learner, _ = first_iterations
    fresh = init_params(Transformer(tiny_ppo.MODEL, learner.partitioner), jax.random.key(0))
    assert doctor.checksum(fresh) == learner.reference_checksum
    learner._check_reference()
    for leaf in jax.tree.leaves(learner._reference):
        assert not leaf.is_deleted()


def test_every_phase_is_timed(first_iterations):
    metrics = first_iterations[1][0].metrics
    phases = {name for name in metrics if name.startswith("secs/")}
    assert {"secs/generate", "secs/reference", "secs/value", "secs/update_policy", "secs/iteration"} <= phases
    total = sum(metrics[name] for name in phases) - metrics["secs/iteration"]
    assert total < metrics["secs/iteration"]
    assert metrics["rate/generated_tokens_per_sec"] > 0


def test_the_same_state_and_prompts_give_the_same_bits(small):
    runs = [list(iterate(small, tiny_ppo.start(small), 2))[-1].state for _ in range(2)]
    assert_bitwise_equal(*runs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_stops_before_any_update(small, bad):
    learner, state = small, tiny_ppo.start(small)
    before = doctor.checksum((state.policy.params, state.value.params))

    def score(rollout, batch, stopwatch):
        scores_B = np.where(np.arange(16) == 5, bad, 0.0)
        return Scores(scores_B, {"safety": scores_B})

    with pytest.raises(DoctorError, match="safety: 1 of 16 scores are not finite.*prompt '5'"):
        learner.iterate(state, tiny_ppo.prompt_batch(16, iteration=0), score)
    assert doctor.checksum((state.policy.params, state.value.params)) == before


def test_a_policy_that_is_not_the_reference_is_noticed(small):
    learner, state = small, tiny_ppo.start(small)
    other = {**state.policy.params, "embedding_VD": 1.01 * state.policy.params["embedding_VD"]}
    state = state._replace(policy=state.policy._replace(params=other))
    with pytest.raises(DoctorError, match="policy and reference differ"):
        list(iterate(learner, state, 1))


def test_behaviour_logprobs_of_another_model_are_noticed(small, monkeypatch):
    learner, state = small, tiny_ppo.start(small)
    logprobs = learner._logprobs
    monkeypatch.setattr(learner, "_logprobs", lambda params, rollout: logprobs(params, rollout) + 2e-3)
    with pytest.raises(DoctorError, match="tokens of the first mini-batch have a ratio"):
        list(iterate(learner, state, 1))


def test_a_sampler_at_another_temperature_is_noticed(monkeypatch):
    model = dataclasses.replace(tiny_ppo.MODEL, init_stddev=0.5)
    learner, state = tiny_ppo.make_learner(dataclasses.replace(SMALL, temperature=1.3), model=model)
    batch, stopwatch = tiny_ppo.prompt_batch(16, iteration=0), Stopwatch()
    score = tiny_ppo.rule(tiny_ppo.share_of_sevens)
    sampled = learner.sample(state.policy.params, batch, score, stopwatch)
    assert_nothing_is_apart(learner._judge(state, sampled, stopwatch)[1])
    logprobs = learner._logprobs
    monkeypatch.setattr(learner, "_logprobs", lambda params, rollout: 0.7 * logprobs(params, rollout))
    with pytest.raises(DoctorError, match="sampler and trainer differ"):
        learner._judge(state, sampled, stopwatch)


def test_a_stale_sampler_is_noticed(small, monkeypatch):
    learner, state = small, tiny_ppo.start(small)
    stale = learner._sampler.weights(state.policy.params)
    (result,) = iterate(learner, state, 1)
    monkeypatch.setattr(learner, "_sampler", learner._sampler._replace(weights=lambda params: stale))
    with pytest.raises(DoctorError, match="checksum of the sampler's weights"):
        list(iterate(learner, result.state, 1))


def rollout_of(lengths, *, length=5, stopped=None):
    rows = len(lengths)
    draw = np.random.default_rng(0)
    return Rollout(
        draw.integers(3, 60, (rows, 4 + length)).astype(np.int32),
        np.full(rows, 4, np.int32),
        np.array(lengths, np.int32),
        np.ones(rows, bool) if stopped is None else np.array(stopped),
        np.zeros((rows, length), np.float32),
    )


def widened(rollout):
    """With 20 instead of 5 slots for the answer."""
    return rollout._replace(
        tokens_BT=np.pad(rollout.tokens_BT, [(0, 0), (0, 27)], constant_values=2),
        sampler_logprobs_BC=widened_array(rollout.sampler_logprobs_BC),
    )


def widened_array(array_BC):
    return np.pad(array_BC, [(0, 0), (0, 15)], constant_values=99)


def experience_of(rollout, scores, *, config=SMALL, values=None, poison=False, wide=False):
    shape = rollout.sampler_logprobs_BC.shape
    draw = np.random.default_rng(1)
    arrays = [draw.normal(size=shape).astype(np.float32) for _ in range(3)]
    if values is not None:
        arrays[2] = np.full(shape, values, np.float32)
    if poison:
        mask = np.arange(shape[1]) < rollout.response_lengths_B[:, None]
        arrays = [np.where(mask, array, np.nan) for array in arrays]
        rollout = rollout._replace(sampler_logprobs_BC=np.where(mask, rollout.sampler_logprobs_BC, np.nan))
    if wide:
        rollout, arrays = widened(rollout), [widened_array(array) for array in arrays]
    final = ResponseValues(arrays[2], np.full(shape[0], 0.5, np.float32))
    return make_experience(rollout, np.array(scores), arrays[0], arrays[1], final, config=config)


SCORES = [0.7, -1.0, 2.5, 0.2]


IN_LOSS = dataclasses.replace(SMALL, kl_placement="loss", kl_estimator="k2")


@pytest.fixture(scope="module")
def params():
    """Of a policy and of a value model."""
    policy = init_params(Transformer(tiny_ppo.MODEL), jax.random.key(0))
    return policy, score_params_from_chat(policy, key=jax.random.key(1))


@pytest.fixture(scope="module")
def losses(params):
    """Both losses of an experience, ``((total, (policy, value)), gradients)``."""
    loss = policy_loss(Transformer(tiny_ppo.MODEL), IN_LOSS)
    loss_of_values = value_loss(ScoreModel(tiny_ppo.MODEL), IN_LOSS)

    def total(params, experience):
        one, two = loss(params[0], experience), loss_of_values(params[1], experience)
        return one.loss_sum + two.loss_sum, (one, two)

    return functools.partial(jax.jit(jax.value_and_grad(total, has_aux=True)), params)


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5)])
def test_returns_are_of_the_configured_discount_and_lambda(discount, gae_lambda):
    config = dataclasses.replace(SMALL, whitening="none", discount=discount, gae_lambda=gae_lambda)
    zeros, values = np.zeros((1, 2), np.float32), np.array([[0.3, 0.7]], np.float32)
    found, _ = make_experience(
        rollout_of([2], length=2),
        np.ones(1),
        zeros,
        zeros,
        ResponseValues(values, np.zeros(1)),
        config=config,
    )
    last = 1 - 0.7
    first = discount * 0.7 - 0.3 + discount * gae_lambda * last
    np.testing.assert_allclose(found.returns_BC, [[first + 0.3, 1]], rtol=1e-6)


@pytest.mark.parametrize(("clip", "value_clip", "coef"), [(0.2, 0.2, 0.1), (0.4, 0.5, 0.3)])
def test_losses_are_clipped_and_weighted_as_configured(params, clip, value_clip, coef):
    """Every ratio is 1.5 with an advantage of 1; every value is half-way to its return, 2 away."""
    config = dataclasses.replace(SMALL, clip_range=clip, value_clip_range=value_clip, value_coef=coef)
    rollout, (policy, value) = rollout_of([5, 2]), params
    model, value_model = Transformer(tiny_ppo.MODEL), ScoreModel(tiny_ppo.MODEL)
    behaviour_BC = response_logprobs(model, policy, rollout, temperature=config.temperature) - np.log(1.5)
    values_BC = response_values(value_model, value, rollout).values_BC
    batch = Experience(
        rollout, behaviour_BC, behaviour_BC, np.ones((2, 5), np.float32), values_BC - 1, values_BC + 1
    )
    assert policy_loss(model, config)(policy, batch).loss_sum == pytest.approx(-7 * (1 + clip), rel=1e-4)
    wanted = coef * 7 * 0.5 * (2 - value_clip) ** 2
    assert value_loss(value_model, config)(value, batch).loss_sum == pytest.approx(wanted, rel=1e-4)


def test_nan_in_masked_slots_changes_nothing(losses):
    rollout = rollout_of([5, 2, 1, 3])
    clean, metrics = experience_of(rollout, SCORES)
    dirty, dirty_metrics = experience_of(rollout, SCORES, poison=True)
    assert_bitwise_equal(dirty_metrics, metrics)
    assert_bitwise_equal(losses(dirty), losses(clean))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(losses(dirty)))


def test_what_follows_the_answer_changes_nothing(losses):
    rollout = rollout_of([5, 2, 1, 3])
    after = np.arange(9) >= 4 + rollout.response_lengths_B[:, None]
    other = rollout._replace(tokens_BT=np.where(after, 2, rollout.tokens_BT))
    found, wanted = (losses(experience_of(r, SCORES)[0]) for r in (other, rollout))
    assert_bitwise_equal(found, wanted)


def test_four_times_the_padding_changes_nothing(losses):
    rollout = rollout_of([5, 2, 1, 3])
    experience, _ = experience_of(rollout, SCORES)
    arrays = {name: getattr(experience, name) for name in experience._fields if name.endswith("_BC")}
    wide = experience._replace(
        rollout=widened(rollout), **{name: widened_array(array) for name, array in arrays.items()}
    )
    assert_trees_close(losses(wide), losses(experience), rtol=1e-4, atol=1e-5)


def test_advantages_are_whitened_over_the_answers_alone():
    rollout = rollout_of([5, 2, 1, 3])
    experience, metrics = experience_of(rollout, SCORES)
    advantages = np.asarray(experience.advantages_BC)[np.asarray(response_mask(rollout))]
    assert advantages.mean() == pytest.approx(0, abs=1e-6)
    assert advantages.var() == pytest.approx(1, abs=1e-5)
    wide, wide_metrics = experience_of(rollout, SCORES, wide=True)
    for name in ("advantages_BC", "returns_BC"):
        found = getattr(wide, name)[:, :5]
        np.testing.assert_allclose(found, getattr(experience, name), rtol=1e-5, atol=1e-6)
    assert_trees_close(wide_metrics, metrics, rtol=1e-5, atol=1e-6)


def test_an_answer_without_tokens_changes_no_other():
    rollout = rollout_of([5, 2, 1, 3, 0])
    (low, metrics), (high, other) = (experience_of(rollout, [*SCORES, score]) for score in (0.0, 100.0))
    assert metrics["sigma"] == other["sigma"] == pytest.approx(np.std(SCORES), rel=1e-6)
    np.testing.assert_array_equal(low.advantages_BC, high.advantages_BC)
    np.testing.assert_array_equal(low.returns_BC, high.returns_BC)
    assert not np.asarray(low.advantages_BC)[4].any()
    assert np.asarray(low.advantages_BC)[np.asarray(response_mask(rollout))].mean() == pytest.approx(
        0, abs=1e-6
    )


def test_values_are_clipped_around_the_old_ones_and_move_to_the_returns(params, losses):
    rollout = rollout_of([5, 2, 1, 3])  # 11 tokens
    experience, _ = experience_of(rollout, SCORES)
    values = jax.jit(functools.partial(response_values, ScoreModel(tiny_ppo.MODEL)))
    now = np.asarray(values(params[1], rollout).values_BC)

    def loss(old, returns):
        return float(losses(experience._replace(values_BC=old, returns_BC=returns))[0][1][1].loss_sum)

    assert loss(now, now) == pytest.approx(0, abs=1e-9)
    # each token: 1/2 max(2^2, 1.2^2), as clipping lifts the value to old - 0.2 = now + 0.8
    assert loss(now + 1, now + 2) == pytest.approx(0.1 * 2.0 * 11, rel=1e-5)


def test_a_score_is_not_truncated_and_lands_on_the_last_token():
    config = dataclasses.replace(SMALL, whitening="none", kl_coef=1e-9)
    experience, metrics = experience_of(rollout_of([3, 5]), [0.7, -0.3], config=config, values=0.0)
    assert metrics["reward_score"] == pytest.approx(0.2)
    assert metrics["beta_sigma"] == pytest.approx(1e-9)  # scores are raw already
    np.testing.assert_allclose(experience.returns_BC[0], [0.7 * 0.95**2, 0.7 * 0.95, 0.7, 0, 0], atol=1e-6)


def test_penalised_divergence_is_the_reported_one():
    _, metrics = experience_of(rollout_of([5, 2, 1, 3]), SCORES)
    assert metrics["reward_kl"] == pytest.approx(-SMALL.kl_coef * float(metrics["kl_per_answer"]), rel=1e-6)
    sigma = np.std(SCORES)
    assert metrics["sigma"] == pytest.approx(sigma, rel=1e-6)
    assert metrics["beta_sigma"] == pytest.approx(SMALL.kl_coef * sigma, rel=1e-6)


@pytest.mark.parametrize("behaviour", [-0.5, 0.5])
def test_the_largest_divergence_may_be_of_either_sign(behaviour):
    zeros_BC = np.zeros((2, 5), np.float32)
    values = ResponseValues(zeros_BC, np.zeros(2, np.float32))
    scores = np.array([0.0, 1.0])
    _, metrics = make_experience(
        rollout_of([2, 1]), scores, zeros_BC + behaviour, zeros_BC, values, config=SMALL
    )
    assert metrics["kl_largest"] == 0.5


def test_a_divergence_in_the_loss_is_not_in_the_reward():
    (low, metrics), (high, _) = (
        experience_of(rollout_of([5, 2, 1, 3]), SCORES, config=dataclasses.replace(IN_LOSS, kl_coef=beta))
        for beta in (0.01, 5.0)
    )
    assert metrics["reward_kl"] == 0 != metrics["kl_per_answer"]
    np.testing.assert_array_equal(low.returns_BC, high.returns_BC)


def test_long_prompts_add_nothing_to_the_divergence():
    rollout = rollout_of([5, 2, 1, 3])
    longer = rollout._replace(
        tokens_BT=np.pad(rollout.tokens_BT, [(0, 0), (20, 0)]), prompt_lengths_B=rollout.prompt_lengths_B + 20
    )
    found, wanted = (experience_of(r, SCORES)[1]["kl_per_answer"] for r in (longer, rollout))
    assert float(found) == float(wanted)


def test_a_constant_reward_model_gives_no_reward_with_shift_and_its_own_without():
    for whitening, wanted in (("shift_and_scale", 0.0), ("scale", 0.7), ("none", 0.7)):
        config = dataclasses.replace(SMALL, whitening=whitening)
        _, metrics = experience_of(rollout_of([5, 2, 1, 3]), [0.7] * 4, config=config)
        assert metrics["reward_score"] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("truncation", "wanted"), [("terminal", [0.7, 0.7]), ("bootstrap", [0.7, 1.2])])
def test_answers_that_were_cut_off(truncation, wanted):
    config = dataclasses.replace(SMALL, whitening="none", truncation=truncation, kl_coef=1e-9)
    rollout = rollout_of([5, 5], stopped=[True, False])
    experience, metrics = experience_of(rollout, [0.7, 0.7], config=config, values=0.0)
    np.testing.assert_allclose(experience.returns_BC[:, -1], wanted, rtol=1e-6)
    assert metrics["stopped_fraction"] == 0.5


def test_missing_end_is_penalised_after_whitening():
    config = dataclasses.replace(SMALL, missing_eos="replace", missing_eos_value=-3.0)
    rollout = rollout_of([5, 5], stopped=[True, False])
    _, metrics = experience_of(rollout, [2.0, 100.0], config=config)
    assert metrics["reward_score"] == pytest.approx((-1 - 3) / 2)


def trained(result):
    return jax.device_get((result.state.policy.params, result.state.value.params))


def test_an_iteration_in_bfloat16_with_remat_and_in_parts_passes_every_check(monkeypatch):
    model = dataclasses.replace(
        tiny_ppo.MODEL, num_layers=1, init_stddev=0.5, compute_dtype="bfloat16", remat_policy="full"
    )
    learner, state = tiny_ppo.make_learner(dataclasses.replace(SMALL, forward_batch_size=4), model=model)
    # no check looks at the update of the value model, and it takes as long to compile as the policy's
    monkeypatch.setattr(learner, "_value_epoch", lambda state, _: (state, {"tokens": np.ones(1)}))
    metrics = next(iterate(learner, state, 1)).metrics
    assert metrics["ppo/kl_largest"] == 0
    assert metrics["ppo/sampler_probability_error"] < 0.005


def test_accumulation_changes_nothing(small_result):
    config = dataclasses.replace(SMALL, accumulation_steps=2)
    learner, state = tiny_ppo.make_learner(config, epsilon=1.0, stop_ids=tuple(range(6)))
    result = next(iterate(learner, state, 1))
    assert_trees_close(trained(result), trained(small_result), rtol=1e-5, atol=1e-6)


def test_an_iteration_on_four_devices_equals_one_device(small_result):
    config = MeshConfig("fsdp", data=2, fsdp=2)
    partitioner = Partitioner(make_mesh(config, jax.devices()[:4]), config.preset)
    sampler_partitioner = Partitioner(make_mesh(MeshConfig("fsdp", data=4, fsdp=1), jax.devices()[:4]))
    params = place_tree(partitioner, init_params(Transformer(tiny_ppo.MODEL), jax.random.key(0)))
    learner, state = tiny_ppo.make_learner(
        SMALL, params=params, partitioner=partitioner, sampler_partitioner=sampler_partitioner, epsilon=1.0,
        stop_ids=tuple(range(6)),
    )  # fmt: skip
    weights = learner._sampler.weights(state.policy.params)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(weights))
    assert not state.policy.params["embedding_VD"].sharding.is_fully_replicated
    four = next(iterate(learner, state, 1))
    np.testing.assert_array_equal(small_result.sampled.rollout.tokens_BT, four.sampled.rollout.tokens_BT)
    assert_trees_close(trained(four), trained(small_result), rtol=1e-5, atol=1e-6)
    for name in ("ppo/sigma", "ppo/kl_per_answer", "ppo/returns", "ppo/loss"):
        assert four.metrics[name] == pytest.approx(small_result.metrics[name], rel=1e-4, abs=1e-6)
