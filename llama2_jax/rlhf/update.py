"""What PPO learns from a batch of answers: rewards to advantages, and the losses of both models.

Pure functions, to be compiled by their caller: ``make_experience`` once per iteration, then one
update per mini-batch for the policy and one for the value model (D43: separate models, so the two
do not interact). All means are over tokens of the whole (mini-)batch on all devices.
"""

import jax
import jax.numpy as jnp
import optax

from llama2_jax.losses.next_token import token_logprobs
from llama2_jax.losses.ppo import entropy, kl_estimate, masked_mean, policy_sums, value_sums
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer
from llama2_jax.rlhf.advantages import explained_variance, gae, masked_moments, whiten
from llama2_jax.rlhf.doctor import TOLERANCES
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.rewards import kl_penalty, on_last_token, without_eos
from llama2_jax.rlhf.rollouts import response_logits, response_mask, response_tokens, response_values
from llama2_jax.structs import Experience, LossSums, Params, ResponseValues, Rollout, TrainState
from llama2_jax.train.step import Loss, Metrics, StepFunction, make_update, split_rows


def make_experience(
    rollout: Rollout,
    scores_B: jax.Array,
    behaviour_logprobs_BC: jax.Array,
    reference_logprobs_BC: jax.Array,
    values: ResponseValues,
    *,
    config: PPOConfig,
) -> tuple[Experience, Metrics]:
    """Combined scores to rewards (eq. 4), GAE, whitened advantages; statistics over the whole batch."""
    mask_BC = response_mask(rollout)
    scores = whiten(
        scores_B,
        rollout.response_lengths_B > 0,
        shift_mean=config.whitening == "shift_and_scale",
    )
    whitened_B = scores_B if config.whitening == "none" else scores.values
    final_B = without_eos(
        whitened_B, rollout.stopped_B, handling=config.missing_eos, value=config.missing_eos_value
    )
    penalty_BC = kl_penalty(behaviour_logprobs_BC, reference_logprobs_BC, mask_BC, kl_coef=config.kl_coef)
    if config.kl_placement == "loss":
        penalty_BC = jnp.zeros_like(penalty_BC)
    final_BC = on_last_token(final_B, rollout.response_lengths_B, num_tokens=mask_BC.shape[1])
    goes_on_B = (config.truncation == "bootstrap") & ~rollout.stopped_B
    estimate = gae(
        final_BC + penalty_BC,
        values.values_BC,
        mask_BC,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        final_values_B=jnp.where(goes_on_B, values.final_values_B, 0.0),
    )
    advantages = whiten(estimate.advantages_BC, mask_BC)
    # beside a divergence in the loss they keep their scale: without it, beta would be another one
    scale = 1.0 if config.kl_placement == "reward" else advantages.sigma
    experience = Experience(
        rollout,
        behaviour_logprobs_BC,
        reference_logprobs_BC,
        advantages.values * scale,
        values.values_BC,
        estimate.returns_BC,
    )
    unit = 1.0 if config.whitening == "none" else scores.sigma  # of the reward, in raw scores
    metrics = {
        "score": scores.mean,
        "sigma": scores.sigma,
        "beta_sigma": config.kl_coef * unit,
        "reward_score": final_B.mean(),
        "reward_kl": penalty_BC.sum(axis=1).mean(),
        "stopped_fraction": rollout.stopped_B.mean(),
        "response_length": rollout.response_lengths_B.mean(),
        "explained_variance": explained_variance(values.values_BC, estimate.returns_BC, mask_BC),
        "returns": masked_moments(estimate.returns_BC, mask_BC)[0],
    }
    return experience, metrics | _divergences(experience, mask_BC)


def _divergences(experience: Experience, mask_BC: jax.Array) -> Metrics:
    """How far policy, reference and sampler are apart on the sampled tokens, in nats and probability."""
    behaviour_BC = jnp.where(mask_BC, experience.behaviour_logprobs_BC, 0.0)
    sampler_BC = jnp.where(mask_BC, experience.rollout.sampler_logprobs_BC, 0.0)
    k1_BC, k3_BC = (
        kl_estimate(behaviour_BC, experience.reference_logprobs_BC, mask_BC, estimator=estimator)
        for estimator in ("k1", "k3")
    )
    tokens = jnp.maximum(mask_BC.sum(dtype=jnp.float32), 1)
    return {
        "kl_per_answer": k1_BC.sum(axis=1).mean(),
        "kl_per_token": k1_BC.sum() / tokens,
        "kl_k3_per_token": k3_BC.sum() / tokens,
        "kl_largest": jnp.abs(k1_BC).max(),
        "sampler_ratio_error": jnp.abs(jnp.exp(behaviour_BC - sampler_BC) - 1).max(),
        "sampler_probability_error": jnp.abs(jnp.exp(behaviour_BC) - jnp.exp(sampler_BC)).sum() / tokens,
    }


def policy_loss(model: Transformer, config: PPOConfig) -> Loss:
    """The clipped objective of a mini-batch, plus beta k2 if the divergence stands in the loss."""
    tolerance = TOLERANCES[model.config.compute_dtype]

    def loss(params: Params, batch: Experience) -> LossSums:
        mask_BC = response_mask(batch.rollout)
        logits_BCV = response_logits(model, params, batch.rollout, temperature=config.temperature)
        logprobs_BC = token_logprobs(logits_BCV, response_tokens(batch.rollout))
        sums = policy_sums(
            logprobs_BC,
            batch.behaviour_logprobs_BC,
            batch.advantages_BC,
            mask_BC,
            clip_range=config.clip_range,
            ratio_tolerance=tolerance,
        )
        if config.kl_placement == "loss":
            k2_BC = kl_estimate(logprobs_BC, batch.reference_logprobs_BC, mask_BC, estimator="k2")
            sums = sums._replace(loss_sum=sums.loss_sum + config.kl_coef * k2_BC.sum())
        return sums._replace(means={**sums.means, "entropy": masked_mean(entropy(logits_BCV), mask_BC)})

    return loss


def value_loss(model: ScoreModel, config: PPOConfig) -> Loss:
    """The clipped squared error of a mini-batch, times the value coefficient.

    The coefficient comes from code where policy and value share a body and a gradient. Here they are
    two models with an optimiser each, and AdamW divides a constant factor out again; what is left of it
    is when the gradient is clipped, and how it compares with Adam's epsilon.
    """

    def loss(params: Params, batch: Experience) -> LossSums:
        sums = value_sums(
            response_values(model, params, batch.rollout).values_BC,
            batch.values_BC,
            batch.returns_BC,
            response_mask(batch.rollout),
            clip_range=config.value_clip_range,
        )
        return sums._replace(loss_sum=config.value_coef * sums.loss_sum)

    return loss


def make_epoch(loss: Loss, optimizer: optax.GradientTransformation, config: PPOConfig) -> StepFunction:
    """One gradient step per mini-batch, in one compiled function; every answer is used once (D49).

    A mini-batch takes every n-th answer: prompts come in random order, so there is nothing to shuffle.

    Returns:
      A function of (state, experience); its metrics have one value per mini-batch, in order.
    """
    update = make_update(loss, optimizer, accumulation_steps=config.accumulation_steps)

    def epoch(state: TrainState, experience: Experience) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(update, state, split_rows(experience, config.num_updates))

    return epoch
