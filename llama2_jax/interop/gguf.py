"""Read a Llama-architecture GGUF file, its tokenizer included.

GGUF keeps q and k rows in interleaved pairs, which is our layout, so nothing is permuted.
Quantised tensors become float32; F16 and BF16 stay what they are.
"""

from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.data.tokenizer import Tokenizer, byte_level_from_merges, sentencepiece_from_pieces
from llama2_jax.interop.gguf_file import GGUFFile, open_gguf
from llama2_jax.interop.hf_tokenizer import check_vocabulary
from llama2_jax.interop.imported import FormatError, Imported
from llama2_jax.interop.templates import guess_template
from llama2_jax.interop.tree import read_params
from llama2_jax.model.config import ModelConfig

# how byte-level pre-tokenizers treat digits; their other rules are those of GPT-2
_SPLIT_DIGITS = {"gpt-2": False, "smollm": True}


def load_gguf(path: Path | str, *, template: str | None = None) -> Imported:
    """Model and tokenizer of one ``.gguf`` file (tensor types: ``SUPPORTED_TYPES`` of ``gguf_file.py``).

    ``template`` names the chat template; None takes it from the header.

    Raises:
      FormatError: not GGUF, truncated, another architecture, an unsupported quantisation,
        scaled rotary frequencies, tensors that do not fit the header, or the ``gguf`` package
        (extra ``[import]``) is missing.
    """
    path = Path(path)
    file = open_gguf(path)
    config = _model_config(file, path)
    # before the weights, which take minutes to read
    template = template or guess_template(file.metadata.get("tokenizer.chat_template"))
    tokenizer = _tokenizer(file.metadata, path)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size, where=path)
    params = read_params(config, file.tensors, style="gguf", where=str(path))
    name = file.metadata.get("general.name", path.stem)
    return Imported(config, params, tokenizer, template, f"GGUF file {path} ({name})")


def _required(metadata: dict[str, Any], key: str, path: Path) -> Any:
    if key not in metadata:
        raise FormatError(f"{path}: the header lacks {key}; it must describe the whole model")
    return metadata[key]


def _model_config(file: GGUFFile, path: Path) -> ModelConfig:
    metadata, tensors = file
    _refuse_variants(file, path)
    heads = _required(metadata, "llama.attention.head_count", path)
    width = _required(metadata, "llama.embedding_length", path)
    if "token_embd.weight" not in tensors:
        raise FormatError(f"{path}: token_embd.weight is missing; the file must hold the whole model")
    epsilon = _required(metadata, "llama.attention.layer_norm_rms_epsilon", path)
    return ModelConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        model_width=width,
        num_layers=_required(metadata, "llama.block_count", path),
        num_heads=heads,
        num_kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        feed_forward_width=_required(metadata, "llama.feed_forward_length", path),
        max_context=_required(metadata, "llama.context_length", path),
        head_dim=metadata.get("llama.attention.key_length", 0),
        norm_epsilon=_decimal(epsilon),
        rope_base=_decimal(metadata.get("llama.rope.freq_base", 10_000.0)),
        tie_embeddings="output.weight" not in tensors,
    )


def _decimal(value: float) -> float:
    """The number somebody typed before it was stored as float32: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value)))


def _refuse_variants(file: GGUFFile, path: Path) -> None:
    """Raise on every header that asks for something other than plain Llama."""
    metadata = file.metadata
    architecture = _required(metadata, "general.architecture", path)
    if architecture != "llama":
        raise FormatError(f"{path}: architecture {architecture!r}; only 'llama' is supported")
    for key, plain in {
        "llama.rope.scaling.type": "none",
        "llama.rope.scale_linear": 1.0,
        "llama.rope.scaling.factor": 1.0,
        "llama.expert_count": 0,
    }.items():
        if metadata.get(key, plain) != plain:
            raise FormatError(f"{path}: {key} is {metadata[key]!r}; only {plain!r} is supported")
    if "rope_freqs.weight" in file.tensors:
        raise FormatError(f"{path}: rope_freqs.weight scales rotary frequencies, which is not supported")
    for key in ("llama.attention.head_count", "llama.attention.head_count_kv", "llama.feed_forward_length"):
        if isinstance(metadata.get(key), list):
            raise FormatError(f"{path}: {key} differs from layer to layer; all layers must be alike")
    width, heads = metadata.get("llama.embedding_length", 0), metadata.get("llama.attention.head_count", 1)
    head_dim = metadata.get("llama.attention.key_length", width // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.get(key, head_dim) != head_dim:
            raise FormatError(
                f"{path}: {key} is {metadata[key]}, the head dim {head_dim}; they must be equal"
            )


def _tokenizer(metadata: dict[str, Any], path: Path) -> Tokenizer | None:
    """The tokenizer of the header; None if it has none."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    tokens = _required(metadata, "tokenizer.ggml.tokens", path)
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if kind == "llama":
        return sentencepiece_from_pieces(
            tokens,
            _required(metadata, "tokenizer.ggml.scores", path),
            types,
            bos_id=metadata.get("tokenizer.ggml.bos_token_id", 1),
            eos_id=metadata.get("tokenizer.ggml.eos_token_id", 2),
            unk_id=metadata.get("tokenizer.ggml.unknown_token_id", 0),
            add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True),
        )
    if kind == "gpt2":
        before = metadata.get("tokenizer.ggml.pre", "gpt-2")
        if before not in _SPLIT_DIGITS:
            raise FormatError(f"{path}: pre-tokenizer {before!r}; known: {', '.join(_SPLIT_DIGITS)}")
        return byte_level_from_merges(
            tokens,
            _required(metadata, "tokenizer.ggml.merges", path),
            token_types=types,
            bos_id=metadata.get("tokenizer.ggml.bos_token_id", -1),
            eos_id=metadata.get("tokenizer.ggml.eos_token_id", -1),
            split_digits=_SPLIT_DIGITS[before],
        )
    raise FormatError(f"{path}: tokenizer {kind!r}; known: 'llama' (SentencePiece), 'gpt2' (byte-level BPE)")
