import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import CHATML, LLAMA2, Message
from llama2_jax.data.preference_batches import EncodedPair, PairLoader, encode_response
from llama2_jax.data.tokenizer import train_sentencepiece
from llama2_jax.generate.decode import PromptError
from llama2_jax.losses.preference import MARGINS
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.heads import ScoreModel, score_params_from_chat
from llama2_jax.model.transformer import Transformer, init_params
from llama2_jax.pretrained import LoadedModel, load
from llama2_jax.rlhf import reward_model as rm_module
from llama2_jax.rlhf.ppo_iteration import reward_model_scores
from llama2_jax.rlhf.reward_checkpoint import (
    check_same_text,
    load_reward_model,
    load_reward_model_for,
    reward_model_meta,
)
from llama2_jax.rlhf.reward_model import RewardModel, preference_loss, score_dialogues, score_rows
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import place_batch, place_tree
from llama2_jax.sharding.rules import make_partitioner, single_device
from llama2_jax.structs import PreferenceBatch, Rollout
from llama2_jax.train.checkpoint import write_params
from llama2_jax.train.metrics import NonFiniteError
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import compile_step, make_update, state_from_params
from tests.data.conftest import make_texts
from tests.data.conftest import tokenizer as tokenizer
from tests.data.conftest import tokenizer_path as tokenizer_path
from tests.model import numpy_llama, tiny

SMALL = ModelConfig(
    vocab_size=32,
    model_width=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    feed_forward_width=64,
    max_context=64,
)
SGD = optax.sgd(0.1)


@functools.cache
def params(config=tiny.CONFIG):
    return score_params_from_chat(tiny.params(config), key=jax.random.key(7))


def batch(count=8, length=12, seed=0):
    """Pairs of random dialogues; the last one is empty, three have no safety labels.

    Each pair is a row of two segments. Every second begins with the same four tokens, twice.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, (count, 2)).astype(np.int32)
    lengths[-1] = 0
    safe = rng.integers(0, 2, (count, 2)).astype(np.int32)
    safe[:3] = -1
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (count, 2, length))
    tokens = rng.integers(0, 56, (count, 2, length)).astype(np.int32)
    tokens[::2, 1, :4] = tokens[::2, 0, :4]
    number = np.array([1, 2], np.int32)[:, None]
    return PreferenceBatch(
        tokens_BT=tokens.reshape(count, -1),
        segment_ids_BT=np.where(places < lengths[..., None], number, 0).reshape(count, -1),
        positions_BT=places.reshape(count, -1),
        last_BPC=np.where(lengths > 0, lengths - 1 + [0, length], -1).astype(np.int32)[:, None],
        margin_BP=rng.choice([0, 1, 2, 3], (count, 1)).astype(np.float32),
        safe_BPC=safe[:, None],
    )


def responses(pairs):
    """Ids of both responses of every pair but the last, which is empty."""
    return [
        [row[ids == segment].tolist() for segment in (1, 2)]
        for row, ids in zip(pairs.tokens_BT[:-1], pairs.segment_ids_BT[:-1], strict=True)
    ]


def updated(partitioner, *, accumulation_steps=1, pairs=None):
    """Parameters and metrics after one step of gradient descent."""
    model = ScoreModel(tiny.CONFIG, partitioner)
    update = make_update(
        preference_loss(model, safety_weight=1.0), SGD, accumulation_steps=accumulation_steps
    )
    state = state_from_params(place_tree(partitioner, params()), SGD, partitioner)
    step = compile_step(update, state, partitioner, donate=False)
    state, metrics = step(state, place_batch(partitioner, batch() if pairs is None else pairs))
    return state.params, jax.device_get(metrics)


@functools.cache
def updated_on_one_device():
    return updated(single_device())


def test_both_responses_of_a_pair_are_scored_as_rows_of_their_own():
    pairs = batch()
    _, metrics = updated_on_one_device()
    losses, safety, right = [], [], []
    for texts, (margin,), (safe,) in zip(responses(pairs), pairs.margin_BP, pairs.safe_BPC, strict=False):
        chosen, rejected = (numpy_llama.token_scores(params(), text, tiny.CONFIG)[-1] for text in texts)
        losses.append(np.log1p(np.exp(margin - (chosen - rejected))))
        right.append(chosen > rejected)
        safety += [
            np.log1p(np.exp(-score if label else score))
            for score, label in zip((chosen, rejected), safe, strict=True)
            if label >= 0
        ]
    assert metrics["pairs"] == 7
    assert metrics["tokens"] == metrics["source_tokens"][0] == (pairs.segment_ids_BT > 0).sum()
    np.testing.assert_allclose(metrics["ranking_loss"], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["safety_loss"], np.mean(safety), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], (np.sum(losses) + np.sum(safety) / 2) / 7, rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


def test_accumulation_changes_nothing_though_labels_and_empty_pairs_are_uneven():
    found, found_metrics = updated(single_device(), accumulation_steps=4)
    wanted, wanted_metrics = updated_on_one_device()
    tiny.assert_trees_close(found, wanted, rtol=1e-5, atol=1e-6)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(found_metrics[name], value, rtol=1e-5, err_msg=name)


def test_eight_devices_train_as_one_does():
    mesh = MeshConfig(preset="fsdp_tensor", data=2, fsdp=2, tensor=2)
    found, found_metrics = updated(make_partitioner(mesh))
    wanted, wanted_metrics = updated_on_one_device()
    tiny.assert_trees_close(found, wanted, rtol=1e-4, atol=1e-5)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(found_metrics[name], value, rtol=1e-4, err_msg=name)


def test_padding_and_empty_pairs_may_hold_anything():
    pairs = batch()
    garbage = np.where(pairs.segment_ids_BT == 0, 55, pairs.tokens_BT)
    wider = ((0, 0), (0, 36))
    padded = pairs._replace(
        tokens_BT=np.pad(garbage, wider, constant_values=-1),
        segment_ids_BT=np.pad(pairs.segment_ids_BT, wider),
        positions_BT=np.pad(pairs.positions_BT, wider),
        margin_BP=np.where(pairs.last_BPC[..., 0] >= 0, pairs.margin_BP, np.nan).astype(np.float32),
    )
    found, found_metrics = updated(single_device(), pairs=padded)
    wanted, wanted_metrics = updated_on_one_device()
    tiny.assert_trees_close(found, wanted, rtol=1e-4, atol=1e-6)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(found_metrics[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("share_prompts", [False, True])
def test_packed_pairs_train_as_pairs_in_rows_of_their_own(share_prompts):
    alone = batch()
    pairs = [
        EncodedPair(*texts, int(margin), tuple(safe))
        for texts, (margin,), (safe,) in zip(responses(alone), alone.margin_BP, alone.safe_BPC, strict=False)
    ]
    loader = PairLoader(
        pairs, MARGINS["large"], batch_size=len(pairs), epochs=1, seed=0, row_multiple=4,
        share_prompts=share_prompts,
    )  # fmt: skip
    (packed,) = loader.iterate()
    assert packed.tokens_BT.shape[0] == 4
    assert (packed.prefix_ids_BT is not None) == share_prompts
    saved = (alone.segment_ids_BT > 0).sum() - (packed.segment_ids_BT > 0).sum()
    assert saved >= 8 if share_prompts else saved == 0
    wanted, wanted_metrics = updated_on_one_device()
    eight = make_partitioner(MeshConfig(preset="fsdp_tensor", data=2, fsdp=1, tensor=4))
    split = make_partitioner(MeshConfig(preset="fsdp_tensor", data=2, sequence=2, tensor=2))
    for partitioner, accumulation_steps in (
        (single_device(), 1),
        (single_device(), 2),
        (eight, 2),
        (split, 1),
    ):
        found, metrics = updated(partitioner, accumulation_steps=accumulation_steps, pairs=packed)
        tiny.assert_trees_close(found, wanted, rtol=1e-4, atol=1e-5)
        for name, value in wanted_metrics.items():
            if name not in ("tokens", "source_tokens"):
                np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


SPECIAL, END = 7, 2


def planted_pairs(count, seed):
    """The better answer holds the token ``SPECIAL`` somewhere, its twin does not; both end with ``END``."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        prompt = rng.integers(8, 32, rng.integers(2, 8)).tolist()
        good, bad = (rng.integers(8, 32, rng.integers(4, 12)).tolist() for _ in range(2))
        good[rng.integers(len(good))] = SPECIAL
        pairs.append(EncodedPair([*prompt, *good, END], [*prompt, *bad, END], -1, (-1, -1)))
    return pairs


def test_a_planted_rule_is_learned_and_holds_on_new_pairs():
    model = ScoreModel(SMALL, single_device())
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, warmup_steps=5), num_steps=60)
    fresh = init_params(model, jax.random.key(0))
    state = state_from_params(fresh, optimizer, single_device())
    step = compile_step(make_update(preference_loss(model), optimizer), state, single_device())
    loader = PairLoader(planted_pairs(1920, seed=0), MARGINS["none"], batch_size=32, epochs=1, seed=0)
    batches = loader.iterate()
    heldout = planted_pairs(200, seed=1)
    rows = [row for pair in heldout for row in (pair.chosen, pair.rejected)]

    def accuracy(params):
        found = RewardModel(SMALL, params, None, LLAMA2, model, "guard", "")
        scores = score_rows(found, rows, batch_size=100).reshape(-1, 2)
        return (scores[:, 0] > scores[:, 1]).mean()

    assert accuracy(state.params) < 0.8
    for _ in range(60):
        state, _ = step(state, next(batches))
    assert accuracy(state.params) > 0.95


def reward_model(tokenizer, *, partitioner=None, **changes):
    config = ModelConfig(**{**SMALL.__dict__, "vocab_size": tokenizer.vocab_size})
    partitioner = partitioner or single_device()
    placed = place_tree(partitioner, params(config))
    fields = {"template": LLAMA2, "kind": "safety", "version": "v"} | changes
    return RewardModel(config, placed, tokenizer, model=ScoreModel(config, partitioner), **fields)


ROWS = [np.random.default_rng(n).integers(0, 400, n).tolist() for n in (40, 3, 64, 1, 17, 33, 32, 8, 5)]
ROWS += [[5, 9, 0], [0, 5]]  # 0 is the id of padding too


def test_scores_are_those_of_each_row_alone_in_the_order_given(tokenizer):
    found = reward_model(tokenizer)
    wanted = [numpy_llama.token_scores(params(found.config), row, found.config)[-1] for row in ROWS]
    for batch_size in (4, 16):
        scores = score_rows(found, ROWS, batch_size=batch_size)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)
    assert score_rows(found, [], batch_size=4).shape == (0,)


@pytest.mark.parametrize("impl", ["auto", "xla"])  # the second serves no prefixes
def test_samples_of_one_prompt_are_scored_as_each_alone(monkeypatch, impl):
    config = dataclasses.replace(SMALL, attention_impl=impl)
    model = ScoreModel(config, single_device(), pad_id=3)
    found = RewardModel(config, params(SMALL), None, LLAMA2, model, "guard", "")
    draw = np.random.default_rng(1)
    prompt, other = (draw.integers(4, 32, length).tolist() for length in (30, 20))
    rows = [prompt + draw.integers(4, 32, length).tolist() for length in (3, 9, 1, 5, 7)]
    rows += [[*prompt, 9, 3, 3], [*prompt, 3], [*other, 5], [*other, 6], [3, 3]]
    seen, batches = [], rm_module.text_batches
    monkeypatch.setattr(
        rm_module, "text_batches", lambda *a, **k: (seen.append(x) or x for x in batches(*a, **k))
    )
    scores = score_rows(found, rows, batch_size=8)
    ends = [row[: len(row) - 2] if row[-2:] == [3, 3] else row for row in rows]
    ends[6] = prompt
    wanted = [numpy_llama.token_scores(found.params, row, SMALL)[-1] for row in ends[:-1]]
    np.testing.assert_allclose(scores[:-1], wanted, rtol=1e-4, atol=1e-5)
    assert scores[-1] == 0  # nothing but padding
    tokens = sum(int((batch.segment_ids_BT > 0).sum()) for batch, _ in seen)
    # filling rows repeat the last one of their batch
    assert (tokens < sum(map(len, rows))) == (impl == "auto")


@pytest.mark.parametrize("parts", [1, 2])
def test_an_answer_of_the_policy_is_scored_as_its_row_alone(parts):
    model = ScoreModel(SMALL, single_device())
    found = RewardModel(SMALL, params(SMALL), None, LLAMA2, model, "guard", "")
    prompt_lengths, lengths = np.array([1, 5, 2, 4]), np.array([6, 1, 3, 4])
    ends = prompt_lengths + lengths
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 32, end).tolist() for end in ends]
    wanted = score_rows(found, rows, batch_size=4)
    assert np.ptp(wanted) > 0.1
    for after in (0, 31, END):  # whatever stands after the last token
        tokens_BT = np.full((4, 11), after, np.int32)
        for own, row in zip(tokens_BT, rows, strict=True):
            own[: len(row)] = row
        rollout = Rollout(tokens_BT, prompt_lengths, lengths, np.ones(4, bool), np.zeros((4, 6), np.float32))
        scores = reward_model_scores(model, found.params, rollout, parts=parts)
        np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-6)


def test_eight_devices_score_as_one_does(tokenizer):
    mesh = MeshConfig(preset="fsdp")
    spread = reward_model(tokenizer, partitioner=make_partitioner(mesh))
    wanted = score_rows(reward_model(tokenizer), ROWS, batch_size=8)
    np.testing.assert_allclose(score_rows(spread, ROWS, batch_size=8), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="batch_size = 12 is not divisible by 8"):
        score_rows(spread, ROWS, batch_size=12)


def test_rows_that_cannot_be_scored_are_named(tokenizer):
    with pytest.raises(ConfigError, match="row 1 has 0 tokens; the safety reward model scores 1 to 64"):
        score_rows(reward_model(tokenizer), [[1], []], batch_size=2)
    with pytest.raises(ConfigError, match="row 0 has 65 tokens"):
        score_rows(reward_model(tokenizer), [[1] * 65], batch_size=2)
    with pytest.raises(PromptError, match=r"row 1 has token id -7, outside the model's vocabulary"):
        score_rows(reward_model(tokenizer), [[1], [2, -7]], batch_size=2)


def test_scores_that_are_not_finite_are_refused(tokenizer):
    found = reward_model(tokenizer)
    broken = found._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, found.params))
    with pytest.raises(NonFiniteError, match=r"gives nan to row 0 \(11 of 11 rows have no finite score\)"):
        score_rows(broken, ROWS, batch_size=4)


def test_a_dialogue_is_scored_at_the_token_that_ends_it(tokenizer):
    found = reward_model(tokenizer)
    dialogues = [[Message("user", "the river"), Message("assistant", text)] for text in ("a", "a stone")]
    rows = [encode_response(dialogue, tokenizer, LLAMA2) for dialogue in dialogues]
    assert all(row[-1] == tokenizer.eos_id for row in rows)
    np.testing.assert_array_equal(
        score_dialogues(found, dialogues, batch_size=2), score_rows(found, rows, batch_size=2)
    )


def written(folder: Path, tokenizer, *, scale=1.0, **changes):
    """A workdir with a reward model at step 0, its parameters multiplied by ``scale``."""
    found = reward_model(tokenizer)
    found = found._replace(params=jax.tree.map(lambda leaf: scale * leaf, found.params))
    meta = reward_model_meta(found.config, tokenizer, "llama2", kind="safety", margin="none", data=["ab12"])
    write_params(folder, found.params, {**meta, **changes})
    tokenizer.save(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps({}), encoding="utf-8")
    return found


def test_a_checkpoint_comes_back_with_what_it_is(tokenizer, tmp_path):
    wanted = written(tmp_path / "a", tokenizer)
    found = load_reward_model(tmp_path / "a")
    assert (found.kind, found.template, found.config) == ("safety", LLAMA2, wanted.config)
    assert found.tokenizer.content_hash == tokenizer.content_hash
    np.testing.assert_array_equal(
        score_rows(found, ROWS, batch_size=4), score_rows(wanted, ROWS, batch_size=4)
    )


def test_versions_differ_iff_the_parameters_do(tokenizer, tmp_path):
    """Also where the same command was given again, after the model it starts from had become another."""
    for name, scale in (("a", 1.0), ("b", 1.0), ("c", 1.5)):
        written(tmp_path / name, tokenizer, scale=scale)
    a, b, c = (load_reward_model(tmp_path / name).version for name in "abc")
    assert a == b != c
    assert a.startswith("safety-0-")


def test_reward_models_and_chat_models_are_not_taken_for_each_other(tokenizer, tmp_path):
    written(tmp_path / "reward", tokenizer)
    with pytest.raises(ConfigError, match="is a reward model, which scores answers and writes none"):
        load(tmp_path / "reward")
    written(tmp_path / "chat", tokenizer, kind="")
    with pytest.raises(ConfigError, match="is no reward model but a language model"):
        load_reward_model(tmp_path / "chat")


def test_a_reward_model_for_a_policy_is_of_the_kind_asked_for_and_reads_what_it_writes(tokenizer, tmp_path):
    stored = written(tmp_path, tokenizer)
    config = dataclasses.replace(stored.config, compute_dtype="bfloat16")
    policy = LoadedModel(config, {}, tokenizer, LLAMA2, Transformer(config, single_device()), "policy")
    for kind in ("safety", "guard"):
        found = load_reward_model_for(policy, tmp_path, kind, field="config.rm")
        assert (found.kind, found.config.compute_dtype) == ("safety", "bfloat16")
    with pytest.raises(ConfigError, match=r"config.rm = .* a safety .*; name one trained for helpfulness"):
        load_reward_model_for(policy, tmp_path, "helpfulness", field="config.rm")
    with pytest.raises(ConfigError, match="with template 'llama2', the policy uses 'chatml'"):
        load_reward_model_for(policy._replace(template=CHATML), tmp_path, "safety", field="config.rm")


def test_another_tokenizer_beside_the_checkpoint_is_refused(tokenizer, tmp_path):
    written(tmp_path, tokenizer, tokenizer_hash="0" * 64)
    with pytest.raises(ConfigError, match=r"is not the one the checkpoint of step 0 was trained with"):
        load_reward_model(tmp_path)


def test_texts_of_another_template_or_tokenizer_are_refused(tokenizer, tmp_path):
    found = reward_model(tokenizer)
    check_same_text(found, tokenizer, LLAMA2)
    with pytest.raises(ConfigError, match="with template 'llama2', the policy uses 'chatml'"):
        check_same_text(found, tokenizer, CHATML)
    other = train_sentencepiece(make_texts(200, seed=1), tmp_path / "other.model", vocab_size=400)
    with pytest.raises(ConfigError, match="safety reward model was trained with tokenizer"):
        check_same_text(found, other, LLAMA2)
