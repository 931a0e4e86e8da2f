"""Seconds to score texts that begin alike, with what they share computed once and in every text.

make smollm2-files && python -m benchmarks.shared_prompts

SmolLM2-135M in float32, random tokens, both ways in turn: questions after five examples, with answers of one
token (MMLU); four answers of several tokens after each context (HellaSwag); eight samples of each prompt by a
reward model of that size (rejection sampling). The training of a reward model is in ``fine_tuning.py``.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks.record import record, spread
from llama2_jax.data.text_batches import text_batches
from llama2_jax.generate import continuations
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.pretrained import load
from llama2_jax.rlhf import reward_model
from tools.fetch_assets import asset_path

REPEATS = 3


def main() -> None:
    """Measure the three."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    llama = load(asset_path("smollm2"))
    score_model = ScoreModel(llama.config, llama.model.partitioner)
    params = score_params_from_chat(llama.params, key=jax.random.key(0))
    judge = reward_model.RewardModel(
        llama.config, params, llama.require_tokenizer(), llama.template, score_model, "helpfulness", ""
    )
    rng = np.random.default_rng(0)

    def text(length: int) -> list[int]:
        return rng.integers(0, llama.config.num_ids, length).tolist()

    examples = text(500)
    questions = [examples + text(int(length)) for length in rng.integers(50, 90, 16)]
    contexts = [text(int(length)) for length in rng.integers(60, 100, 8)]
    prompts = [text(int(length)) for length in rng.integers(100, 140, 4)]
    score = functools.partial(continuations.score_continuations, llama.model, llama.params, batch_size=16)
    letters = [(question, [letter]) for question in questions for letter in range(4)]
    endings = [(context, text(25)) for context in contexts for _ in range(4)]
    samples = [prompt + text(50) for prompt in prompts for _ in range(8)]
    _compare("examples_before_questions", lambda: score(letters))
    _compare("answers_after_contexts", lambda: score(endings))
    _compare("samples_of_prompts", lambda: reward_model.score_rows(judge, samples, batch_size=16))


def _compare(name: str, run: Callable[[], Any]) -> None:
    def apart(texts: Any, limits: Any, **options: Any) -> Any:
        return text_batches(texts, None, **options)

    times: dict[str, list[float]] = {"once": [], "in_every_text": []}
    for _ in range(REPEATS + 1):
        for how, batches in (("once", text_batches), ("in_every_text", apart)):
            with (
                mock.patch.object(continuations, "text_batches", batches),
                mock.patch.object(reward_model, "text_batches", batches),
            ):
                start = time.perf_counter()
                run()
                times[how].append(time.perf_counter() - start)
    once, whole = (spread(times[how][1:]) for how in ("once", "in_every_text"))  # the first compiles
    line = f"{name}: {once['median']:.2f} s, each text whole {whole['median']:.2f} s"
    record(f"shared_prompts_{name}", {"once_secs": once, "in_every_text_secs": whole}, line=line)


if __name__ == "__main__":
    main()
