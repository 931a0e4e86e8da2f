import json
from collections import Counter

import pytest

from llama2_jax.config import ConfigError, to_plain
from llama2_jax.data.chat import LLAMA2
from llama2_jax.data.preferences import parse_preference
from llama2_jax.rlhf.annotator.comparison import Judgement
from llama2_jax.rlhf.annotator.protocol import (
    CollectionConfig,
    Reply,
    SampledPair,
    Variant,
    batch_prompts,
    collect,
    pair_from_row,
    pair_row,
    to_preference,
)
from tests.rlhf.annotator.asked import compare, prompt

PROMPTS = [prompt(f"question {i}", prompt_id=f"p{i}") for i in range(40)]


def echo(variant, prompts, seeds):
    """Answers that tell who gave them."""
    return [
        Reply(f"{variant.model} {variant.temperature} {one.prompt_id} {seed}", True)
        for one, seed in zip(prompts, seeds, strict=True)
    ]


def run(sample=echo, models=("new", "old"), batch=1, **changes):
    config = CollectionConfig(**{"prompts_per_batch": 40, **changes})
    return collect(PROMPTS, models, sample, config, batch=batch, template=LLAMA2)


def test_each_prompt_is_answered_by_both_models_in_random_order():
    found = run()
    assert [pair.comparison.prompt for pair in found.pairs] == PROMPTS
    assert not found.dropped
    for pair in found.pairs:
        assert {variant.model for variant in pair.variants} == {"new", "old"}
        for variant, answer in zip(
            pair.variants, (pair.comparison.first, pair.comparison.second), strict=True
        ):
            assert answer.startswith(
                f"{variant.model} {variant.temperature} {pair.comparison.prompt.prompt_id}"
            )
    assert 8 < sum(pair.variants[0].model == "new" for pair in found.pairs) < 32
    assert {variant.temperature for pair in found.pairs for variant in pair.variants} == {0.7, 1.0}


def test_one_model_answers_at_two_temperatures():
    for pair in run(models=("only",)).pairs:
        assert {variant.temperature for variant in pair.variants} == {0.7, 1.0}


def test_every_answer_has_a_seed_of_its_own():
    seeds = [
        text.split()[-1] for pair in run().pairs for text in (pair.comparison.first, pair.comparison.second)
    ]
    assert len(set(seeds)) == 80


def test_collection_is_repeatable_and_batches_differ():
    assert run() == run()
    assert run() != run(seed=1)
    assert run().pairs[0].comparison.first != run(batch=2).pairs[0].comparison.first
    assert {pair.batch for pair in run(batch=2).pairs} == {2}


def test_batches_take_the_next_prompts_and_begin_again():
    config = CollectionConfig(prompts_per_batch=25)
    numbers = [[PROMPTS.index(one) for one in batch_prompts(PROMPTS, config, batch)] for batch in (1, 2, 3)]
    assert numbers == [list(range(25)), [*range(25, 40), *range(10)], list(range(10, 35))]


def test_after_a_larger_first_batch_the_next_ones_go_on_behind_it():
    config = CollectionConfig(prompts_per_batch=5, prompts_in_first=20)
    numbers = [[PROMPTS.index(one) for one in batch_prompts(PROMPTS, config, batch)] for batch in (1, 2, 3)]
    assert numbers == [list(range(20)), list(range(20, 25)), list(range(25, 30))]
    with pytest.raises(ConfigError, match="prompts_in_first = 41 is more than the 40 prompts of the file"):
        run(prompts_in_first=41)


def test_a_run_may_begin_at_a_prompt_of_its_own():
    config = CollectionConfig(
        first_batch=3, num_batches=2, prompts_per_batch=5, prompts_in_first=20, first_prompt=9
    )
    numbers = [
        [PROMPTS.index(one) for one in batch_prompts(PROMPTS, config, batch)] for batch in config.batches
    ]
    assert numbers == [list(range(8, 13)), list(range(13, 18))]
    first = CollectionConfig(prompts_per_batch=5, prompts_in_first=7, first_prompt=2, num_batches=2)
    numbers = [
        [PROMPTS.index(one) for one in batch_prompts(PROMPTS, first, batch)] for batch in first.batches
    ]
    assert numbers == [list(range(1, 8)), list(range(8, 13))]


def test_a_batch_beyond_the_file():
    with pytest.raises(ConfigError, match="prompts_per_batch = 41 is more than the 40 prompts of the file"):
        run(prompts_per_batch=41)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (lambda i: ("same", True), "equal answers"),
        (lambda i: (("", "text")[i], True), "empty"),
        (lambda i: (("[INST] a", "b")[i], True), "special tags"),
        (lambda i: (("a", "b")[i], i == 0), "unfinished"),
    ],
)
def test_pairs_that_nobody_can_compare_are_sampled_again_then_dropped(answers, reason):
    calls = Counter()

    def sample(variant, prompts, seeds):
        calls[variant.model] += len(prompts)
        return [Reply(*answers(variant.model == "old")) for _ in prompts]

    found = run(sample, max_resamples=2)
    assert found.pairs == []
    assert found.dropped == {reason: 40}
    assert calls == {"new": 120, "old": 120}


def test_unfinished_answers_can_be_kept():
    def sample(variant, prompts, seeds):
        return [reply._replace(finished=False) for reply in echo(variant, prompts, seeds)]

    assert len(run(sample, unfinished="keep").pairs) == 40
    assert run(sample).dropped == {"unfinished": 40}


def test_sampling_again_keeps_the_order_and_uses_other_seeds():
    seen, used = Counter(), []

    def sample(variant, prompts, seeds):
        replies = echo(variant, prompts, seeds)
        used.extend(seeds)
        for number, one in enumerate(prompts):
            seen[one.prompt_id] += 1
            if one.prompt_id == "p3" and seen["p3"] <= 2:
                replies[number] = Reply("same", True)
        return replies

    found = run(sample)
    assert [pair.comparison.prompt.prompt_id for pair in found.pairs] == [f"p{i}" for i in range(40)]
    assert seen["p3"] == 4
    assert seen["p4"] == 2
    assert len(set(used)) == len(used) == 82


def test_a_judged_pair_becomes_a_row_that_can_be_read():
    pair = SampledPair(
        compare("How?", "first", "second", is_safety=True), 3, (Variant("new", 1.0), Variant("old", 0.7))
    )
    judgement = Judgement(False, "better", (True, False), "rater 1")
    row = to_plain(to_preference(pair, judgement, source="simulated"))
    found = parse_preference(json.loads(json.dumps(row)), LLAMA2)
    assert (found.chosen, found.rejected) == ("second", "first")
    assert (found.chosen_model, found.chosen_temperature) == ("old", 0.7)
    assert (found.rejected_model, found.rejected_temperature) == ("new", 1.0)
    assert (found.safety, found.rating, found.track, found.batch) == ("chosen_safe", "better", "safety", 3)
    assert (found.annotator_id, found.source, found.prompt_id) == ("rater 1", "simulated", "p")


def test_unsafe_chosen_next_to_safe_is_marked():
    pair = SampledPair(compare("How?", "a", "b", is_safety=True), 1, (Variant("n", 1.0), Variant("o", 1.0)))
    row = to_preference(pair, Judgement(True, "unsure", (True, False), "r"), source="")
    assert row.safety == "rejected_safe"
    asked_nothing = to_preference(pair, Judgement(True, "unsure", None, "r"), source="")
    assert asked_nothing.safety is None


def test_pairs_survive_a_file():
    for pair in run().pairs:
        assert pair_from_row(json.loads(json.dumps(pair_row(pair)))) == pair


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_batch": 0}, "first_batch = 0 must be positive"),
        ({"prompts_per_batch": 0}, "prompts_per_batch = 0 must be positive"),
        ({"temperatures": (1.0, 1.0)}, "at least two different positive numbers"),
        ({"temperatures": (0.0, 1.0)}, "at least two different positive numbers"),
        ({"max_resamples": -1}, "max_resamples = -1 must not be negative"),
    ],
)
def test_configs_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        CollectionConfig(**changes)
