"""Reward models as Hugging Face folders: where the score is read, bad folders, parity with transformers."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import Message
from llama2_jax.data.preference_batches import encode_response
from llama2_jax.interop.huggingface import load_huggingface
from llama2_jax.interop.huggingface_reward import load_huggingface_reward, save_huggingface_reward
from llama2_jax.interop.imported import FormatError
from llama2_jax.model.heads import ScoreModel, last_token_scores, token_scores
from llama2_jax.rlhf.reward_checkpoint import (
    is_reward_model,
    load_reward_model,
    load_reward_model_for,
    save_reward_model,
)
from llama2_jax.rlhf.reward_model import ANY, score_rows
from tests.experiments import runs
from tests.interop.tokenizers_for_tests import byte_level_tokenizer
from tests.rlhf.small_policy import saved_policy, saved_reward_model, stacked_policy
from tests.train.tiny_run import assert_bitwise_equal

ROWS = [[1, 20, 30, 40, 50, 2], [1, 9, 8, 7], [1, 2], [1, 30, 2, 2, 2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_reward_model(tmp_path / "rm", load_reward_model(saved_reward_model("safety", 3)))
    return tmp_path / "rm"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_ours_comes_back_bitwise_and_says_what_it_is_for(folder: Path) -> None:
    ours, back = load_reward_model(saved_reward_model("safety", 3)), load_reward_model(folder)
    assert_bitwise_equal(jax.device_get(back.params), jax.device_get(ours.params))
    assert (back.kind, back.template.name, back.config) == ("safety", "llama2", ours.config)
    assert back.tokenizer.content_hash == ours.tokenizer.content_hash
    np.testing.assert_array_equal(score_rows(back, ROWS, batch_size=2), score_rows(ours, ROWS, batch_size=2))
    settings = json.loads((folder / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForSequenceClassification"]
    assert (settings["id2label"], settings["pad_token_id"]) == ({"0": "safety"}, 0)  # <unk>
    assert settings["label2id"] == {"safety": 0}
    assert load_huggingface_reward(folder, template="chatml").model.template == "chatml"
    assert load_huggingface_reward(folder).pad_id == 0
    found = tensors(folder)
    assert found["score.weight"].shape == (1, 32)
    assert "lm_head.weight" not in found


def test_the_score_is_read_before_trailing_padding_tokens(folder: Path) -> None:
    """HFW-5, with EOS as padding: the last token that is none, though EOS ended the answer."""
    edit(folder, pad_token_id=2)
    found = load_reward_model(folder)
    cut = [[1, 20, 30, 40, 50], [1, 9, 8, 7], [1], [1, 30]]
    wanted = score_rows(load_reward_model(saved_reward_model("safety", 3)), cut, batch_size=2)
    np.testing.assert_allclose(score_rows(found, ROWS, batch_size=2), wanted, rtol=1e-5)
    save_reward_model(folder.parent / "again", found)
    again = load_reward_model(folder.parent / "again")
    np.testing.assert_array_equal(
        score_rows(again, ROWS, batch_size=2), score_rows(found, ROWS, batch_size=2)
    )


def test_padding_inside_a_row_is_a_token_like_others() -> None:
    model = ScoreModel(stacked_policy().config, pad_id=2)
    tokens, lengths = (
        np.array([[1, 2, 30, 2, 7, 7], [2, 2, 2, 2, 2, 2]], np.int32),
        np.array([4, 0], np.int32),
    )
    params = model.init(jax.random.key(0), tokens)["params"]
    scores = last_token_scores(model, params, tokens, lengths)
    every = token_scores(model, params, tokens, lengths)
    np.testing.assert_allclose(scores, [every[0, 2], 0.0])


def test_a_model_of_others_may_be_taken_for_any_kind(folder: Path) -> None:
    policy = stacked_policy()
    with pytest.raises(ConfigError, match="is a safety reward model; name one trained for helpfulness"):
        load_reward_model_for(policy, folder, "helpfulness", field="config.rm")
    edit(folder, id2label={"0": "LABEL_0"})
    found = load_reward_model_for(policy, folder, "helpfulness", field="config.rm")
    assert found.kind == ANY
    assert found.version.startswith("any-")


def test_without_unk_there_is_no_padding_token(tmp_path: Path) -> None:
    ours = load_reward_model(saved_reward_model("safety", 3))
    save_huggingface_reward(
        tmp_path / "rm", ours.config, ours.params,
        tokenizer=byte_level_tokenizer(), template="llama2", label="safety", pad_id=-1,
    )  # fmt: skip
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["pad_token_id"] is None


def test_the_version_changes_with_the_weights(folder: Path) -> None:
    before = load_reward_model(folder).version
    found = tensors(folder)
    found["score.weight"][0, 0] += 0.5
    safetensors.numpy.save_file(found, folder / "model.safetensors")
    assert load_reward_model(folder).version != before


def test_what_is_no_reward_model_is_refused(folder: Path, tmp_path: Path) -> None:
    assert is_reward_model(folder)
    assert not is_reward_model(saved_policy())
    with pytest.raises(FormatError, match="which writes no answers; give a chat model"):
        load_huggingface(folder)
    for name in ("tokenizer.model", "tokenizer.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_reward_model(folder)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (None, r"score\.weight is missing"),
        (np.zeros((2, 32), np.float32), r"float32 of shape \(2, 32\), it must be of floats and \(1, 32\)"),
        (np.zeros((1, 16), np.float32), r"float32 of shape \(1, 16\), it must be of floats and \(1, 32\)"),
        (np.zeros((1, 32), np.int32), "score.weight is int32"),
    ],
)
def test_heads_that_give_no_single_score_are_refused(folder: Path, head: Any, message: str) -> None:
    found = {name: array for name, array in tensors(folder).items() if name != "score.weight"}
    if head is not None:
        found["score.weight"] = head
    safetensors.numpy.save_file(found, folder / "model.safetensors")
    with pytest.raises(FormatError, match=message):
        load_huggingface_reward(folder)


def test_an_extra_tensor_and_a_wrong_padding_id_are_named(folder: Path) -> None:
    edit(folder, pad_token_id=10_000)
    with pytest.raises(
        FormatError, match="pad_token_id is 10000; it must be the number of a token, below 340"
    ):
        load_huggingface_reward(folder)
    edit(folder, pad_token_id=None)
    assert load_huggingface_reward(folder).pad_id == -1
    safetensors.numpy.save_file(
        tensors(folder) | {"v_head.weight": np.zeros((1, 32), np.float32)}, folder / "model.safetensors"
    )
    with pytest.raises(FormatError, match="extra: v_head.weight"):
        load_huggingface_reward(folder)


def test_convert_writes_a_reward_model(tmp_path: Path) -> None:
    source = saved_reward_model("helpfulness")
    arguments = [f"--from={source}", f"--to={tmp_path / 'rm'}"]
    done = runs.run_program("experiments.convert", *arguments)
    assert done.returncode == 0, done.stderr
    assert load_reward_model(tmp_path / "rm").kind == "helpfulness"
    native = runs.run_program("experiments.convert", *arguments, "--format=native")
    assert native.returncode == 2
    assert "it is written by --format=huggingface" in native.stderr


def test_convert_keeps_the_dtype_of_a_folder_and_refuses_one_that_is_too_small(tmp_path: Path) -> None:
    ours = load_reward_model(saved_reward_model("helpfulness"))
    large = {**ours.params, "w_score_D": ours.params["w_score_D"].at[0].set(1e5)}
    half, back = tmp_path / "half", tmp_path / "back"
    save_reward_model(half, ours._replace(params=large), dtype="bfloat16")
    done = runs.run_program("experiments.convert", f"--from={half}", f"--to={back}")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "config.json"):
        assert (back / name).read_bytes() == (half / name).read_bytes()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(load_reward_model(half).params)} == {"float32"}
    with pytest.raises(ConfigError, match=r"w_score_D has 1 value\(s\) beyond the largest of float16, "):
        save_reward_model(tmp_path / "new", load_reward_model(half), dtype="float16")


def theirs(folder: Path, rows: list[list[int]], pad_id: int) -> np.ndarray:
    """Scores of ``transformers``, all rows in one batch."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    length = max(map(len, rows))
    padded = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.no_grad():
        return model.eval()(padded, attention_mask=mask).logits.numpy()[:, 0]


@pytest.mark.parametrize("pad_id", [0, 2])
def test_scores_are_those_of_transformers(folder: Path, pad_id: int) -> None:
    """Ours opened by them, with the padding that we write, and with EOS as many folders have it."""
    pytest.importorskip("transformers")
    edit(folder, pad_token_id=pad_id)
    found = load_reward_model(folder)
    dialogue = [Message("user", "The small model"), Message("assistant", "reads a letter.")]
    rows = [*ROWS, encode_response(dialogue, found.tokenizer, found.template)]
    wanted = theirs(folder, rows, pad_id)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(score_rows(found, rows, batch_size=3), wanted, rtol=0, atol=1e-4)


def test_a_folder_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=runs.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64, num_labels=1, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForSequenceClassification(settings).save_pretrained(tmp_path / "rm")
    stacked_policy().require_tokenizer().save(tmp_path / "rm")
    found = load_reward_model(tmp_path / "rm")
    assert found.kind == ANY
    wanted = theirs(tmp_path / "rm", ROWS, 0)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(score_rows(found, ROWS, batch_size=4), wanted, rtol=0, atol=1e-4)
