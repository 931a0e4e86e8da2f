import json

import numpy as np
import pytest

from llama2_jax.interop.imported import FormatError
from llama2_jax.interop.mapping import slots
from llama2_jax.interop.meta import load_meta
from llama2_jax.interop.torch_file import open_torch
from llama2_jax.interop.tree import file_tensors
from llama2_jax.model.config import ModelConfig, feed_forward_width
from tests.interop.models import assert_same_params, random_params
from tests.interop.tokenizers_for_tests import sentencepiece_tokenizer
from tests.interop.torch_writer import write_torch

CONFIG = ModelConfig(
    vocab_size=96,
    model_width=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    feed_forward_width=feed_forward_width(32, multiple_of=16),
)
SETTINGS = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 4,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "vocab_size": -1,
}


def _write_shards(folder, tensors, count, write=write_torch):
    """Split as Meta's model-parallel layers do; norms and buffers are in every shard."""
    dims = {name: slot.row.split_dim for name, slot in slots(CONFIG, "meta")}
    for number in range(count):
        shard = {
            name: array if dims[name] is None else np.split(array, count, axis=dims[name])[number]
            for name, array in tensors.items()
        }
        write(folder / f"consolidated.{number:02d}.pth", shard | {"rope.freqs": np.ones(2, np.float32)})


def _write_folder(folder, params, *, count=1, settings=SETTINGS, write=write_torch):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(settings))
    tensors = {name: tensor.read() for name, tensor in file_tensors(CONFIG, params, style="meta").items()}
    _write_shards(folder, tensors, count, write)
    return folder


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_number_of_shards_gives_the_same_parameters(tmp_path, count, dtype):
    params = random_params(CONFIG, dtype=dtype)
    loaded = load_meta(_write_folder(tmp_path / "m", params, count=count))
    assert loaded.config == CONFIG
    assert loaded.template == "llama2"
    assert loaded.tokenizer is None
    assert_same_params(loaded.params, params, CONFIG)


def test_layout_against_the_matrices_of_the_reference_code(tmp_path):
    """Independent of the table: y = x W^T, heads are consecutive rows."""
    params = random_params(CONFIG)
    folder = _write_folder(tmp_path / "m", params)
    tensors = open_torch(folder / "consolidated.00.pth")
    x = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    attention, feed_forward = (
        {name: leaf[1] for name, leaf in params["layers"][part].items()}
        for part in ("attention", "feed_forward")
    )
    queries = (tensors["layers.1.attention.wq.weight"].read() @ x).reshape(8, 4)
    np.testing.assert_allclose(np.einsum("d,dnh->nh", x, attention["w_q_DNH"]), queries, rtol=1e-5, atol=1e-6)
    out = tensors["layers.1.attention.wo.weight"].read() @ queries.reshape(-1)
    np.testing.assert_allclose(
        np.einsum("nh,nhd->d", queries, attention["w_o_NHD"]), out, rtol=1e-4, atol=1e-5
    )
    up = tensors["layers.1.feed_forward.w3.weight"].read() @ x
    np.testing.assert_allclose(x @ feed_forward["w_up_DF"], up, rtol=1e-4, atol=1e-5)


def test_defaults_of_params_json(tmp_path):
    """n_kv_heads defaults to n_heads; rope_theta and max_seq_len count where present (Code Llama)."""
    settings = {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 8,
        "multiple_of": 16,
        "rope_theta": 1e6,
        "max_seq_len": 99,
    }
    folder = _write_folder(tmp_path / "m", random_params(CONFIG), settings=settings)
    with pytest.raises(FormatError, match=r"wk.weight is \(16, 32\) in the file, \(32, 32\) by the config"):
        load_meta(folder)
    (folder / "params.json").write_text(json.dumps(settings | {"n_kv_heads": 4}))
    config = load_meta(folder).config
    assert (config.rope_base, config.max_context, config.norm_epsilon) == (1e6, 99, 1e-5)
    assert load_meta(folder, template="chatml").template == "chatml"
    nothing = {"ffn_dim_multiplier": None, "use_scaled_rope": None}
    (folder / "params.json").write_text(json.dumps(SETTINGS | nothing))
    assert load_meta(folder).config == CONFIG


def test_the_width_follows_from_multiple_and_multiplier(tmp_path):
    folder = _write_folder(tmp_path / "m", random_params(CONFIG))
    without = {key: value for key, value in SETTINGS.items() if key != "multiple_of"}
    for settings, width in ((SETTINGS | {"ffn_dim_multiplier": 1.3}, 112), (without, 256)):  # 85 or 110, up
        (folder / "params.json").write_text(json.dumps(settings))
        with pytest.raises(FormatError, match=rf"w1.weight is \(96, 32\) in the file, \({width}, 32\) by"):
            load_meta(folder)


def test_missing_and_uneven_shards_are_named(tmp_path):
    folder = _write_folder(tmp_path / "m", random_params(CONFIG), count=2)
    second = folder / "consolidated.01.pth"
    second.rename(folder / "consolidated.02.pth")
    with pytest.raises(FormatError, match=r"numbered from 00 without gaps"):
        load_meta(folder)
    (folder / "consolidated.02.pth").unlink()
    with pytest.raises(FormatError, match=r"tok_embeddings.weight is \(96, 16\) in the file, \(96, 32\)"):
        load_meta(folder)
    write_torch(second, {"norm.weight": np.ones(32, np.float32)})
    with pytest.raises(FormatError, match=r"consolidated.01.pth lacks layers.0.attention.wq.weight"):
        load_meta(folder)
    tensors = {name: tensor.read() for name, tensor in open_torch(folder / "consolidated.00.pth").items()}
    write_torch(second, tensors | {"output.weight": np.ones((40, 32), np.float32)})
    with pytest.raises(
        FormatError, match=r"output.weight has shapes \[\(48, 32\), \(40, 32\)\] in the shards"
    ):
        load_meta(folder)


def test_extra_tensors_and_scaled_rope_are_refused(tmp_path):
    params = random_params(CONFIG)

    def with_bias(path, tensors):
        write_torch(path, tensors | {"layers.0.attention.wq.bias": np.ones(32, np.float32)})

    with pytest.raises(FormatError, match=r"extra: layers.0.attention.wq.bias \(32,\)"):
        load_meta(_write_folder(tmp_path / "a", params, write=with_bias))
    with pytest.raises(FormatError, match="use_scaled_rope"):
        load_meta(_write_folder(tmp_path / "b", params, settings=SETTINGS | {"use_scaled_rope": True}))
    with pytest.raises(FormatError, match="lacks n_layers"):
        load_meta(_write_folder(tmp_path / "c", params, settings={"dim": 32, "n_heads": 8}))
    with pytest.raises(FormatError, match=r"params.json does not exist"):
        load_meta(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({key: None}, f"{key} is null; it must be") for key in SETTINGS if key != "n_kv_heads"),
        *(({key: "8"}, f'{key} is "8"; it must be') for key in SETTINGS),
        ({"multiple_of": 0}, "multiple_of is 0; it must be a positive whole number"),
        ({"ffn_dim_multiplier": "1.3"}, 'ffn_dim_multiplier is "1.3"'),
        ({"rope_theta": "1e6"}, 'rope_theta is "1e6"; it must be a finite number'),
        ({"max_seq_len": 0.5}, "max_seq_len is 0.5"),
        ({"n_kv_heads": 3}, "num_kv_heads = 3"),
    ],
)
def test_wrong_fields_are_named(tmp_path, changes, message):
    folder = _write_folder(tmp_path / "m", random_params(CONFIG), settings=SETTINGS | changes)
    with pytest.raises(FormatError, match=rf"params\.json: .*{message}"):
        load_meta(folder)


def test_an_embedding_that_is_no_matrix_is_refused(tmp_path):
    folder = _write_folder(tmp_path / "m", random_params(CONFIG))
    write_torch(folder / "consolidated.00.pth", {"tok_embeddings.weight": np.ones(32, np.float32)})
    with pytest.raises(FormatError, match=r"tok_embeddings.weight has shape \(32,\), it must be a matrix"):
        load_meta(folder)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_reads_what_torch_saves(tmp_path, count):
    torch = pytest.importorskip("torch")

    def torch_save(path, arrays):
        torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path)

    params = random_params(CONFIG)
    loaded = load_meta(_write_folder(tmp_path / "m", params, count=count, write=torch_save))
    assert_same_params(loaded.params, params, CONFIG)


def test_a_tokenizer_that_does_not_fit_is_reported_before_the_weights_are_read(tmp_path):
    folder = _write_folder(tmp_path / "m", random_params(CONFIG), settings=SETTINGS | {"n_layers": 3})
    with pytest.raises(FormatError, match=r"missing: layers\.2\."):
        load_meta(folder)
    for place in (tmp_path, folder):  # beside the folder, as Meta ships it, or in it
        sentencepiece_tokenizer().save(place)
        message = f"{place / 'tokenizer.model'}: the tokenizer has 360 tokens, the embedding 96 rows"
        with pytest.raises(FormatError, match=message):
            load_meta(folder)
