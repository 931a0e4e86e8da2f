"""One door for models at rest: what comes through it, and what it refuses."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax import pretrained
from llama2_jax.config import ConfigError
from llama2_jax.generate.decode import PromptError, generate, row_ids
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score
from llama2_jax.interop.file_leaf import FileLeaf
from llama2_jax.interop.imported import FormatError, Imported, LazyTensor
from llama2_jax.pretrained import (
    LoadedModel,
    for_decoding,
    load,
    release_params,
    save_huggingface,
    save_native,
)
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.rules import make_partitioner
from llama2_jax.train.checkpoint import CheckpointError, read_meta
from tests.compilations import share
from tests.experiments import runs
from tests.interop.models import SHAPES, random_params
from tests.train.tiny_run import assert_bitwise_equal

share()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A workdir to break."""
    return Path(shutil.copytree(runs.pretrained_workdir(), tmp_path / "copied"))


def test_workdir_gives_config_parameters_tokenizer_and_template() -> None:
    loaded = load(runs.pretrained_workdir())
    assert loaded.config.vocab_size == runs.VOCABULARY == loaded.require_tokenizer().vocab_size
    assert loaded.template.name == "llama2"
    assert loaded.source == f"workdir {runs.pretrained_workdir()}, step 20"
    tokens_BT = np.array([loaded.require_tokenizer().encode("The model", bos=True)])
    logits_BTV = loaded.model.apply({"params": loaded.params}, tokens_BT).logits_BTV
    assert logits_BTV.shape == (*tokens_BT.shape, runs.VOCABULARY)
    assert np.isfinite(logits_BTV).all()


@pytest.mark.parametrize("form", ["native", "huggingface"])
def test_all_but_the_parameters_is_known_without_reading_them(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(runs.pretrained_workdir())
    save = {"native": save_native, "huggingface": save_huggingface}[form]
    save(tmp_path / "saved", loaded)

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pretrained, "read_params", never)
    monkeypatch.setattr(FileLeaf, "read", never)
    opened = load(tmp_path / "saved", with_params=False)
    assert opened.params is None
    assert (opened.config, opened.template) == (loaded.config, loaded.template)
    assert opened.require_tokenizer().content_hash == loaded.require_tokenizer().content_hash


def test_step_can_be_chosen() -> None:
    early, late = (load(runs.pretrained_workdir(), step=step) for step in (10, 20))
    assert early.source.endswith("step 10")
    assert not np.array_equal(early.params["embedding_VD"], late.params["embedding_VD"])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15; it has \[10, 20\]"):
        load(runs.pretrained_workdir(), step=15)


def test_dtype_and_numerics_can_be_chosen() -> None:
    loaded = load(
        runs.pretrained_workdir(),
        dtype="bfloat16",
        compute_dtype="bfloat16",
        remat_policy="full",
        template="chatml",
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("bfloat16")}
    assert (loaded.config.compute_dtype, loaded.config.remat_policy) == ("bfloat16", "full")
    assert loaded.template.name == "chatml"
    with pytest.raises(ConfigError, match="chat template is 'alpaca'; choose one of"):
        load(runs.pretrained_workdir(), template="alpaca")


def test_ids_beyond_the_tokenizer_are_never_predicted(tmp_path: Path) -> None:
    """Embeddings come padded to a round number of rows; the spare ones are not even rare answers."""
    known = load(runs.pretrained_workdir())
    size = known.require_tokenizer().vocab_size
    rows, columns = ((0, 64), (0, 0)), ((0, 0), (0, 64))
    padded = {
        **known.params,
        "embedding_VD": jnp.pad(known.params["embedding_VD"], rows),
        "unembedding_DV": jnp.pad(known.params["unembedding_DV"], columns),
    }
    config = dataclasses.replace(known.config, vocab_size=size + 64)
    save_huggingface(tmp_path / "hf", known._replace(params=padded, config=config))
    save_native(tmp_path / "native", known._replace(params=padded, config=config))
    prompt = known.require_tokenizer().encode("The model", bos=True)
    wanted = known.model.apply({"params": known.params}, np.array([prompt])).logits_BTV
    for folder in ("hf", "native"):
        loaded = load(tmp_path / folder)
        assert (loaded.config.vocab_size, loaded.config.tokenizer_size) == (size + 64, size)
        found = loaded.model.apply({"params": loaded.params}, np.array([prompt])).logits_BTV
        np.testing.assert_allclose(jax.nn.softmax(found)[..., :size], jax.nn.softmax(wanted), atol=1e-6)
        assert (
            read_meta(tmp_path / "native")[1]["model"].get("tokenizer_size") is None
        )  # the tokenizer says it
    with pytest.raises(PromptError, match=f"row 0 has token id {size}"):
        score(loaded.model, loaded.params, [[*prompt, size]])
    # at this temperature all ids are as likely
    decoder, sampling = for_decoding(loaded), SamplingConfig(max_new_tokens=50, temperature=1e6)
    out = generate(decoder.model, decoder.params, [prompt] * 8, sampling, stop_ids=())
    drawn = np.concatenate([row_ids(out, row)[1] for row in range(8)])
    assert len(drawn) == 400
    assert drawn.max() < size


def test_each_parameter_is_read_and_placed_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, device_put = [], jax.device_put

    def in_file(array):
        def read():
            steps.append("read")
            return array

        tensor = LazyTensor(array.shape, array.dtype, read)
        return FileLeaf(array.shape, array.dtype, (tensor,), np.asarray, stacked=False)

    def put(array, device):
        steps.append("place")
        return device_put(array, device)

    config = SHAPES["plain"]
    params = jax.tree.map(in_file, random_params(config, dtype="bfloat16"))
    imported = Imported(config, params, None, "llama2", "test")
    monkeypatch.setattr(pretrained, "checkpoint_kind", lambda path: "gguf")
    monkeypatch.setattr(pretrained, "load_gguf", lambda path, template: imported)
    monkeypatch.setattr(jax, "device_put", put)
    load(tmp_path)
    assert steps == ["read", "place"] * len(jax.tree.leaves(params))


def test_an_unknown_template_name_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chat template is 'alpaca'; choose one of"):
        load(tmp_path / "absent", template="alpaca")


@pytest.mark.parametrize("dtype", ["fp16", "int8", "float64", "complex64"])
def test_other_dtypes_are_refused_before_anything_is_read(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(
        ConfigError, match=f"dtype is '{dtype}'; choose one of 'float32', 'float16', 'bfloat16'"
    ):
        load(tmp_path, dtype=dtype)


def test_parameters_go_where_the_partitioner_says() -> None:
    partitioner = make_partitioner(MeshConfig("fsdp_tensor", fsdp=4, tensor=2))
    spread, single = load(runs.pretrained_workdir(), partitioner=partitioner), load(runs.pretrained_workdir())
    embedding = spread.params["embedding_VD"]
    assert embedding.sharding.mesh.shape == {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
    assert embedding.addressable_shards[0].data.shape == (runs.VOCABULARY // 2, 64 // 4)
    assert_bitwise_equal(jax.device_get(spread.params), jax.device_get(single.params))


def test_replaced_tokenizer_is_refused(copied: Path) -> None:
    path = copied / "tokenizer" / "tokenizer.model"
    path.write_bytes(path.read_bytes() + b"\x12\x02\x20\x00")  # still a model, of other content
    with pytest.raises(ConfigError, match=r"is not the one the checkpoint of step 20 was trained with"):
        load(copied)


def test_workdir_without_tokenizer_loads_and_says_so_when_one_is_needed(copied: Path) -> None:
    shutil.rmtree(copied / "tokenizer")
    loaded = load(copied)
    assert loaded.tokenizer is None
    with pytest.raises(
        ConfigError, match=r"has no tokenizer; put its tokenizer.model or tokenizer.json beside"
    ):
        loaded.require_tokenizer()


def test_damaged_checkpoint_is_named_and_an_older_one_still_loads(copied: Path) -> None:
    parameters = copied / "checkpoints" / "20" / "params"
    largest = max((p for p in parameters.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="checkpoint 20 in .* cannot be read"):
        load(copied)
    assert load(copied, step=10).source.endswith("step 10")


def test_nothing_to_load_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is no checkpoint: found an empty folder. Looked for"):
        load(tmp_path)
    with pytest.raises(FormatError, match="does not exist"):
        load(tmp_path / "absent")


def test_run_that_has_not_saved_yet_is_no_model(copied: Path) -> None:
    for step in ("10", "20"):
        shutil.rmtree(copied / "checkpoints" / step)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        load(copied)


def with_fewer_rows(loaded: LoadedModel) -> LoadedModel:
    config = dataclasses.replace(loaded.config, vocab_size=320)
    params = {
        **loaded.params,
        "embedding_VD": loaded.params["embedding_VD"][:320],
        "unembedding_DV": loaded.params["unembedding_DV"][:, :320],
    }
    return loaded._replace(config=config, params=params)


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    save_native(tmp_path / "small", with_fewer_rows(load(runs.pretrained_workdir())))
    with pytest.raises(FormatError, match="small: the tokenizer has 340 tokens, the embedding 320 rows"):
        load(tmp_path / "small")


def test_parameters_to_start_from_are_given_once_and_not_to_a_run_that_goes_on(tmp_path: Path) -> None:
    loaded = load(runs.pretrained_workdir())
    left, start = release_params(loaded, tmp_path, lambda params: {"body": params})
    assert left.params is None
    assert start()["body"] is loaded.params
    for again in (start, release_params(loaded, runs.pretrained_workdir())[1]):
        with pytest.raises(IndexError):
            again()


def test_saved_native_is_step_0_of_the_same_model(tmp_path: Path) -> None:
    loaded = load(runs.pretrained_workdir())
    save_native(tmp_path / "native", loaded)
    again = load(tmp_path / "native")
    assert again.source.endswith("step 0")
    assert again.config == loaded.config
    assert_bitwise_equal(jax.device_get(again.params), jax.device_get(loaded.params))


def test_sharded_parameters_are_saved_whole(tmp_path: Path) -> None:
    partitioner = make_partitioner(MeshConfig("fsdp", fsdp=8))
    spread, single = load(runs.pretrained_workdir(), partitioner=partitioner), load(runs.pretrained_workdir())
    save_huggingface(tmp_path / "huggingface", spread)
    assert_bitwise_equal(jax.device_get(load(tmp_path / "huggingface").params), jax.device_get(single.params))
