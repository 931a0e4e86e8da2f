"""One model in every format: the same scores and completions through the one door."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece

from experiments.generate import complete_rows
from experiments.score import add_logprobs
from llama2_jax.config import ConfigError
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.interop.tree import file_tensors
from llama2_jax.pretrained import LoadedModel, for_decoding, load, save_huggingface, save_native
from tests.experiments import runs
from tests.interop.torch_writer import write_torch
from tools.fetch_assets import ASSETS

SMOLLM2 = ASSETS["smollm2"].path
GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)
PROMPTS = [
    {"prompt": "The small model"},
    {"messages": [{"role": "user", "content": "What is a token?"}]},
    {"prompt": "  naïve 2023\n"},
]
TEXTS = [
    {"prompt": "The small model", "completion": " reads 23 letters in the morning."},
    {"prompt": "", "completion": "  naïve 漢字\n"},
]


def native(folder: Path, loaded: LoadedModel) -> Path:
    save_native(folder, loaded)
    return folder


def huggingface(folder: Path, loaded: LoadedModel) -> Path:
    save_huggingface(folder, loaded)
    return folder


def meta(folder: Path, loaded: LoadedModel) -> Path:
    config, params = loaded.config, jax.device_get(loaded.params)
    folder.mkdir()
    settings = {
        "dim": config.model_width,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "multiple_of": 32,
        "norm_eps": config.norm_epsilon,
        "vocab_size": -1,
        "max_seq_len": config.max_context,
    }
    (folder / "params.json").write_text(json.dumps(settings))
    tensors = file_tensors(config, params, style="meta")
    write_torch(folder / "consolidated.00.pth", {name: np.asarray(t.read()) for name, t in tensors.items()})
    loaded.require_tokenizer().save(folder)
    return folder


def gguf(folder: Path, loaded: LoadedModel) -> Path:
    pytest.importorskip("gguf")
    from tests.interop import test_gguf

    folder.mkdir()
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(loaded.require_tokenizer().save(folder / "tokenizer"))
    )
    ids = range(pieces.vocab_size())

    def kind(i: int) -> int:
        checks = [(pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_byte, 6)]
        return next((number for check, number in checks if check(i)), 1)

    def header(writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([pieces.id_to_piece(i) for i in ids])
        writer.add_token_scores([pieces.get_score(i) for i in ids])
        writer.add_token_types([kind(i) for i in ids])
        writer.add_bos_token_id(pieces.bos_id())
        writer.add_eos_token_id(pieces.eos_id())

    params = jax.device_get(loaded.params)
    return test_gguf._write(folder / "model.gguf", loaded.config, params, header=header)


@pytest.fixture(scope="module")
def wanted() -> tuple[list[dict], list[dict]]:
    loaded = runs.chat_model()
    return (
        add_logprobs(loaded, TEXTS, batch_size=2),
        list(complete_rows(loaded, PROMPTS, GREEDY, batch_size=3, seed=0)),
    )


@pytest.mark.parametrize("write", [native, huggingface, meta, gguf])
def test_every_format_gives_the_same_scores_and_completions(
    tmp_path: Path, wanted: tuple[list[dict], list[dict]], write: Callable[[Path, LoadedModel], Path]
) -> None:
    loaded = load(write(tmp_path / "model", runs.chat_model()))
    assert loaded.template.name == runs.chat_model().template.name
    scored = add_logprobs(loaded, TEXTS, batch_size=2)
    completed = list(complete_rows(for_decoding(loaded), PROMPTS, GREEDY, batch_size=3, seed=0))
    for found, expected in zip([*scored, *completed], [*wanted[0], *wanted[1]], strict=True):
        logprobs, expected_logprobs = (
            [x for x in row["logprobs"] if x is not None] for row in (found, expected)
        )
        assert logprobs == pytest.approx(expected_logprobs, abs=1e-5)
        for key in ("tokens", "completion", "completion_tokens", "stopped"):
            assert found.get(key) == expected.get(key)


def test_unstacked_model_is_not_saved_and_has_its_own_config(tmp_path: Path) -> None:
    loaded = for_decoding(load(runs.fine_tuned_workdir(), remat_policy="full"))
    assert loaded.config == loaded.model.config
    assert loaded.config.remat_policy == "none"
    with pytest.raises(ConfigError, match=r"layers are unstacked \(for_decoding\); save the model that load"):
        save_native(tmp_path / "native", loaded)
    assert not (tmp_path / "native").exists()


@pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"{SMOLLM2} is missing; fetch it with: make smollm2-files")
def test_smollm2_knows_the_capital_of_france() -> None:
    pytest.importorskip("gguf")
    loaded = for_decoding(load(SMOLLM2))
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    (row,) = complete_rows(loaded, [question], GREEDY, batch_size=1, seed=0)
    assert row["completion"] == "The capital of France is Paris."
    assert row["stopped"]
