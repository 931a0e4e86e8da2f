"""Training step of a tiny reward model with margins on one device: pairs and tokens per second.

python -m benchmarks.reward_model

d 256, FFN 688, 4 layers, 4 heads, vocabulary 512 (3.43M parameters with an unembedding), 8 pairs of
128 tokens, float32, AdamW: the setting in which peers were measured. Best and median of the steps.
"""

import jax
import numpy as np

from benchmarks.record import record, seconds, spread
from llama2_jax.losses.preference import MARGINS
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel
from llama2_jax.rlhf.reward_model import preference_loss
from llama2_jax.sharding.rules import single_device
from llama2_jax.structs import PreferenceBatch
from llama2_jax.train.flops import flops_per_token, measured_matrix_rate
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import compile_step, init_state, make_update

PAIRS, LENGTH = 8, 128
STEPS = 40
CONFIG = ModelConfig(
    vocab_size=512,
    model_width=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    feed_forward_width=688,
    max_context=LENGTH,
)


def main() -> None:
    """Measure the update and the matrix rate."""
    rate = measured_matrix_rate(size=2048)
    times = step_seconds()
    tokens = 2 * PAIRS * LENGTH
    best, median = (tokens / spread(times)[key] for key in ("min", "median"))
    flops = flops_per_token(CONFIG, LENGTH, convention="causal_no_embed", num_outputs=1)
    result = {
        "matrix_rate_flops": rate,
        "step_secs": spread(times),
        "tokens_per_sec_best": best,
        "tokens_per_sec_median": median,
        "matrix_rate_share_best": best * flops / rate,
    }
    line = (
        f"reward model, {PAIRS} pairs x {LENGTH}: best {best:,.0f}, median {median:,.0f} tok/s "
        f"({best * flops / rate:.0%} of {rate / 1e9:,.0f} GFLOP/s)"
    )
    record("reward_model", result, line=line)


def step_seconds() -> list[float]:
    """Seconds of each timed update."""
    partitioner = single_device()
    model = ScoreModel(CONFIG, partitioner)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-5), num_steps=1000)
    state = init_state(model, optimizer, partitioner, seed=0)
    step = compile_step(make_update(preference_loss(model), optimizer), state, partitioner)
    batch = _batch()

    def update() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return seconds(update, repeats=STEPS)


def _batch() -> PreferenceBatch:
    """Full rows: no token is padding, so all are counted."""
    rng = np.random.default_rng(0)
    rating_B = np.arange(PAIRS, dtype=np.int32) % 4
    return PreferenceBatch(
        tokens_BCT=rng.integers(0, CONFIG.vocab_size, (PAIRS, 2, LENGTH), dtype=np.int32),
        lengths_BC=np.full((PAIRS, 2), LENGTH, np.int32),
        margin_B=np.array(MARGINS["large"], np.float32)[rating_B],
        rating_B=rating_B,
        safe_BC=np.full((PAIRS, 2), -1, np.int32),
    )


if __name__ == "__main__":
    main()
