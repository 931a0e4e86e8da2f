from pathlib import Path

import numpy as np
import pytest

from llama2_jax.interop.imported import FormatError, LazyTensor
from llama2_jax.interop.mapping import (
    TABLE,
    check_tensors,
    expected_shapes,
    file_shape,
    from_file,
    our_shape,
    to_file,
)
from llama2_jax.model.config import model_config, parameter_count
from tests.interop.models import SHAPES

STYLES = ("meta", "huggingface", "gguf")


@pytest.mark.parametrize("size", ["7b", "13b", "70b"])
@pytest.mark.parametrize("style", STYLES)
def test_a_checkpoint_has_as_many_values_as_the_model(size, style):
    config = model_config(size)
    total = sum(int(np.prod(shape)) for shape in expected_shapes(config, style).values())
    assert total == parameter_count(config)


def test_names_and_shapes_of_the_released_70b():
    config = model_config("70b")
    meta, hf, gguf = (expected_shapes(config, style) for style in STYLES)
    assert len(meta) == len(hf) == len(gguf) == 80 * 9 + 3
    assert meta["layers.79.attention.wk.weight"] == (1024, 8192)
    assert hf["model.layers.0.mlp.down_proj.weight"] == (8192, 28672)
    assert gguf["blk.7.attn_output.weight"] == (8192, 8192)


def test_model_parallel_layout_of_the_reference_code():
    """Written out from ARCH-11 and HFW-3, because the shard tests split by the table itself."""
    columns, rows, replicated = 0, 1, None
    assert {
        row.meta.removeprefix("layers.{layer}.").removesuffix(".weight"): row.split_dim for row in TABLE
    } == {
        "tok_embeddings": 1,
        "attention_norm": replicated,
        "attention.wq": columns,
        "attention.wk": columns,
        "attention.wv": columns,
        "attention.wo": rows,
        "ffn_norm": replicated,
        "feed_forward.w1": columns,
        "feed_forward.w3": columns,
        "feed_forward.w2": rows,
        "norm": replicated,
        "output": columns,
    }


def test_gguf_names_are_those_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    llama = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.LLAMA]
    known = {gguf.TENSOR_NAMES[kind].replace("{bid}", "{layer}") + ".weight" for kind in llama}
    assert {row.gguf for row in TABLE} <= known


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_from_file_inverts_to_file(style, shape):
    config = SHAPES[shape]
    for row in TABLE:
        ours = np.arange(np.prod(our_shape(row, config))).reshape(our_shape(row, config))
        ours = ours[0] if row.per_layer else ours
        there = to_file(row, ours, config, style=style)
        assert there.shape == file_shape(row, config)
        np.testing.assert_array_equal(from_file(row, there, config, style=style), ours)


def test_kernels_are_transposed_matrices():
    """x @ ours = matrix @ x for every matrix, heads flattened (a wrong transpose would show)."""
    config = SHAPES["wide_heads"]
    row = next(row for row in TABLE if row.path.endswith("w_k_DKH"))
    matrix = np.random.default_rng(0).standard_normal(file_shape(row, config))
    ours = from_file(row, matrix, config, style="meta")
    x = np.random.default_rng(1).standard_normal(config.model_width)
    np.testing.assert_allclose(np.einsum("d,dkh->kh", x, ours).reshape(-1), matrix @ x, rtol=1e-12)


def _angles(head_dim: int, position: int) -> np.ndarray:
    return position / 10_000.0 ** (np.arange(0, head_dim, 2) / head_dim)


def _rotate_neighbours(x: np.ndarray, position: int) -> np.ndarray:
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * _angles(x.shape[-1], position))
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def _rotate_halves(x: np.ndarray, position: int) -> np.ndarray:
    half = x.shape[-1] // 2
    cos, sin = (np.tile(f(_angles(x.shape[-1], position)), 2) for f in (np.cos, np.sin))
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin


@pytest.mark.parametrize("permute", [True, False])
def test_both_rotary_layouts_give_the_same_scores(permute):
    """Section G: interleaved(W) = half(permute(W)), head_dim 128; without the permutation they differ."""
    config = model_config("7b", model_width=256, num_heads=2, num_kv_heads=2)
    assert config.head_dim == 128
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 256))
    q, k = generator.standard_normal((2, 256, 2, 128))
    q_row, k_row = (next(row for row in TABLE if row.path.endswith(end)) for end in ("w_q_DNH", "w_k_DKH"))
    scores = {}
    for style, rotate in (("meta", _rotate_neighbours), ("huggingface", _rotate_halves)):
        layout = style if permute else "meta"
        queries, keys = (
            rotate((to_file(row, w, config, style=layout) @ vector).reshape(2, 128), position)
            for row, w, vector, position in ((q_row, q, x, 17), (k_row, k, y, 5))
        )
        scores[style] = (queries * keys).sum(-1)
    close = np.allclose(scores["meta"], scores["huggingface"], rtol=0, atol=1e-9)
    assert close == permute


def _lazy(shape: tuple[int, ...], dtype: type = np.float32) -> LazyTensor:
    return LazyTensor(shape, np.dtype(dtype), lambda: np.zeros(shape, dtype))


def test_all_differences_are_reported_at_once():
    wanted = {"a.weight": (2, 3), "b.weight": (4,), "c.weight": (5,)}
    found = {
        "a.weight": _lazy((3, 2)),
        "c.weight": _lazy((5,), np.int8),
        "bias": _lazy((9,)),
        "rope.freqs": _lazy((8,)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": _lazy((8,)),
    }
    with pytest.raises(FormatError) as caught:
        check_tensors(wanted, found, where=Path("here"))
    text = str(caught.value)
    assert "4 tensor(s)" in text
    assert "missing: b.weight (4,)" in text
    assert "extra: bias (9,)" in text
    assert "a.weight is (3, 2) in the file, (2, 3) by the config" in text
    assert "c.weight is int8" in text
    assert "rope.freqs" not in text
    assert "inv_freq" not in text
