import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments.score import add_logprobs
from llama2_jax.config import ConfigError
from llama2_jax.interop.imported import FormatError
from llama2_jax.pretrained import FORMATS, convert, load
from tests.experiments import runs
from tests.train.tiny_run import assert_bitwise_equal

ROWS = [{"tokens": [1, 20, 30, 40]}, {"prompt": "The small model", "completion": " reads a letter."}]


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "huggingface"
    convert(runs.fine_tuned_workdir(), folder, output_format="huggingface")
    return folder


def test_native_to_huggingface_and_back_is_bitwise(huggingface: Path, tmp_path: Path) -> None:
    convert(huggingface, tmp_path / "native", output_format="native")
    original, back = runs.chat_model(), load(tmp_path / "native")
    assert_bitwise_equal(jax.device_get(back.params), jax.device_get(original.params))
    assert back.config == original.config
    assert back.template.name == original.template.name
    assert back.require_tokenizer().content_hash == original.require_tokenizer().content_hash
    sums = [[row["sum"] for row in add_logprobs(loaded, ROWS, batch_size=2)] for loaded in (original, back)]
    assert sums[0] == sums[1]


def test_huggingface_folder_scores_the_same(huggingface: Path) -> None:
    ours = add_logprobs(runs.chat_model(), ROWS, batch_size=2)
    theirs = add_logprobs(load(huggingface), ROWS, batch_size=2)
    assert [row["logprobs"] for row in theirs] == [row["logprobs"] for row in ours]


def test_weights_keep_the_dtype_of_the_source(huggingface: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    convert(huggingface, half, output_format="huggingface", dtype="bfloat16")
    convert(half, tmp_path / "native", output_format="native")
    kept = load(tmp_path / "native", dtype=None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept.params)} == {"bfloat16"}
    assert_bitwise_equal(jax.device_get(kept.params), jax.device_get(load(half, dtype=None).params))
    convert(tmp_path / "native", tmp_path / "back", output_format="huggingface")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (half, tmp_path / "back")]
    assert weights[0] == weights[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(load(tmp_path / "native").params)} == {"float32"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cast_that_would_make_values_infinite_is_refused(
    huggingface: Path, tmp_path: Path, kind: str
) -> None:
    source, path = tmp_path / "source", tmp_path / "huggingface" / "model.safetensors"
    shutil.copytree(huggingface, path.parent)
    tensors = safetensors.numpy.load_file(path)
    tensors["model.norm.weight"][:2] = 1e5, np.inf  # what is infinite already may stay so
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    convert(path.parent, source, output_format=kind)
    with pytest.raises(
        ConfigError, match=r"final_norm/scale_D has 1 value\(s\) beyond the largest of float16, 100000"
    ):
        convert(source, tmp_path / "half", output_format="huggingface", dtype="float16")
    assert not (tmp_path / "half").exists()
    convert(source, tmp_path / "half", output_format="huggingface", dtype="bfloat16")


@pytest.mark.parametrize("output_format", FORMATS)
def test_target_with_something_in_it_is_refused(tmp_path: Path, output_format: str) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(
        (ConfigError, FormatError), match="is not empty; give a new folder, nothing was written"
    ):
        convert(runs.fine_tuned_workdir(), tmp_path, output_format=output_format)
    with pytest.raises(
        (ConfigError, FormatError), match=r"keep\.txt exists and is not empty; give a new folder"
    ):
        convert(runs.fine_tuned_workdir(), tmp_path / "keep.txt", output_format=output_format)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gguf'; choose one of 'huggingface', 'native'"):
        convert(runs.fine_tuned_workdir(), tmp_path / "x", output_format="gguf")


def test_converted_native_folder_can_be_fine_tuned(huggingface: Path, tmp_path: Path) -> None:
    from experiments import sft

    convert(huggingface, tmp_path / "native", output_format="native")
    config = runs.sft_config(tmp_path / "native", data__epochs=0.5, data__heldout="", eval__sample_prompts=())
    sft.run(config, tmp_path / "run")
    before, after = runs.chat_model().params, load(tmp_path / "run").params
    assert not np.array_equal(before["embedding_VD"], after["embedding_VD"])


def test_program_says_what_it_did(tmp_path: Path) -> None:
    source, target = runs.fine_tuned_workdir(), tmp_path / "huggingface"
    arguments = [f"--from={source}", f"--to={target}", "--format=huggingface"]
    result = runs.run_program("experiments.convert", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"-> {target} (huggingface), " in result.stdout
    assert_bitwise_equal(jax.device_get(load(target).params), jax.device_get(runs.chat_model().params))
    again = runs.run_program("experiments.convert", *arguments)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
