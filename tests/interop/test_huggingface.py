import dataclasses
import itertools
import json

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy for the safetensors package
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from llama2_jax.config import ConfigError
from llama2_jax.data.tokenizer.json_file import byte_level_from_merges
from llama2_jax.interop import huggingface
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.interop.huggingface import load_huggingface, save_huggingface
from llama2_jax.interop.imported import FormatError
from llama2_jax.interop.mapping import expected_shapes
from llama2_jax.interop.safetensors_file import open_safetensors
from tests.interop.models import DTYPES, SHAPES, assert_same_params, random_params, read_whole
from tests.interop.torch_writer import write_torch

ONE_FILE, MANY_FILES = 5_000_000_000, 8_000


def _read_all(folder) -> dict[str, np.ndarray]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(path)
    return tensors


@pytest.mark.parametrize("max_shard_bytes", [ONE_FILE, MANY_FILES])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_is_bitwise(tmp_path, shape, dtype, max_shard_bytes):
    config, params = SHAPES[shape], random_params(SHAPES[shape], dtype=dtype)
    save_huggingface(tmp_path / "a", config, params, tokenizer=None, max_shard_bytes=max_shard_bytes)
    loaded = load_huggingface(tmp_path / "a")
    assert loaded.config == config
    assert loaded.tokenizer is None
    assert loaded.template == "llama2"
    assert_same_params(loaded.params, params, config)


@pytest.mark.parametrize("dtype", DTYPES)
def test_foreign_folder_round_trip_is_bitwise(tmp_path, dtype):
    """HF -> ours -> HF, the first written by the safetensors package, not by us."""
    config = SHAPES["gqa"]
    save_huggingface(tmp_path / "a", config, random_params(config), tokenizer=None)
    generator = np.random.default_rng(3)
    wanted = {
        name: generator.standard_normal(shape).astype(DTYPES[dtype])
        for name, shape in expected_shapes(config, "huggingface").items()
    }
    safetensors.numpy.save_file(wanted, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    loaded = load_huggingface(tmp_path / "a")
    params = read_whole(loaded.params)
    save_huggingface(tmp_path / "b", loaded.config, params, tokenizer=None, max_shard_bytes=MANY_FILES)
    found = _read_all(tmp_path / "b")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name


def test_shards_respect_the_limit_and_the_index(tmp_path):
    config = SHAPES["plain"]
    params = random_params(config)
    save_huggingface(tmp_path / "a", config, params, tokenizer=None, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(
        array.nbytes for array in _read_all(tmp_path / "a").values()
    )
    sizes = [
        sum(a.nbytes for a in safetensors.numpy.load_file(tmp_path / "a" / path).values()) for path in files
    ]
    assert max(sizes) <= 20_000
    with safetensors.safe_open(tmp_path / "a" / files[0], "np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it
    header_length = (tmp_path / "a" / files[0]).read_bytes()[:8]
    assert int.from_bytes(header_length, "little") % 8 == 0  # values are aligned
    assert all(a + b > 20_000 for a, b in itertools.pairwise(sizes)), "two of them would fit in one"


@pytest.mark.parametrize("dtype", DTYPES)
def test_config_json_names_the_dtype(tmp_path, dtype):
    config = SHAPES["plain"]
    save_huggingface(tmp_path / "a", config, random_params(config, dtype=dtype), tokenizer=None)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["torch_dtype"] == dtype


def test_config_json_says_what_readers_would_not_guess(tmp_path):
    config = dataclasses.replace(SHAPES["rope_500k"], init_stddev=0.05)
    save_huggingface(tmp_path / "a", config, random_params(config), tokenizer=None)
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    wanted = {
        "rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "initializer_range": 0.05, "hidden_act": "silu", "attention_dropout": 0.0,
    }  # fmt: skip
    assert {key: settings.get(key) for key in wanted} == wanted


def test_dtypes_that_differ_are_named_float32(tmp_path):
    config, params = SHAPES["plain"], random_params(SHAPES["plain"], dtype="float16")
    params["embedding_VD"] = params["embedding_VD"].astype(DTYPES["bfloat16"])
    save_huggingface(tmp_path / "a", config, params, tokenizer=None)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["torch_dtype"] == "float32"


def test_a_non_empty_folder_is_left_alone(tmp_path):
    (tmp_path / "note").write_text("mine")
    config = SHAPES["plain"]
    with pytest.raises(FormatError, match="not empty"):
        save_huggingface(tmp_path, config, random_params(config), tokenizer=None)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_answers_may_end_with_id_0(tmp_path):
    markers = ["<|im_end|>", "<|im_start|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = byte_level_from_merges(
        [*markers, *alphabet], [], token_types=[3] * 2 + [1] * len(alphabet), bos_id=1, eos_id=-1
    )
    config = dataclasses.replace(SHAPES["plain"], vocab_size=tokenizer.vocab_size)
    save_huggingface(tmp_path / "a", config, random_params(config), tokenizer=tokenizer, template="chatml")
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text())["eos_token_id"] == 0


def test_an_empty_folder_is_taken_a_file_is_not_and_what_a_killed_save_left_goes(tmp_path):
    config, params = SHAPES["plain"], random_params(SHAPES["plain"])
    for name in ("a", "a.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.partial" / "half").touch()
    save_huggingface(tmp_path / "a", config, params, tokenizer=None)
    names = {"a", "a/config.json", "a/generation_config.json", "a/model.safetensors"}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == names
    with pytest.raises(FormatError, match=r"config\.json exists and is not empty"):
        save_huggingface(tmp_path / "a" / "config.json", config, params, tokenizer=None)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    config = SHAPES["plain"]
    monkeypatch.setattr(huggingface, "write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        save_huggingface(tmp_path / "a", config, random_params(config), tokenizer=None)
    assert list(tmp_path.iterdir()) == []


def test_unknown_template_lists_the_choices(tmp_path):
    config, params = SHAPES["plain"], random_params(SHAPES["plain"])
    with pytest.raises(ConfigError, match="choose one of 'llama2'"):
        save_huggingface(tmp_path / "a", config, params, tokenizer=None, template="alpaca")


def test_parameters_of_another_config_are_listed(tmp_path):
    params = random_params(SHAPES["plain"])
    with pytest.raises(
        FormatError, match=r"shape: layers/attention/w_k_DKH is \(2, 32, 4, 8\), \(2, 32, 2, 8\)"
    ):
        save_huggingface(tmp_path / "a", SHAPES["gqa"], params, tokenizer=None)
    with pytest.raises(FormatError, match="extra: unembedding_DV"):
        save_huggingface(tmp_path / "a", SHAPES["tied"], params, tokenizer=None)


@pytest.fixture
def folder(tmp_path):
    config = SHAPES["plain"]
    save_huggingface(tmp_path / "a", config, random_params(config), tokenizer=None)
    return tmp_path / "a"


def _edit(folder, **changes) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "(drop)"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "mistral"},
            'model_type is "mistral", only "llama" can be loaded; take a checkpoint of the plain',
        ),
        ({"model_type": "(drop)"}, "lacks model_type"),
        ({"attention_bias": True}, "attention_bias is true, only false can"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"hidden_act": "x" * 99}, r'hidden_act is "x{59}\.\.\., only'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'type is "linear", only "default"'),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 'rope_type is "llama3"'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, 'rope_type is "yarn"'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, only 1.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, only 1.0"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"hidden_size": "(drop)", "vocab_size": "(drop)"}, "lacks vocab_size, hidden_size"),
        (
            {"intermediate_size": 80},
            r"mlp.gate_proj.weight is \(64, 32\) in the file, \(80, 32\) by the config",
        ),
        ({"num_hidden_layers": 3}, r"missing: model.layers.2.self_attn.q_proj.weight \(32, 32\)"),
        ({"num_hidden_layers": 1}, r"extra: model.layers.1.self_attn.q_proj.weight \(32, 32\)"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
    ],
)
def test_models_that_are_not_plain_llama_are_refused(folder, changes, message):
    _edit(folder, **changes)
    with pytest.raises(FormatError, match=message):
        load_huggingface(folder)


@pytest.mark.parametrize("value", [None, "4", 4.5, -4, 0, True, [4]])
@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ],
)
def test_a_count_that_is_none_is_refused_by_name(folder, field, value):
    _edit(folder, **{field: value})
    with pytest.raises(
        FormatError, match=rf"config\.json: {field} is .*; it must be a positive whole number"
    ):
        load_huggingface(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": "4"}, 'num_key_value_heads is "4"; it must be a positive whole'),
        ({"num_key_value_heads": 3}, "num_kv_heads = 3"),
        ({"head_dim": "x"}, 'head_dim is "x"; it must be a positive whole'),
        ({"rms_norm_eps": None}, "rms_norm_eps is null; it must be a finite number"),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps is "1e-5"; it must be a finite number'),
        ({"initializer_range": float("nan")}, "initializer_range is NaN"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta is null"),
        ({"rope_parameters": None, "rope_theta": "x"}, 'rope_theta is "x"'),
        ({"rope_parameters": 3}, "rope_parameters is 3; it must be an object"),
        ({"rope_scaling": "linear"}, 'rope_scaling is "linear"; it must be an object'),
        ({"quantization_config": "gptq"}, 'quantization_config is "gptq"; it must be an object'),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no"; it must be true or false'),
    ],
)
def test_other_wrong_fields_are_named(folder, changes, message):
    _edit(folder, **changes)
    with pytest.raises(FormatError, match=rf"config\.json: .*{message}"):
        load_huggingface(folder)


def test_null_is_no_value_where_transformers_writes_it(folder):
    before = load_huggingface(folder).config
    _edit(folder, num_key_value_heads=None, head_dim=None, rope_scaling=None, quantization_config=None)
    _edit(folder, architectures=None)
    assert load_huggingface(folder).config == before


def test_what_config_json_leaves_out_is_as_transformers_has_it(folder):
    left_out = (
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        "rope_parameters", "initializer_range", "tie_word_embeddings",
    )  # fmt: skip
    _edit(folder, **dict.fromkeys(left_out, "(drop)"))
    found = load_huggingface(folder).config
    assert (found.num_kv_heads, found.head_dim, found.max_context) == (4, 8, 2048)  # of 4 heads and width 32
    assert (found.norm_epsilon, found.rope_base, found.init_stddev) == (1e-6, 10_000.0, 0.02)
    assert not found.tie_embeddings


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "header is a list, an object is needed"),
        ({"w": [0, 8]}, "entry for w is a list"),
        *(({"w": {**ENTRY, key: None}}, f"w has {key} None") for key in ENTRY),
        *(({"w": {k: v for k, v in ENTRY.items() if k != key}}, f"w has {key} None") for key in ENTRY),
        ({"w": {**ENTRY, "data_offsets": [8]}}, r"w has data_offsets \[8\]; they must be two"),
        ({"w": {**ENTRY, "data_offsets": ["0", 8]}}, "w has data_offsets"),
        ({"w": {**ENTRY, "shape": [-2]}}, r"w has shape \[-2\]; it must be a list of sizes"),
        ({"w": {**ENTRY, "shape": [2**64]}}, "the header gives it 8"),
        ({"w": {**ENTRY, "dtype": ["F32"]}}, r"w has dtype \['F32'\]; known"),
    ],
)
def test_a_damaged_safetensors_header_is_reported(tmp_path, header, message):
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(FormatError, match=message):
        open_safetensors(path)


@pytest.mark.parametrize("weight_map", [None, [], "x", {"a": 3}])
def test_a_damaged_index_is_reported(folder, weight_map):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match="index.json has no weight_map"):
        load_huggingface(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": "(drop)", "rope_theta": 5e5, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": "(drop)"},
        {"rope_parameters": "(drop)", "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {}},
    ],
)
def test_every_spelling_of_the_rotary_base(folder, changes):
    _edit(folder, **changes)
    assert load_huggingface(folder).config.rope_base == 5e5


def test_a_stored_tied_head_is_accepted(tmp_path):
    config = SHAPES["tied"]
    save_huggingface(tmp_path / "a", config, random_params(config), tokenizer=None)
    path = tmp_path / "a" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, path)
    assert_same_params(load_huggingface(tmp_path / "a").params, random_params(config), config)
    head = {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}
    safetensors.numpy.save_file(tensors | head, path)
    with pytest.raises(FormatError, match=r"missing: model\.embed_tokens\.weight"):
        load_huggingface(tmp_path / "a")


@pytest.mark.parametrize("kept", [4, 100, 20_000])
def test_truncated_weights_are_reported_with_both_sizes(folder, kept):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with pytest.raises(FormatError, match=rf"truncated: it has {kept} bytes, .* \d+ bytes") as caught:
        load_huggingface(folder)
    if kept == 20_000:
        assert f"{len(whole)} bytes" in str(caught.value)


def test_broken_json_is_reported_with_file_and_line(folder):
    (folder / "config.json").write_text('{"a": 1,\n!')
    with pytest.raises(FormatError, match=r"config.json is not valid JSON: .*line 2"):
        load_huggingface(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(FormatError, match="holds a list"):
        load_huggingface(folder)
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(FormatError, match=r"config.json is not valid JSON"):
        load_huggingface(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FormatError, match=r"config.json does not exist"):
        load_huggingface(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"neither model.safetensors nor"):
        load_huggingface(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"names model-00001-of-00002.safetensors, which the folder lacks"):
        load_huggingface(folder)


def test_an_index_names_what_its_shards_hold_in_the_folder_itself(folder):
    path = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "all.safetensors")
    path.write_text(json.dumps({"weight_map": {"a": "all.safetensors"}}))
    with pytest.raises(
        FormatError, match=r"names tensors that their shard lacks.*\n  a in all\.safetensors$"
    ):
        load_huggingface(folder)
    (folder / "all.safetensors").rename(folder.parent / "all.safetensors")
    path.write_text(json.dumps({"weight_map": {"lm_head.weight": "../all.safetensors"}}))
    with pytest.raises(FormatError, match=r"names \.\./all\.safetensors, which the folder lacks"):
        load_huggingface(folder)


def test_of_two_shards_with_one_tensor_the_index_says_which_counts(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    head, norm = "lm_head.weight", "model.norm.weight"
    safetensors.numpy.save_file(tensors, folder / "a.safetensors")
    both = {head: tensors[head] + 1, norm: tensors[norm] + 1}
    safetensors.numpy.save_file(both, folder / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {head: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = load_huggingface(folder).params
    np.testing.assert_array_equal(found["final_norm"]["scale_D"], tensors[norm])
    np.testing.assert_array_equal(found["unembedding_DV"], both[head].T)


def test_one_file_is_read_before_an_index_as_in_transformers(folder):
    index = {"weight_map": {"a": "of_another_model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_huggingface(folder).config == SHAPES["plain"]


def test_of_many_tensors_that_do_not_fit_the_first_are_listed(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 80}))
    with pytest.raises(FormatError) as caught:
        load_huggingface(folder)
    first, *lines = str(caught.value).splitlines()
    assert ": 702 tensor(s) do not fit" in first  # 78 layers of 9
    assert lines[0] == "  missing: model.layers.2.input_layernorm.weight (32,)"
    assert lines[10:] == ["  ... and 692 more"]


def test_layers_whose_dtypes_differ_are_read_as_float32(folder):
    path, name = folder / "model.safetensors", "model.layers.{}.mlp.up_proj.weight"
    tensors = safetensors.numpy.load_file(path)
    for layer, dtype in enumerate(("float16", "bfloat16")):
        tensors[name.format(layer)] = tensors[name.format(layer)].astype(DTYPES[dtype])
    safetensors.numpy.save_file(tensors, path)
    found = np.asarray(load_huggingface(folder).params["layers"]["feed_forward"]["w_up_DF"])
    assert found.dtype == np.float32
    for layer in range(2):
        np.testing.assert_array_equal(found[layer], tensors[name.format(layer)].T)


def test_an_unknown_template_is_reported_before_the_weights_are_read(folder):
    (folder / "chat_template.jinja").write_text("<|user|>")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="unknown chat template"):
        load_huggingface(folder)
    with pytest.raises(FormatError, match="model.safetensors is truncated"):
        load_huggingface(folder, template="llama2")


def test_a_template_that_is_not_utf8_is_reported_with_its_file(folder):
    (folder / "chat_template.jinja").write_bytes("{{ café }}".encode("latin-1"))
    with pytest.raises(
        FormatError, match=r"chat_template.jinja is not UTF-8 text: .*byte 0xe9.*copy it again"
    ):
        load_huggingface(folder)


def _to_torch(folder, *, shards) -> None:
    """Replace the safetensors of the folder by pytorch_model.bin, or by shards of it with an index."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        write_torch(folder / "pytorch_model.bin", tensors)
        return
    weight_map = {}
    for number in range(shards):
        names, file_name = list(tensors)[number::shards], f"pytorch_model-{number + 1:05d}.bin"
        write_torch(folder / file_name, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file_name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_weights_equal_the_safetensors_bitwise(tmp_path, dtype, shards):
    config, params = SHAPES["gqa"], random_params(SHAPES["gqa"], dtype=dtype)
    save_huggingface(tmp_path / "a", config, params, tokenizer=None)
    _to_torch(tmp_path / "a", shards=shards)
    assert checkpoint_kind(tmp_path / "a") == "huggingface"
    assert_same_params(load_huggingface(tmp_path / "a").params, params, config)


def test_safetensors_come_before_torch_weights(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert_same_params(load_huggingface(folder).params, random_params(SHAPES["plain"]), SHAPES["plain"])
