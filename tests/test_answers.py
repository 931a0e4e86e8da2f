import dataclasses

import jax
import numpy as np
import pytest

from llama2_jax.answers import Answer, model_version, sample_answers
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import DialogueError, Message, encode_prompt, stop_ids
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score
from llama2_jax.pretrained import for_decoding
from tests.compilations import share
from tests.rlhf.small_policy import policy

share()
SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0, top_p=1.0)
PROMPTS = [[Message("user", "word " * length)] for length in (7, 1, 5, 9, 2)]
SEEDS = [3, 1, 4, 1, 5]


def answers(*, batch_size: int) -> list[Answer]:
    return sample_answers(policy(), PROMPTS, SAMPLING, seeds=SEEDS, batch_size=batch_size)


def test_answer_depends_on_prompt_and_seed_alone() -> None:
    together = answers(batch_size=8)
    for index, prompt in enumerate(PROMPTS):
        alone = sample_answers(policy(), [prompt], SAMPLING, seeds=[SEEDS[index]], batch_size=2)
        assert alone[0].tokens == together[index].tokens


def test_another_seed_gives_another_answer() -> None:
    first, second = sample_answers(policy(), [PROMPTS[0]] * 2, SAMPLING, seeds=[0, 1], batch_size=2)
    assert first.tokens != second.tokens


def test_logprobs_are_of_the_sampled_tokens() -> None:
    loaded = policy()
    for prompt, answer in zip(PROMPTS, answers(batch_size=2), strict=True):
        row = encode_prompt(prompt, loaded.require_tokenizer(), loaded.template) + answer.tokens
        expected = score(loaded.model, loaded.params, [row])[0][-len(answer.tokens) :]
        np.testing.assert_allclose(answer.logprobs, expected, atol=1e-5)


def test_stop_token_ends_the_answer_and_is_not_in_its_text() -> None:
    loaded = policy()
    stops = stop_ids(loaded.require_tokenizer(), loaded.template)
    many = sample_answers(loaded, [PROMPTS[1]] * 256, SAMPLING, seeds=range(256), batch_size=256)
    stopped = [answer for answer in many if answer.stopped]
    assert 0 < len(stopped) < 256  # 12 tokens, each the stop token with a chance of about 1 in 340
    for answer in many:
        assert (answer.tokens[-1] in stops) == answer.stopped
        assert not set(answer.tokens[:-1]) & set(stops)
        assert len(answer.tokens) <= 12
        ids = answer.tokens[:-1] if answer.stopped else answer.tokens
        assert answer.text == loaded.require_tokenizer().decode(ids)


def test_version_follows_the_parameters_not_their_layout() -> None:
    loaded = policy()
    version = model_version(loaded)
    assert version.startswith("a random model, checksum ")
    assert model_version(loaded) == version
    assert model_version(policy(seed=1)) != version
    nudged = jax.tree.map(np.array, loaded.params)
    nudged["embedding_VD"][7, 3] = np.nextafter(nudged["embedding_VD"][7, 3], np.float32(np.inf))
    assert model_version(loaded._replace(params=nudged)) != version


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_version_is_the_same_laid_out_for_decoding(compute_dtype: str) -> None:
    loaded = policy()
    config = dataclasses.replace(loaded.config, compute_dtype=compute_dtype)
    loaded = loaded._replace(config=config, model=loaded.model.clone(config=config))
    assert model_version(for_decoding(loaded)) == model_version(loaded)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 seeds for 1 prompts"):
        sample_answers(policy(), PROMPTS[:1], SAMPLING, seeds=[0, 1], batch_size=2)
    with pytest.raises(ConfigError, match="batch_size = 0"):
        sample_answers(policy(), PROMPTS[:1], SAMPLING, seeds=[0], batch_size=0)
    finished = [*PROMPTS[0], Message("assistant", "Yes.")]
    with pytest.raises(DialogueError, match="must be from the user"):
        sample_answers(policy(), [finished], SAMPLING, seeds=[0], batch_size=1)
