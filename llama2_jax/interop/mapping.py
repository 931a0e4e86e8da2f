"""One table: our parameters, their names and layouts in Meta, Hugging Face and GGUF files.

Names and permutation: HFW-1, HFW-2; model-parallel split: ARCH-11, HFW-3. All three formats
store matrices as (out, in); we store kernels as (in, out) with heads apart. Everything that
reads or writes foreign weights is driven by ``TABLE``.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama2_jax.interop.imported import FormatError, LazyTensor, listed
from llama2_jax.model.config import ModelConfig

FLOAT_DTYPES = ("float32", "float16", "bfloat16")

# Tables that older exporters stored next to the weights; recomputed, so never read.
BUFFER_ENDINGS = ("rope.freqs", "rotary_emb.inv_freq")


class Row(NamedTuple):
    """One parameter of ours and where it lives elsewhere."""

    path: str  # place in our tree; the suffix letters are its dims, L in front left out
    meta: str
    huggingface: str
    gguf: str
    file_dims: tuple[str, ...]  # one entry per dim in the file: ("NH", "D") is (N*H, D)
    split_dim: int | None = None  # dim in the file that Meta's shards split; None: replicated
    rotary: bool = False  # rows are rotated in pairs; Hugging Face reorders them

    @property
    def letters(self) -> str:
        """Our dims, in order, without L."""
        return self.path.rsplit("_", 1)[1]

    @property
    def per_layer(self) -> bool:
        """Whether our leaf is stacked over layers and the names contain ``{layer}``."""
        return self.path.startswith("layers/")


def _layer(
    path: str,
    meta: str,
    huggingface: str,
    gguf: str,
    file_dims: tuple[str, ...],
    split_dim: int | None = None,
) -> Row:
    return Row(
        f"layers/{path}",
        f"layers.{{layer}}.{meta}.weight",
        f"model.layers.{{layer}}.{huggingface}.weight",
        f"blk.{{layer}}.{gguf}.weight",
        file_dims,
        split_dim,
        rotary=meta in ("attention.wq", "attention.wk"),
    )


TABLE: tuple[Row, ...] = (
    Row(
        "embedding_VD",
        "tok_embeddings.weight",
        "model.embed_tokens.weight",
        "token_embd.weight",
        ("V", "D"),
        1,
    ),
    _layer("attention_norm/scale_D", "attention_norm", "input_layernorm", "attn_norm", ("D",)),
    _layer("attention/w_q_DNH", "attention.wq", "self_attn.q_proj", "attn_q", ("NH", "D"), 0),
    _layer("attention/w_k_DKH", "attention.wk", "self_attn.k_proj", "attn_k", ("KH", "D"), 0),
    _layer("attention/w_v_DKH", "attention.wv", "self_attn.v_proj", "attn_v", ("KH", "D"), 0),
    _layer("attention/w_o_NHD", "attention.wo", "self_attn.o_proj", "attn_output", ("D", "NH"), 1),
    _layer("feed_forward_norm/scale_D", "ffn_norm", "post_attention_layernorm", "ffn_norm", ("D",)),
    _layer("feed_forward/w_gate_DF", "feed_forward.w1", "mlp.gate_proj", "ffn_gate", ("F", "D"), 0),
    _layer("feed_forward/w_up_DF", "feed_forward.w3", "mlp.up_proj", "ffn_up", ("F", "D"), 0),
    _layer("feed_forward/w_down_FD", "feed_forward.w2", "mlp.down_proj", "ffn_down", ("D", "F"), 1),
    Row("final_norm/scale_D", "norm.weight", "model.norm.weight", "output_norm.weight", ("D",)),
    Row("unembedding_DV", "output.weight", "lm_head.weight", "output.weight", ("V", "D"), 0),
)


class Slot(NamedTuple):
    """One tensor of a file: the table row it belongs to and its layer (None outside layers)."""

    row: Row
    layer: int | None


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The rows a model of this shape has: tied embeddings have no unembedding."""
    return tuple(row for row in TABLE if not (config.tie_embeddings and row.path == "unembedding_DV"))


def slots(config: ModelConfig, style: str) -> Iterator[tuple[str, Slot]]:
    """(name in the file, slot) of every tensor, layer by layer in the order of the model."""
    for per_layer, group in itertools.groupby(rows(config), key=lambda row: row.per_layer):
        layers = range(config.num_layers) if per_layer else [None]
        for layer, row in itertools.product(layers, group):
            yield getattr(row, style).format(layer=layer), Slot(row, layer)


def sizes(config: ModelConfig) -> dict[str, int]:
    """Size of each dimension letter."""
    return {
        "V": config.vocab_size,
        "D": config.model_width,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "F": config.feed_forward_width,
        "L": config.num_layers,
    }


def our_shape(row: Row, config: ModelConfig) -> tuple[int, ...]:
    """Shape of our leaf, with the layers in front where it has them."""
    letters = ("L" if row.per_layer else "") + row.letters
    return tuple(sizes(config)[letter] for letter in letters)


def file_shape(row: Row, config: ModelConfig) -> tuple[int, ...]:
    """Shape of the (unsplit) tensor in a file."""
    size = sizes(config)
    return tuple(int(np.prod([size[letter] for letter in dim])) for dim in row.file_dims)


def expected_shapes(config: ModelConfig, style: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this style must hold."""
    return {name: file_shape(slot.row, config) for name, slot in slots(config, style)}


def embedding_rows(tensors: Mapping[str, LazyTensor], style: str, *, where: Path) -> int:
    """The vocabulary size that the embedding has; headers may leave it to the tokenizer.

    Raises:
      FormatError: no embedding, or it is not a matrix.
    """
    name = getattr(TABLE[0], style)
    if name not in tensors:
        raise FormatError(f"{where}: {name} is missing, every model has one; take a complete checkpoint")
    shape = tensors[name].shape
    if len(shape) != 2:
        raise FormatError(
            f"{where}: {name} has shape {shape}, it must be a matrix; download or copy the file again"
        )
    return shape[0]


def from_file(row: Row, array: np.ndarray, config: ModelConfig, *, style: str) -> np.ndarray:
    """One tensor of a file in our layout, without the layer dim (a view where possible)."""
    size, flat = sizes(config), "".join(row.file_dims)
    split = array.reshape([size[letter] for letter in flat])
    if style == "huggingface" and row.rotary:
        split = _swap_pairs(split, flat.index("H"), outer=2)
    return split.transpose([flat.index(letter) for letter in row.letters])


def to_file(row: Row, array: np.ndarray, config: ModelConfig, *, style: str) -> np.ndarray:
    """The inverse of ``from_file``."""
    flat = "".join(row.file_dims)
    split = array.transpose([row.letters.index(letter) for letter in flat])
    if style == "huggingface" and row.rotary:
        split = _swap_pairs(split, flat.index("H"), outer=config.head_dim // 2)
    return np.ascontiguousarray(split).reshape(file_shape(row, config))


def _swap_pairs(array: np.ndarray, dim: int, *, outer: int) -> np.ndarray:
    """Reorder ``dim`` from (outer, inner) to (inner, outer).

    A head holds H/2 rotated pairs. Ours keeps the two members of a pair side by side
    (H/2, 2); Hugging Face keeps all first members, then all second ones (2, H/2) (HFW-2).
    """
    shape = array.shape
    pairs = array.reshape(*shape[:dim], outer, shape[dim] // outer, *shape[dim + 1 :])
    return pairs.swapaxes(dim, dim + 1).reshape(shape)


def check_tensors(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyTensor], *, where: Path
) -> None:
    """Compare names, shapes and dtypes, and report the differences together.

    Raises:
      FormatError: missing or extra tensors, wrong shapes, or values that are not floats.
    """
    extra = [name for name in found if name not in wanted and not name.endswith(BUFFER_ENDINGS)]
    problems = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    problems += [f"extra: {name} {found[name].shape}" for name in extra]
    for name, shape in wanted.items():
        if name not in found:
            continue
        if found[name].shape != shape:
            problems.append(f"shape: {name} is {found[name].shape} in the file, {shape} by the config")
        if found[name].dtype.name not in FLOAT_DTYPES:
            problems.append(f"dtype: {name} is {found[name].dtype.name}; known: {', '.join(FLOAT_DTYPES)}")
    if problems:
        raise FormatError(
            f"{where}: {len(problems)} tensor(s) do not fit a Llama model of this config; "
            "use a complete checkpoint whose config belongs to its weights" + listed(problems)
        )
