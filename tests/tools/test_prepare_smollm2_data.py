from collections import Counter

import pytest

from llama2_jax.data.chat import LLAMA2, Message
from llama2_jax.data.preferences import Preference, prompt_key, read_preferences
from llama2_jax.data.prompts import Prompt, read_prompts
from tests.tools.pyrit_files import prepared_with
from tools.prepare_smollm2_data import MAX_CHARACTERS, NUM_ANNOTATED, alternate, prepare, spread


def pair(prompt: str, number: int, length: int = 10) -> Preference:
    return Preference(
        (Message("user", prompt),), f"{number}".rjust(length, "."), "-", "safety", prompt_id=prompt
    )


def test_short_pairs_are_spread_over_prompts():
    pairs = [pair("many", number) for number in range(20)] + [pair("few", 0), pair("long", 0, MAX_CHARACTERS)]
    assert Counter(found.prompt_id for found in spread(pairs, 6)) == {"many": 5, "few": 1}
    assert len(spread(pairs, 100)) == 21


def test_prompts_alternate():
    one, other = ([Prompt(f"{name}{n}", (Message("user", name),)) for n in range(2)] for name in "ab")
    assert [prompt.prompt_id for prompt in alternate(one, other)] == ["a0", "b0", "a1", "b1"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepared_with(prepare, tmp_path_factory.mktemp("smollm2"))


def test_no_evaluation_prompt_is_in_another_file(prepared):
    parts = {
        part: read_prompts(prepared / f"prompts_{part}.jsonl") for part in ("train", "heldout", "evaluation")
    }
    assert [len(prompts) for prompts in parts.values()] == [96, 8, 40]
    texts = [prompt_key(prompt.messages) for prompts in parts.values() for prompt in prompts]
    trained_on = {
        prompt_key(pair.messages)
        for pair in read_preferences(prepared / "safety_train.jsonl", template=LLAMA2)
    }
    assert len(set(texts)) == len(texts)
    assert not trained_on & set(texts[96:])
    for prompts in parts.values():
        assert Counter(prompt.family == "pyrit" for prompt in prompts) == {
            True: len(prompts) / 2,
            False: len(prompts) / 2,
        }
        assert all(prompt.is_safety == (prompt.family == "pyrit") for prompt in prompts)


def test_pairs_and_annotated_prompts(prepared):
    counts = [
        len(read_preferences(prepared / f"safety_{side}.jsonl", template=LLAMA2))
        for side in ("train", "heldout")
    ]
    assert counts == [180, 80]
    annotated = read_prompts(prepared / "prompts_annotate.jsonl")
    assert len(annotated) == NUM_ANNOTATED
    assert not any(prompt.is_safety for prompt in annotated)
