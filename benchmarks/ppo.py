"""One iteration of PPO on one device, and where its time goes.

python -m benchmarks.ppo

The setting in which a peer was measured (TRL 1.12.0: 2.10 s per iteration, 973 generated tokens/s): 3.43 M
parameters (4 layers, d 256, FFN 688, 4 heads, vocabulary 512), 32 prompts of 32 tokens and 64 new
ones, 4 mini-batches, one epoch; value, reward and reference models of the same size; float32. Nothing
ends an answer early. Median and best of the iterations after compilation, with all checks of the
doctor.
"""

import argparse
import dataclasses

import jax
import numpy as np

from benchmarks.fine_tuning import CONFIG
from benchmarks.record import record, spread
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.rlhf.ppo_config import PPOConfig
from llama2_jax.rlhf.ppo_iteration import Learner, PromptBatch, Scores, Stopwatch, reward_model_scores
from llama2_jax.rlhf.rollouts import draw_seeds
from llama2_jax.sharding.rules import single_device
from llama2_jax.structs import Rollout
from llama2_jax.train.optimizer import OptimizerConfig

MODEL = dataclasses.replace(CONFIG, max_context=96)
PPO = PPOConfig(prompt_length=32, response_length=64, batch_size=32, mini_batch_size=8)


def main() -> None:
    """Measure iterations and print the phases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10)
    iterations = parser.parse_args().iterations
    partitioner = single_device()
    policy_model, score_model = Transformer(MODEL, partitioner), ScoreModel(MODEL, partitioner)
    params = init_params(policy_model, jax.random.key(0))
    reward_params = score_params_from_chat(
        init_params(policy_model, jax.random.key(1)), key=jax.random.key(2)
    )
    optimizer = OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup_steps=0)
    learner = Learner(
        policy_model,
        score_model,
        params,
        PPO,
        policy_optimizer=optimizer,
        value_optimizer=optimizer,
        partitioner=partitioner,
        sampler_partitioner=partitioner,
        stop_ids=(),
        num_iterations=iterations + 2,
    )

    def score(rollout: Rollout, batch: PromptBatch, stopwatch: Stopwatch) -> Scores:
        scores_B = stopwatch.run("score", reward_model_scores, score_model, reward_params, rollout, parts=1)
        return Scores(scores_B, {"reward_model": scores_B})

    state = learner.init_state(params, score_params_from_chat(params, key=None))
    lines = []
    for iteration in range(iterations + 2):
        state, _, metrics = learner.iterate(state, _prompts(iteration), score)
        lines.append(metrics)
    timed = lines[2:]  # the first two compile
    phases = {name: spread([line[name] for line in timed]) for name in timed[0] if name.startswith("secs/")}
    rate = spread([line["rate/generated_tokens_per_sec"] for line in timed])
    whole = phases["secs/iteration"]
    parts = ", ".join(
        f"{name.removeprefix('secs/')} {1e3 * found['median']:,.0f}"
        for name, found in phases.items()
        if name != "secs/iteration"
    )
    record(
        "ppo",
        {"phases": phases, "generated_tokens_per_sec": rate},
        line=f"iteration: median {whole['median']:.2f} s, best {whole['min']:.2f} s; generated "
        f"{rate['median']:,.0f} tok/s (best {rate['max']:,.0f}); median ms: {parts}",
    )


def _prompts(iteration: int) -> PromptBatch:
    rows = np.random.default_rng(iteration).integers(0, MODEL.vocab_size, (PPO.batch_size, PPO.prompt_length))
    seeds = draw_seeds(PPO.batch_size, seed=0, iteration=iteration)
    tags_B = np.zeros(PPO.batch_size, bool)
    return PromptBatch([str(row) for row in range(len(rows))], rows.tolist(), tags_B, seeds)


if __name__ == "__main__":
    main()
