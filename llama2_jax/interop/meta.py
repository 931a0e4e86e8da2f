"""Read Meta's own release format: params.json, consolidated.NN.pth, tokenizer.model.

The model-parallel shards of 13B (2) and 70B (8) are joined along the dims of ARCH-11; norms
are replicated in every shard. Pickled code is never executed, see ``torch_file.py``.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.config import ConfigError
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer
from llama2_jax.interop.fields import read_count, read_json, read_number, require_keys, require_plain
from llama2_jax.interop.imported import FormatError, Imported, LazyTensor, check_vocabulary, listed
from llama2_jax.interop.mapping import BUFFER_ENDINGS, TABLE, Row, embedding_rows
from llama2_jax.interop.torch_file import open_torch
from llama2_jax.interop.tree import file_params
from llama2_jax.model.config import ModelConfig, feed_forward_width

_NULLABLE = ("n_kv_heads", "ffn_dim_multiplier", "use_scaled_rope")  # null says the same as no field
_CONTEXT = 4096  # params.json does not say; Llama 2 (HFW-4)
_NORM_EPSILON = 1e-5  # where params.json does not say (ARCH-3)


def load_meta(folder: Path | str, *, template: str | None = None) -> Imported:
    """Model of a folder with ``params.json`` and ``consolidated.NN.pth``.

    The tokenizer is ``tokenizer.model`` in the folder or, as Meta ships it, beside it.
    ``template`` names the chat template; the format does not say, so None means "llama2".

    Raises:
      FormatError: files are missing, damaged or do not fit each other, or the pickle asks
        for more than plain tensors.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    shards = _open_shards(folder)
    tensors = _join_shards(shards, where=folder)
    config = _model_config(settings, tensors, folder)
    tokenizer = _load_tokenizer(folder, config)  # before the weights, which take minutes to read
    params = file_params(config, tensors, style="meta", where=folder)
    source = f"Meta folder {folder} ({len(shards)} shard{'s' if len(shards) > 1 else ''})"
    return Imported(config, params, tokenizer, template or "llama2", source)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "params.json"
    if not path.is_file():
        raise FormatError(f"{path} does not exist; a Meta folder holds params.json and consolidated.NN.pth")
    settings = read_json(path)
    require_keys(settings, ("dim", "n_layers", "n_heads"), where=path)
    settings = {key: value for key, value in settings.items() if value is not None or key not in _NULLABLE}
    require_plain(settings, {"use_scaled_rope": False}, where=path)
    return settings


def _open_shards(folder: Path) -> list[dict[str, LazyTensor]]:
    paths = sorted(folder.glob("consolidated.*.pth"))
    wanted = [f"consolidated.{number:02d}.pth" for number in range(len(paths))]
    if not paths or [path.name for path in paths] != wanted:
        found = ", ".join(path.name for path in paths) or "no consolidated.NN.pth"
        raise FormatError(
            f"{folder} holds {found}; the shards must be numbered from 00 without gaps: one is missing or "
            "misnamed, download it or name it as it was released"
        )
    return [open_torch(path) for path in paths]


def _join_shards(shards: list[dict[str, LazyTensor]], *, where: Path) -> dict[str, LazyTensor]:
    names = {name for shard in shards for name in shard}
    lacking = [
        f"consolidated.{number:02d}.pth lacks {name}"
        for number, shard in enumerate(shards)
        for name in sorted(names - set(shard))
        if not name.endswith(BUFFER_ENDINGS)
    ]
    if lacking:
        raise FormatError(
            f"{where}: the shards hold different tensors, each must have a part of every one; "
            "download them again" + listed(lacking)
        )
    table = {row.meta.rsplit(".", 2)[-2]: row for row in TABLE}
    return {
        name: _join([shard[name] for shard in shards], _split_dim(name, table), name, where)
        for name in shards[0]
        if not name.endswith(BUFFER_ENDINGS)
    }


def _split_dim(name: str, table: Mapping[str, Row]) -> int | None:
    """The dim to join along; None for norms, and for strangers, which are reported later."""
    parts = name.rsplit(".", 2)
    return table[parts[-2]].split_dim if len(parts) > 1 and parts[-2] in table else None


def _join(parts: list[LazyTensor], dim: int | None, name: str, where: Path) -> LazyTensor:
    first = parts[0]
    if len(parts) == 1 or dim is None:
        return first
    shapes = [part.shape for part in parts]
    if any(len(shape) <= dim for shape in shapes) or any(shape != shapes[0] for shape in shapes):
        raise FormatError(
            f"{where}: {name} has shapes {shapes} in the shards, they must be equal matrices; "
            "download the shards again"
        )
    joined = (*first.shape[:dim], first.shape[dim] * len(parts), *first.shape[dim + 1 :])
    return LazyTensor(joined, first.dtype, lambda: np.concatenate([part.read() for part in parts], axis=dim))


def _model_config(settings: dict[str, Any], tensors: Mapping[str, LazyTensor], folder: Path) -> ModelConfig:
    where = folder / "params.json"
    count = functools.partial(read_count, settings, where=where)
    number = functools.partial(read_number, settings, where=where)
    multiplier = number("ffn_dim_multiplier") if "ffn_dim_multiplier" in settings else None
    width, heads = count("dim"), count("n_heads")
    # Meta leaves it to the tokenizer (TOK-4); the embedding says the same
    implied = settings.get("vocab_size", -1) == -1
    try:
        return ModelConfig(
            vocab_size=embedding_rows(tensors, "meta", where=folder) if implied else count("vocab_size"),
            model_width=width,
            num_layers=count("n_layers"),
            num_heads=heads,
            num_kv_heads=count("n_kv_heads", heads),
            feed_forward_width=feed_forward_width(
                width, multiple_of=count("multiple_of", 256), multiplier=multiplier
            ),
            max_context=count("max_seq_len", _CONTEXT),
            norm_epsilon=number("norm_eps", _NORM_EPSILON),
            rope_base=number("rope_theta", 10_000.0),
        )
    except ConfigError as error:
        raise FormatError(f"{where}: {error}") from error


def _load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    for path in (folder / "tokenizer.model", folder.parent / "tokenizer.model"):
        if path.is_file():
            tokenizer = load_tokenizer(path)
            check_vocabulary(tokenizer, config.vocab_size, where=path)
            return tokenizer
    return None
