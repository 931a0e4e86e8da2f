"""Training steps of fine-tuning and of a reward model with margins on one device: tokens per second.

python -m benchmarks.fine_tuning

d 256, FFN 688, 4 layers, 4 heads, vocabulary 512 (3.43M parameters), 8 dialogues or 8 pairs of 128
tokens, float32, AdamW: the setting in which peers were measured. Best and median of the steps.

Preferences have a few long dialogues among many short ones, so a reward model is also given 64 pairs whose
responses have 34 tokens on average and 128 at most: packed, as it is trained, and each in a row of its own.
"""

import argparse

import numpy as np

from benchmarks.record import record, spread
from benchmarks.train_step import random_batch, step_seconds
from llama2_jax.data.preference_batches import EncodedPair, PairLoader
from llama2_jax.losses.preference import MARGINS
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel
from llama2_jax.model.transformer import Transformer
from llama2_jax.rlhf.reward_model import preference_loss
from llama2_jax.sharding.rules import single_device
from llama2_jax.structs import PreferenceBatch
from llama2_jax.train.flops import flops_per_token, measured_matrix_rate
from llama2_jax.train.step import next_token_loss

ROWS, LENGTH = 8, 128
STEPS = 40
RAGGED_PAIRS = 64
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
    """Measure both updates and the matrix rate."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    rate = measured_matrix_rate(size=2048)
    chat, scored = Transformer(CONFIG, single_device()), ScoreModel(CONFIG, single_device())
    _report(
        "sft",
        step_seconds(chat, next_token_loss(chat), random_batch(CONFIG.vocab_size, ROWS, LENGTH), steps=STEPS),
        rows=ROWS,
        outputs=CONFIG.vocab_size,
        rate=rate,
    )
    _report(
        "reward_model",
        step_seconds(scored, preference_loss(scored), _pairs(), steps=STEPS),
        rows=2 * ROWS,
        outputs=1,
        rate=rate,
    )
    packed, alone = _ragged_pairs()
    for batch, layout in ((packed, "packed"), (alone, "padded")):
        times = step_seconds(scored, preference_loss(scored), batch, steps=STEPS)
        _report_ragged(times, batch, layout)


def _report(name: str, times: list[float], *, rows: int, outputs: int, rate: float) -> None:
    best, median = (rows * LENGTH / spread(times)[key] for key in ("min", "median"))
    flops = flops_per_token(CONFIG, LENGTH, convention="causal_no_embed", num_outputs=outputs)
    result = {
        "matrix_rate_flops": rate,
        "step_secs": spread(times),
        "tokens_per_sec_best": best,
        "tokens_per_sec_median": median,
        "matrix_rate_share_best": best * flops / rate,
    }
    line = (
        f"{name}, {rows} rows x {LENGTH}: best {best:,.0f}, median {median:,.0f} tok/s "
        f"({best * flops / rate:.0%} of {rate / 1e9:,.0f} GFLOP/s)"
    )
    record(name, result, line=line)


def _pairs() -> PreferenceBatch:
    """Full rows: no token is padding, so all are counted."""
    return _one_per_row(np.full((ROWS, 2), LENGTH))


def _one_per_row(lengths_BC: np.ndarray) -> PreferenceBatch:
    """Random responses of these lengths, a pair per row."""
    pairs = len(lengths_BC)
    rng = np.random.default_rng(0)
    places_BCT = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (pairs, 2, LENGTH))
    return PreferenceBatch(
        tokens_BCT=rng.integers(0, CONFIG.vocab_size, (pairs, 2, LENGTH), dtype=np.int32),
        segment_ids_BCT=(places_BCT < lengths_BC[..., None]).astype(np.int32),
        positions_BCT=places_BCT,
        last_BCP=(lengths_BC[..., None] - 1).astype(np.int32),
        margin_BP=np.resize(np.array(MARGINS["large"], np.float32), (pairs, 1)),
        safe_BCP=np.full((pairs, 2, 1), -1, np.int32),
    )


def _ragged_pairs() -> tuple[PreferenceBatch, PreferenceBatch]:
    """The same responses packed, and a pair per row."""
    drawn_BC = np.random.default_rng(1).lognormal(3.3, 0.8, (RAGGED_PAIRS, 2))
    lengths_BC = np.clip(drawn_BC, 4, LENGTH).astype(int)
    lengths_BC[0] = LENGTH
    pairs = [EncodedPair([1] * chosen, [2] * rejected, -1, (-1, -1)) for chosen, rejected in lengths_BC]
    loader = PairLoader(pairs, MARGINS["large"], batch_size=RAGGED_PAIRS, epochs=1, seed=0)
    return loader.batch(0), _one_per_row(lengths_BC)


def _report_ragged(times: list[float], batch: PreferenceBatch, layout: str) -> None:
    tokens = int((batch.segment_ids_BCT > 0).sum())
    best, median = (tokens / spread(times)[key] for key in ("min", "median"))
    result = {
        "rows": 2 * len(batch.tokens_BCT),
        "tokens": tokens,
        "step_secs": spread(times),
        "tokens_per_sec_best": best,
        "tokens_per_sec_median": median,
    }
    line = (
        f"reward model, {RAGGED_PAIRS} pairs of {tokens:,} tokens {layout}, {result['rows']} x {LENGTH}: "
        f"best {best:,.0f}, median {median:,.0f} tok/s"
    )
    record(f"reward_model_{layout}", result, line=line)


if __name__ == "__main__":
    main()
