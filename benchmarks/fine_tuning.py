"""Training steps of fine-tuning and of a reward model with margins on one device: tokens per second.

python -m benchmarks.fine_tuning

d 256, FFN 688, 4 layers, 4 heads, vocabulary 512 (3.43M parameters), 8 dialogues or 8 pairs of 128
tokens, float32, AdamW: the setting in which peers were measured. Best and median of the steps.

Preferences have a few long dialogues among many short ones, so a reward model is also given 64 pairs whose
responses have 34 tokens on average and 128 at most: packed, and each in a row of its own. Then they follow
prompts that are 2.3 times as long, like those of Anthropic's pairs, and each prompt is there once, or twice.
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
    for layout, batch in _ragged_pairs().items():
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
    return _packed(np.zeros(ROWS, int), np.full((ROWS, 2), LENGTH))


def _one_per_row(lengths_BC: np.ndarray) -> PreferenceBatch:
    """Random responses of these lengths, a pair per row."""
    pairs = len(lengths_BC)
    rng = np.random.default_rng(0)
    places_BCT = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (pairs, 2, LENGTH))
    number_C1 = np.array([1, 2], np.int32)[:, None]
    rows = (pairs, 2 * LENGTH)
    return PreferenceBatch(
        tokens_BT=rng.integers(0, CONFIG.vocab_size, rows, dtype=np.int32),
        segment_ids_BT=np.where(places_BCT < lengths_BC[..., None], number_C1, 0).reshape(rows),
        positions_BT=places_BCT.reshape(rows),
        last_BPC=(lengths_BC - 1 + [0, LENGTH]).astype(np.int32)[:, None],
        margin_BP=np.resize(np.array(MARGINS["large"], np.float32), (pairs, 1)),
        safe_BPC=np.full((pairs, 1, 2), -1, np.int32),
    )


def _packed(prompts_B: np.ndarray, lengths_BC: np.ndarray, *, share_prompts: bool = True) -> PreferenceBatch:
    """All pairs as one batch of the loader."""
    pairs = [
        EncodedPair([0] * prompt + [1] * chosen, [0] * prompt + [2] * rejected, -1, (-1, -1))
        for prompt, (chosen, rejected) in zip(prompts_B, lengths_BC, strict=True)
    ]
    loader = PairLoader(
        pairs, MARGINS["large"], batch_size=len(pairs), epochs=1, seed=0, share_prompts=share_prompts
    )
    return loader.batch(0)


def _ragged_pairs() -> dict[str, PreferenceBatch]:
    """The same responses packed and a pair per row; the same after prompts, which are there once or twice."""
    rng = np.random.default_rng(1)
    lengths_BC = np.clip(rng.lognormal(3.3, 0.8, (RAGGED_PAIRS, 2)), 4, LENGTH).astype(int)
    lengths_BC[0] = LENGTH
    prompts_B = np.clip(2.3 * rng.lognormal(3.3, 0.8, RAGGED_PAIRS), 4, 2 * LENGTH).astype(int)

    return {
        "packed": _packed(np.zeros_like(prompts_B), lengths_BC),
        "padded": _one_per_row(lengths_BC),
        "prompts_once": _packed(prompts_B, lengths_BC),
        "prompts_twice": _packed(prompts_B, lengths_BC, share_prompts=False),
    }


def _report_ragged(times: list[float], batch: PreferenceBatch, layout: str) -> None:
    tokens = int((batch.segment_ids_BT > 0).sum())
    best, median = (RAGGED_PAIRS / spread(times)[key] for key in ("min", "median"))
    rows, length = batch.tokens_BT.shape
    result = {
        "rows": rows,
        "row_length": length,
        "tokens": tokens,
        "step_secs": spread(times),
        "pairs_per_sec_best": best,
        "pairs_per_sec_median": median,
    }
    line = (
        f"reward model, {RAGGED_PAIRS} pairs of {tokens:,} tokens {layout}, {rows} x {length}: "
        f"best {best:,.1f}, median {median:,.1f} pairs/s"
    )
    record(f"reward_model_{layout}", result, line=line)


if __name__ == "__main__":
    main()
