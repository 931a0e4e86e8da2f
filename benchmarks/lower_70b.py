"""Seconds to trace and lower the 70B training step without any memory for it (scanned layers).

python -m benchmarks.lower_70b
"""

import argparse
import time

from benchmarks.record import record
from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.placement import abstract_token_batch
from llama2_jax.sharding.rules import single_device
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, compile_step, make_update, next_token_loss


def main() -> None:
    """Lower once, cold."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    start = time.perf_counter()
    config = model_config("70b", compute_dtype="bfloat16", remat_policy="full")
    partitioner = single_device()
    model = Transformer(config, partitioner)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.5e-4), num_steps=1000)
    state = abstract_state(model, optimizer, partitioner)
    update = make_update(next_token_loss(model, loss_chunk=512), optimizer)
    step = compile_step(update, state, partitioner)
    lowered = step.lower(state, abstract_token_batch(partitioner, 16, 4096))  # type: ignore[attr-defined]
    secs = time.perf_counter() - start
    size = len(lowered.as_text())
    record(
        "lower_70b", {"secs": secs, "stablehlo_bytes": size}, line=f"70b train step lowered in {secs:.1f} s"
    )


if __name__ == "__main__":
    main()
