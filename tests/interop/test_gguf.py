import dataclasses
import struct
import sys

import ml_dtypes
import numpy as np
import pytest

from llama2_jax.interop.gguf import load_gguf
from llama2_jax.interop.gguf_file import SUPPORTED_TYPES, open_gguf
from llama2_jax.interop.imported import FormatError
from llama2_jax.interop.tree import file_tensors
from llama2_jax.model.config import ModelConfig
from tests.interop.models import assert_same_params, leaf, random_params

gguf = pytest.importorskip("gguf")
Type = gguf.GGMLQuantizationType

CONFIG = ModelConfig(
    vocab_size=64,
    model_width=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    feed_forward_width=96,
    max_context=128,
)
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def _add_header(writer, config) -> None:
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.model_width)
    writer.add_feed_forward_length(config.feed_forward_width)
    writer.add_head_count(config.num_heads)
    if config.num_kv_heads != config.num_heads:  # else it may be left out
        writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    if config.rope_base != 10_000.0:  # likewise
        writer.add_rope_freq_base(config.rope_base)


def _write(path, config, params, *, kind="F32", architecture="llama", header=None, extra=None):
    """Quantise every matrix to ``kind``; norms stay F32 unless all is one float type."""
    writer = gguf.GGUFWriter(path, architecture)
    _add_header(writer, config)
    if header is not None:
        header(writer)
    tensors = {name: tensor.read() for name, tensor in file_tensors(config, params, style="gguf").items()}
    for name, array in (tensors | (extra or {})).items():
        of = Type[kind] if array.ndim == 2 else Type.F32
        array = np.ascontiguousarray(array, np.float32)
        data = gguf.quants.quantize(array, of)
        writer.add_tensor(name, data, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", FLOATS)
def test_float_types_keep_their_values_and_dtype(tmp_path, kind):
    params = random_params(CONFIG)
    loaded = load_gguf(_write(tmp_path / "x.gguf", CONFIG, params, kind=kind))
    assert loaded.config == CONFIG
    assert loaded.tokenizer is None
    assert loaded.template == "llama2"
    none = _write(tmp_path / "none.gguf", CONFIG, params, header=lambda w: w.add_tokenizer_model("no_vocab"))
    assert load_gguf(none).tokenizer is None
    for path in (
        "embedding_VD",
        "layers/attention/w_k_DKH",
        "layers/feed_forward/w_down_FD",
        "unembedding_DV",
    ):
        found, wanted = leaf(loaded.params, path), leaf(params, path)
        np.testing.assert_array_equal(found, wanted.astype(FLOATS[kind]))
        assert found.dtype == FLOATS[kind]
    norm = leaf(loaded.params, "layers/attention_norm/scale_D")
    np.testing.assert_array_equal(norm, leaf(params, "layers/attention_norm/scale_D"))


# half a quantisation step of a block of 32 normal values times 0.2: range about 5 SD, 255, 31 or 15 steps
QUANTISED = [("Q8_0", 0.004), ("Q5_1", 0.035), ("Q5_0", 0.06), ("Q4_1", 0.07), ("Q4_0", 0.12)]


@pytest.mark.parametrize(("kind", "tolerance"), QUANTISED)
def test_quantised_types_come_back_as_float32(tmp_path, kind, tolerance):
    params = random_params(CONFIG)
    loaded = load_gguf(_write(tmp_path / "x.gguf", CONFIG, params, kind=kind))
    for path in ("embedding_VD", "layers/attention/w_q_DNH", "layers/feed_forward/w_gate_DF"):
        found, wanted = leaf(loaded.params, path), leaf(params, path)
        assert found.dtype == np.float32
        error = np.abs(found - wanted)
        assert 0 < error.max() < tolerance


def test_heads_that_the_header_does_not_count_are_those_of_the_queries(tmp_path):
    config = dataclasses.replace(CONFIG, num_kv_heads=4)
    assert load_gguf(_write(tmp_path / "x.gguf", config, random_params(config))).config == config


def test_values_begin_where_the_alignment_says(tmp_path):
    params = random_params(CONFIG)
    path = _write(tmp_path / "x.gguf", CONFIG, params, header=lambda w: w.add_custom_alignment(4096))
    assert_same_params(load_gguf(path).params, params, CONFIG)


def test_header_values_of_every_type(tmp_path):
    values = {
        "uint8": 200, "int8": -100, "uint16": 60_000, "int16": -30_000, "uint32": 2**32 - 1,
        "int32": -(2**31), "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1,
        "bool": True, "string": "é", "array": [["a", "b"], ["c"]],
    }  # fmt: skip

    def header(writer):
        for kind, value in values.items():
            getattr(writer, f"add_{kind}")(f"x.{kind}", value)

    found = open_gguf(_write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=header)).metadata
    assert {kind: found[f"x.{kind}"] for kind in values} == values


@pytest.mark.parametrize(
    "value",
    [struct.pack("<I", 99), struct.pack("<IQ", 8, 1) + b"\xff", struct.pack("<IQ", 8, 9) + b"abc"],
    ids=["type", "text", "length"],
)
def test_a_damaged_header_is_refused(tmp_path, value):
    key = struct.pack("<Q", 1) + b"k"
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + value)
    with pytest.raises(FormatError, match="end inside the header, or the header is damaged"):
        open_gguf(tmp_path / "x.gguf")


def test_versions(tmp_path):
    path = tmp_path / "x.gguf"
    for version in (2, 3):
        path.write_bytes((b"GGUF" + struct.pack("<IQQ", version, 0, 0)).ljust(32, b"\0"))
        assert open_gguf(path) == ({}, {})
    for version in (1, 4, 3 << 24):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
        with pytest.raises(FormatError, match=f"GGUF version {version}, only little-endian versions 2 and 3"):
            open_gguf(path)


def test_shape_facts_come_from_the_header(tmp_path):
    changes = {"rope_base": 100_000.0, "norm_epsilon": 1e-6, "tie_embeddings": True, "head_dim": 24}
    config = ModelConfig(64, 64, 1, 4, 1, 96, 256, **changes)

    def head_dim(writer):
        writer.add_key_length(24)
        writer.add_value_length(24)
        writer.add_rope_dimension_count(24)

    params = random_params(config)
    loaded = load_gguf(_write(tmp_path / "x.gguf", config, params, header=head_dim))
    assert loaded.config == config
    assert_same_params(loaded.params, params, config)


def _one_block(path, kind, block) -> np.ndarray:
    """A GGUF file of a single tensor of one row and one block, assembled byte by byte."""
    width, _ = gguf.GGML_QUANT_SIZES[Type[kind]]
    name = b"t"
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", len(name)) + name
    header += struct.pack("<IQQIQ", 2, width, 1, Type[kind].value, 0)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + block)
    return open_gguf(path).tensors["t"].read().reshape(-1)


def test_blocks_by_hand(tmp_path):
    """The low nibbles are values 0 to 15 of a block, the high ones 16 to 31."""
    nibbles = bytes([0x10 + i for i in range(16)])  # low: 0..15, high: 1
    low, high = np.arange(16), np.ones(16)
    whole = np.concatenate([low, high])
    half = lambda value: struct.pack("<e", value)  # noqa: E731
    found = _one_block(tmp_path / "a", "Q4_1", half(0.5) + half(-3.0) + nibbles)
    np.testing.assert_array_equal(found, 0.5 * whole - 3.0)
    found = _one_block(tmp_path / "b", "Q4_0", half(0.25) + nibbles)
    np.testing.assert_array_equal(found, 0.25 * (whole - 8))
    signed = np.arange(-16, 16, dtype=np.int8)
    found = _one_block(tmp_path / "c", "Q8_0", half(2.0) + signed.tobytes())
    np.testing.assert_array_equal(found, 2.0 * signed)


@pytest.mark.parametrize("kind", SUPPORTED_TYPES)
def test_every_supported_type_can_be_read(tmp_path, kind):
    width, byte_count = gguf.GGML_QUANT_SIZES[Type[kind]]
    found = _one_block(tmp_path / "x", kind, bytes(byte_count))
    np.testing.assert_array_equal(found, np.zeros(width))


def _q6_k_by_hand(low, high, scales, factor) -> np.ndarray:
    """Value by value: six bits, four in ``low`` and two in ``high``; a scale for every 16 values."""
    values = np.empty(256, np.float32)
    for index in range(256):
        half, within = divmod(index, 128)
        quarter, column = divmod(within, 32)
        four_bits = int(low[64 * half + 32 * (quarter % 2) + column]) >> (4 if quarter >= 2 else 0) & 15
        two_bits = int(high[32 * half + column]) >> 2 * quarter & 3
        values[index] = factor * float(scales[index // 16]) * (16 * two_bits + four_bits - 32)
    return values


def test_a_six_bit_block_by_hand(tmp_path):
    """The type of the output matrix in most quantised files, whatever they are called."""
    generator = np.random.default_rng(6)
    low, high = (generator.integers(0, 256, size, dtype=np.uint8) for size in (128, 64))
    scales, factor = generator.integers(-128, 128, 16).astype(np.int8), 2.0**-9
    block = low.tobytes() + high.tobytes() + scales.tobytes() + struct.pack("<e", factor)
    found = _one_block(tmp_path / "x", "Q6_K", block)
    np.testing.assert_array_equal(found, _q6_k_by_hand(low, high, scales, factor))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            'rope.scaling.type is "yarn", only "none" can be loaded; take',
        ),
        (lambda w: w.add_rope_scaling_factor(4.0), r"rope.scaling.factor is 4.0"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 2.0), r"rope.scale_linear is 2.0"),
        (lambda w: w.add_expert_count(8), "expert_count is 8"),
        (
            lambda w: w.add_array("llama.attention.head_count_kv", [2, 4]),
            "head_count_kv differs from layer to layer, all layers must be alike; take",
        ),
        (lambda w: w.add_value_length(8), "attention.value_length is 8, the head dim 16, they must be equal"),
        (
            lambda w: w.add_rope_dimension_count(8),
            "rope.dimension_count is 8, the head dim 16, they must be equal; take",
        ),
        (lambda w: w.add_tokenizer_model("bert"), r"x\.gguf: its tokenizer is 'bert'; known: 'llama'"),
        (lambda w: w.add_chat_template("<|user|>{{x}}"), "unknown chat template.*template=NAME"),
    ],
)
def test_what_is_not_plain_llama_is_refused(tmp_path, header, message):
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=header)
    with pytest.raises(FormatError, match=message):
        load_gguf(path)


def test_other_architectures_tensors_and_types_are_refused(tmp_path):
    params = random_params(CONFIG)
    with pytest.raises(FormatError, match='general.architecture is "qwen2", only "llama" can be'):
        load_gguf(_write(tmp_path / "a", CONFIG, params, architecture="qwen2"))
    extra = {"blk.0.attn_q.bias": np.zeros(64)}
    with pytest.raises(FormatError, match=r"extra: blk.0.attn_q.bias \(64,\)"):
        load_gguf(_write(tmp_path / "b", CONFIG, params, extra=extra))
    with pytest.raises(FormatError, match=r"rope_freqs.weight scales"):
        load_gguf(_write(tmp_path / "c", CONFIG, params, extra={"rope_freqs.weight": np.ones(8)}))
    with pytest.raises(FormatError, match=r"t is IQ4_NL; supported: F32, .*Q6_K"):
        _one_block(tmp_path / "d", "IQ4_NL", bytes(18))


def test_a_part_of_a_model_is_refused_with_how_to_join_it(tmp_path):
    header = lambda writer: writer.add_uint16("split.count", 3)  # noqa: E731
    path = _write(tmp_path / "x-00001-of-00003.gguf", CONFIG, random_params(CONFIG), header=header)
    with pytest.raises(FormatError, match=r"is one of 3 parts of a model, .*llama-gguf-split --merge"):
        load_gguf(path)
    joined = lambda writer: writer.add_uint16("split.count", 0)  # noqa: E731
    assert (
        load_gguf(_write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=joined)).config == CONFIG
    )


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path):
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG))
    name = b"blk.0.ffn_up.weight"
    before = struct.pack("<Q", len(name)) + name + struct.pack("<IQQ", 2, 64, 96)
    start, end = path.read_bytes().split(before + struct.pack("<I", Type.F32))
    path.write_bytes(start + before + struct.pack("<I", Type.Q6_K) + end)
    with pytest.raises(FormatError, match=r"ffn_up.weight has rows of 64 values, a block of .* Q6_K has 256"):
        load_gguf(path)


@pytest.mark.parametrize(
    ("shape", "message"), [((64,), r"has shape \(64,\), it must be a matrix"), (None, "is missing")]
)
def test_the_embedding_must_be_a_matrix(tmp_path, shape, message):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    _add_header(writer, CONFIG)
    if shape is not None:
        writer.add_tensor("token_embd.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=rf"x\.gguf: token_embd\.weight {message}"):
        load_gguf(tmp_path / "x.gguf")


def test_an_unknown_template_is_reported_before_the_weights_are_read(tmp_path):
    header = lambda writer: writer.add_chat_template("<|user|>{{x}}")  # noqa: E731
    extra = {"blk.0.attn_q.bias": np.zeros(64)}  # refused as soon as weights are read
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=header, extra=extra)
    with pytest.raises(FormatError, match="unknown chat template"):
        load_gguf(path)
    with pytest.raises(FormatError, match="extra: blk.0.attn_q.bias"):
        load_gguf(path, template="llama2")


def _setting(key, value):
    """A header with ``value`` under ``key``, in the GGUF type that its Python type suggests."""
    return lambda writer: writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))


@pytest.mark.parametrize("value", ["two", 2.5, 0, -1, True])
@pytest.mark.parametrize(
    "key",
    [
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
    ],
)
def test_a_count_that_is_none_is_refused_by_name(tmp_path, key, value):
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=_setting(f"llama.{key}", value))
    with pytest.raises(FormatError, match=rf"x\.gguf: llama\.{key} is .*; it must be a positive whole"):
        load_gguf(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.attention.head_count_kv", 3, "num_heads = 4 is not a multiple of num_kv_heads = 3"),
        ("llama.attention.layer_norm_rms_epsilon", "1e-5", 'is "1e-5"; it must be a finite number'),
        ("llama.rope.freq_base", float("nan"), "is NaN; it must be a finite number"),
        ("general.alignment", "x", 'is "x"; it must be a positive whole number'),
        ("general.alignment", 0, "is 0; it must be a positive whole number"),
        ("tokenizer.chat_template", 5, "is 5; it must be text"),
        ("tokenizer.ggml.model", 5, "is 5; it must be text"),
    ],
)
def test_other_wrong_values_are_named(tmp_path, key, value, message):
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=_setting(key, value))
    with pytest.raises(FormatError, match=rf"x\.gguf: ({key} |.*){message}"):
        load_gguf(path)


def test_truncated_files_are_reported_with_both_sizes(tmp_path):
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(
        FormatError, match=rf"truncated: it has {len(whole) - 1000} bytes, .* {len(whole)} bytes"
    ):
        open_gguf(path)
    path.write_bytes(whole[:300])
    with pytest.raises(FormatError, match="its 300 bytes end inside the header"):
        open_gguf(path)
    path.write_bytes(b"PK..")
    with pytest.raises(FormatError, match="not a GGUF file"):
        open_gguf(path)


def test_a_vocabulary_without_weights_is_not_called_truncated(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    _add_header(writer, CONFIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert path.stat().st_size % 32  # llama.cpp publishes them so: nothing comes after the header, no padding
    with pytest.raises(FormatError, match=r"x\.gguf: token_embd\.weight is missing"):
        load_gguf(path)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FormatError, match=r"pip install 'llama2_jax\[import\]'"):
        load_gguf(path)


def _sentencepiece_without_ids(writer) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "ab", "▁ab"]
    types = [2, 3, 3, *[6] * 256, *[1] * 5]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * 259 + [-10.0, -11.0, -12.0, -1.0, -2.0])
    writer.add_token_types(types)


def _sentencepiece_header(writer) -> None:
    _sentencepiece_without_ids(writer)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def test_sentencepiece_header(tmp_path):
    config = ModelConfig(**{**vars(CONFIG), "vocab_size": 264})
    path = _write(tmp_path / "x.gguf", config, random_params(config), header=_sentencepiece_header)
    tokenizer = load_gguf(path).tokenizer
    assert tokenizer.encode("ab", bos=True, eos=True) == [1, 263, 2]
    assert tokenizer.encode("ab!") == [263, 3 + ord("!")]
    small = _write(tmp_path / "y.gguf", CONFIG, random_params(CONFIG), header=_sentencepiece_header)
    with pytest.raises(FormatError, match="tokenizer has 264 tokens, the embedding 64 rows"):
        load_gguf(small)


def test_sentencepiece_ids_and_prefix_that_the_header_leaves_out_or_not(tmp_path):
    def without_prefix(writer):
        _sentencepiece_without_ids(writer)
        writer.add_add_space_prefix(False)

    config = ModelConfig(**{**vars(CONFIG), "vocab_size": 264})
    for header, word in ((_sentencepiece_without_ids, 263), (without_prefix, 262)):
        path = _write(tmp_path / f"{word}.gguf", config, random_params(config), header=header)
        tokenizer = load_gguf(path).tokenizer
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
        assert tokenizer.encode("ab") == [word]


@pytest.mark.parametrize(("name", "ids"), [(None, [2]), ("gpt-2", [2]), ("smollm", [0, 1])])
def test_pre_tokenizers_keep_digits_together_or_not(tmp_path, name, ids):
    def header(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["1", "2", "12"])  # without types: normal ones
        writer.add_token_merges(["1 2"])
        if name is not None:
            writer.add_tokenizer_pre(name)

    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=header)
    tokenizer = load_gguf(path).tokenizer
    assert tokenizer.encode("12") == ids
    assert tokenizer.decode(ids) == "12"


def _byte_level_header(writer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", "<s>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)


def test_byte_level_header(tmp_path):
    path = _write(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), header=_byte_level_header)
    assert load_gguf(path).tokenizer.encode("ab", bos=True) == [3, 2]


@pytest.mark.parametrize("flag", [True, False, None])
def test_headers_say_whether_texts_begin_with_bos(tmp_path, flag):
    def header(fill):
        def write(writer):
            fill(writer)
            if flag is not None:
                writer.add_add_bos_token(flag)

        return write

    for fill, vocab_size, unless_told in (
        (_sentencepiece_header, 264, True),
        (_byte_level_header, 64, False),
    ):
        config = ModelConfig(**{**vars(CONFIG), "vocab_size": vocab_size})
        path = _write(tmp_path / f"{vocab_size}.gguf", config, random_params(config), header=header(fill))
        assert load_gguf(path).tokenizer.begins_with_bos == (unless_told if flag is None else flag)


TOKENIZERS = {"llama": _sentencepiece_header, "gpt2": _byte_level_header}


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        *((kind, "tokens", "a", 'is "a"; it must be a list of texts') for kind in TOKENIZERS),
        *((kind, "tokens", [1, 2], r"is \[1, 2\]; it must be a list of texts") for kind in TOKENIZERS),
        *(
            (kind, "token_type", ["x"], r'is \["x"\]; it must be a list of types, 1 to 6')
            for kind in TOKENIZERS
        ),
        *((kind, "token_type", [7], r"is \[7\]; it must be a list of types, 1 to 6") for kind in TOKENIZERS),
        *((kind, "token_type", [1], "types") for kind in TOKENIZERS),
        *((kind, "bos_token_id", "1", 'is "1"; it must be the number of a token') for kind in TOKENIZERS),
        *((kind, "eos_token_id", 9999, "is 9999; it must be the number of a token") for kind in TOKENIZERS),
        ("llama", "scores", ["x"], r'is \["x"\]; it must be a list of decimal numbers'),
        ("llama", "unknown_token_id", 0.5, "is 0.5; it must be the number of a token"),
        ("llama", "add_space_prefix", 1, "is 1; it must be true or false"),
        ("gpt2", "merges", [1], r"is \[1\]; it must be a list of texts"),
        ("gpt2", "merges", ["a"], "is not a pair of pieces"),
        ("gpt2", "pre", 5, "is 5; it must be text"),
        ("gpt2", "pre", "qwen2", "pre-tokenizer is 'qwen2'; known: gpt-2, smollm"),
    ],
)
def test_a_wrong_tokenizer_header_names_file_and_key(tmp_path, kind, key, value, message):
    config = ModelConfig(**{**vars(CONFIG), "vocab_size": 264})
    key = f"tokenizer.ggml.{key}"

    def header(writer):
        TOKENIZERS[kind](writer)
        _setting(key, value)(writer)

    path = _write(tmp_path / "x.gguf", config, random_params(config), header=header)
    with pytest.raises(FormatError, match=rf"x\.gguf: ({key} |.*){message}"):
        load_gguf(path)
