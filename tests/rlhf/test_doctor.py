import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.rlhf import doctor
from llama2_jax.rlhf.doctor import DoctorError
from tests.model import tiny


def test_scores_that_are_no_numbers_name_model_and_prompt():
    doctor.check_scores("safety", np.zeros(3), "abc")
    for shape in ((2,), (3, 1), ()):
        with pytest.raises(doctor.DoctorError, match="have shape .*, there are 3 answers"):
            doctor.check_scores("safety", np.zeros(shape), "abc")
    for bad in (np.nan, np.inf):
        with pytest.raises(DoctorError, match=r"safety: 2 of 3 scores are not finite.*prompt 'b'"):
            doctor.check_scores("safety", np.array([0, bad, bad]), ["a", "b", "c"])


@pytest.mark.parametrize("bad", [2e-6, float("nan")])
def test_start(bad):
    doctor.check_start(0.0)
    with pytest.raises(DoctorError, match="policy and reference differ"):
        doctor.check_start(bad)


def test_first_mini_batch():
    doctor.check_first_mini_batch(0, tolerance=1e-5)
    with pytest.raises(DoctorError, match="3 tokens of the first mini-batch have a ratio"):
        doctor.check_first_mini_batch(3, tolerance=1e-5)


def test_checksums():
    doctor.check_reference(5, 5)
    doctor.check_sampler_weights(5, 5)
    with pytest.raises(DoctorError, match=r"reference policy is 00000006, it was 00000005"):
        doctor.check_reference(6, 5)
    with pytest.raises(DoctorError, match=r"sampler's weights is 00000006, the policy's is 00000005"):
        doctor.check_sampler_weights(6, 5)


@pytest.mark.parametrize("bad", [0.011, float("nan")])
def test_sampler_logprobs(bad):
    doctor.check_sampler_logprobs(0.009)
    with pytest.raises(DoctorError, match=r"allowed is 0.01"):
        doctor.check_sampler_logprobs(bad)


@pytest.mark.parametrize(
    ("reward", "guard", "stops"),
    [(1.5, -0.2, False), (1.5, -0.9, True), (0.5, -0.9, False), (1.5, 3.0, False)],
)
def test_guard(reward, guard, stops):
    def check():
        doctor.check_guard(reward=reward, first_reward=1.0, guard=guard, first_guard=0.0, largest_drop=0.5)

    if not stops:
        return check()
    with pytest.raises(DoctorError, match=r"rose from 1.000 to 1.500 while the guard's score fell by 0.900"):
        check()


HEALTHY = {
    "ppo/clip_fraction": 0.2,
    "ppo/entropy": 2.0,
    "ppo/sigma": 2.0,
    "ppo/beta_sigma": 0.02,
    "ppo/kl_per_answer": 30.0,
}


@pytest.mark.parametrize(
    ("metric", "value", "message"),
    [
        ("ppo/clip_fraction", 0.55, "55% of the tokens have a ratio outside the clip range"),
        ("ppo/entropy", 0.15, "the entropy fell from 2 to 0.15 nats per token"),
        ("ppo/kl_per_answer", 400.0, "400 nats per answer, costs 4.0 standard deviations of the score"),
    ],
)
def test_symptoms_say_what_goes_astray(metric, value, message):
    assert doctor.symptoms(HEALTHY, HEALTHY) == {}
    found = doctor.symptoms(HEALTHY | {metric: value}, HEALTHY)
    assert list(found) == [metric]
    assert message in found[metric]


def test_scores_without_spread_say_nothing_of_the_divergence():
    assert doctor.symptoms(HEALTHY | {"ppo/sigma": 0.0, "ppo/kl_per_answer": 400.0}, HEALTHY) == {}


def test_a_checksum_depends_on_every_bit_and_its_place_and_not_on_the_mesh():
    params = jax.tree.map(jnp.asarray, tiny.params())
    whole = doctor.checksum(params)
    assert whole == doctor.checksum(jax.tree.map(jnp.copy, params))
    embedding = params["embedding_VD"]
    for other in (
        embedding.at[3, 5].set(jnp.nextafter(embedding[3, 5], 9.0)),
        embedding.at[jnp.array([3, 4])].set(embedding[jnp.array([4, 3])]),
        embedding[:, ::-1],
    ):
        assert doctor.checksum({**params, "embedding_VD": other}) != whole
    mesh = jax.make_mesh((8,), ("data",))
    split = jax.NamedSharding(mesh, jax.P("data"))
    rest = jax.device_put(
        {k: v for k, v in params.items() if k != "embedding_VD"}, jax.NamedSharding(mesh, jax.P())
    )
    assert doctor.checksum({**rest, "embedding_VD": jax.device_put(embedding, split)}) == whole
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert doctor.checksum(half) != whole
