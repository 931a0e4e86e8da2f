"""Read a Llama-architecture GGUF file, its tokenizer included.

GGUF keeps q and k rows in interleaved pairs, which is our layout, so nothing is permuted.
Quantised tensors become float32; F16 and BF16 stay what they are.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.config import ConfigError
from llama2_jax.interop.fields import (
    not_plain,
    read_count,
    read_number,
    read_text,
    require_keys,
    require_plain,
)
from llama2_jax.interop.gguf_file import GGUFFile, open_gguf
from llama2_jax.interop.gguf_tokenizer import header_tokenizer
from llama2_jax.interop.imported import FormatError, Imported, check_vocabulary
from llama2_jax.interop.mapping import embedding_rows
from llama2_jax.interop.templates import guess_template
from llama2_jax.interop.tree import file_params
from llama2_jax.model.config import ModelConfig

_PLAIN = {
    "general.architecture": "llama",
    "llama.rope.scaling.type": "none",
    "llama.rope.scale_linear": 1.0,
    "llama.rope.scaling.factor": 1.0,
    "llama.expert_count": 0,
}


def load_gguf(path: Path | str, *, template: str | None = None) -> Imported:
    """Model and tokenizer of one ``.gguf`` file (tensor types: ``SUPPORTED_TYPES`` of ``gguf_file.py``).

    ``template`` names the chat template; None takes it from the header.

    Raises:
      FormatError: not GGUF, truncated, another architecture, an unsupported quantisation,
        scaled rotary frequencies, values of the wrong type or at odds with each other, tensors that do
        not fit the header, or a package of the extra ``[import]`` is missing.
    """
    path = Path(path)
    file = open_gguf(path)
    config = _model_config(file, path)
    # before the weights, which take minutes to read
    tokenizer = header_tokenizer(file.metadata, where=path)
    check_vocabulary(tokenizer, config.vocab_size, where=path)
    text = read_text(file.metadata, "tokenizer.chat_template", "", where=path)
    template = template or guess_template(text, tokenizer)
    params = file_params(config, file.tensors, style="gguf", where=path)
    name = file.metadata.get("general.name", path.stem)
    return Imported(config, params, tokenizer, template, f"GGUF file {path} ({name})")


def _model_config(file: GGUFFile, path: Path) -> ModelConfig:
    metadata, tensors = file
    _refuse_variants(file, path)
    count = functools.partial(read_count, metadata, where=path)
    number = functools.partial(read_number, metadata, where=path)
    heads = count("llama.attention.head_count")
    try:
        config = ModelConfig(
            vocab_size=embedding_rows(tensors, "gguf", where=path),
            model_width=count("llama.embedding_length"),
            num_layers=count("llama.block_count"),
            num_heads=heads,
            num_kv_heads=count("llama.attention.head_count_kv", heads),
            feed_forward_width=count("llama.feed_forward_length"),
            max_context=count("llama.context_length"),
            head_dim=count("llama.attention.key_length") if "llama.attention.key_length" in metadata else 0,
            norm_epsilon=_decimal(number("llama.attention.layer_norm_rms_epsilon")),
            rope_base=_decimal(number("llama.rope.freq_base", 10_000.0)),
            tie_embeddings="output.weight" not in tensors,
        )
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    _require_one_head_dim(metadata, config.head_dim, path)
    return config


def _decimal(value: float) -> float:
    """The number somebody typed before it was stored as float32: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value)))


def _refuse_variants(file: GGUFFile, path: Path) -> None:
    """Raise on every header that asks for something other than plain Llama."""
    metadata = file.metadata
    parts = metadata.get("split.count", 0)  # 0 in a file that was joined
    if parts > 1:
        raise FormatError(
            f"{path} is one of {parts} parts of a model, only whole files are read; join them with "
            "`llama-gguf-split --merge FIRST_PART NEW_FILE` of llama.cpp"
        )
    require_keys(metadata, ["general.architecture"], where=path)
    require_plain(metadata, _PLAIN, where=path)
    if "rope_freqs.weight" in file.tensors:
        raise not_plain(path, "rope_freqs.weight scales the rotary frequencies, which must be unscaled")
    for key in ("llama.attention.head_count", "llama.attention.head_count_kv", "llama.feed_forward_length"):
        if isinstance(metadata.get(key), list):
            raise not_plain(path, f"{key} differs from layer to layer, all layers must be alike")


def _require_one_head_dim(metadata: dict[str, Any], head_dim: int, path: Path) -> None:
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.get(key, head_dim) != head_dim:
            raise not_plain(path, f"{key} is {metadata[key]}, the head dim {head_dim}, they must be equal")
