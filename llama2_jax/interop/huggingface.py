"""Read and write Hugging Face Llama folders: config.json, weights, tokenizer files.

Weights are read from safetensors or, in older folders, from pytorch_model.bin, and written as safetensors.
They make the round trip bitwise; q and k rows are reordered because Hugging Face rotates halves where we
rotate neighbours (HFW-2).
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llama2_jax.config import require_choice, write_json
from llama2_jax.data.chat import get_template, stop_ids
from llama2_jax.data.tokenizer import Tokenizer, TokenizerError
from llama2_jax.interop.fields import read_json
from llama2_jax.interop.hf_config import CLASSIFIER, is_classifier, model_settings, read_model_config
from llama2_jax.interop.hf_tokenizer import load_folder_tokenizer, read_template_text, write_tokenizer
from llama2_jax.interop.imported import FormatError, Imported, LazyTensor, listed
from llama2_jax.interop.safetensors_file import open_safetensors, write_safetensors
from llama2_jax.interop.templates import JINJA, guess_template
from llama2_jax.interop.torch_file import open_torch
from llama2_jax.interop.tree import file_params, file_tensors
from llama2_jax.model.config import ModelConfig
from llama2_jax.structs import Params

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_READERS = {_WEIGHTS: open_safetensors, "pytorch_model.bin": open_torch}  # the first that is there is read
MAX_SHARD_BYTES = 5_000_000_000
_TIED = ("lm_head.weight", "model.embed_tokens.weight")


class OpenFolder(NamedTuple):
    """What a folder holds, its weights not read yet."""

    settings: dict[str, Any]  # config.json
    config: ModelConfig
    tokenizer: Tokenizer | None
    template: str
    tensors: dict[str, LazyTensor]


def load_huggingface(folder: Path | str, *, template: str | None = None) -> Imported:
    """Model and tokenizer of a folder with ``config.json`` and weights, in one file or in shards.

    The weights are safetensors or, where there are none, ``pytorch_model.bin``.
    ``template`` names the chat template; None takes it from the tokenizer's files.

    Raises:
      FormatError: files are missing, truncated or do not fit each other, or the model is not
        plain Llama (see ``hf_config.py``), or a reward model.
    """
    folder = Path(folder)
    opened = open_folder(folder, template=template)
    if is_classifier(opened.settings):
        raise FormatError(
            f"{folder} is a reward model ({CLASSIFIER}), which writes no answers; give a chat model"
        )
    config, tensors = opened.config, opened.tensors
    if config.tie_embeddings:
        tensors = _drop_tied_head(tensors, folder)
    params = file_params(config, tensors, style="huggingface", where=folder)
    return Imported(config, params, opened.tokenizer, opened.template, f"Hugging Face folder {folder}")


def open_folder(folder: Path, *, template: str | None) -> OpenFolder:
    """Everything but the values of the weights; raises as ``load_huggingface``."""
    path = folder / "config.json"
    if not path.is_file():
        raise FormatError(f"{path} does not exist; a Hugging Face folder holds config.json and weights")
    settings = read_json(path)
    config = read_model_config(settings, where=path)
    # before the weights, which take minutes to read
    tokenizer = load_folder_tokenizer(folder, settings, vocab_size=config.vocab_size)
    template = template or guess_template(read_template_text(folder), tokenizer)
    return OpenFolder(settings, config, tokenizer, template, _open_weights(folder))


def _open_weights(folder: Path) -> dict[str, LazyTensor]:
    for name, open_file in _READERS.items():
        if (folder / name).is_file():  # before an index, as in transformers
            return open_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _open_shards(folder, f"{name}.index.json", open_file)
    raise FormatError(
        f"{folder} has neither {' nor '.join(_READERS)}, nor an index of either (*.index.json); "
        "download the weights"
    )


def _open_shards(
    folder: Path, index: str, open_file: Callable[[Path], dict[str, LazyTensor]]
) -> dict[str, LazyTensor]:
    weight_map = read_json(folder / index).get("weight_map")
    named = isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())
    if not weight_map or not named:
        raise FormatError(f"{folder / index} has no weight_map (tensor name -> file); download it again")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise FormatError(
            f"{folder}: {index} names {', '.join(missing)}, which the folder lacks; download them"
        )
    shards = {name: open_file(folder / name) for name in names}
    absent = [f"{name} in {shard}" for name, shard in weight_map.items() if name not in shards[shard]]
    if absent:
        raise FormatError(
            f"{folder}: the index names tensors that their shard lacks, so it is of another model; download "
            f"the folder again{listed(absent)}"
        )
    held = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    # where several shards hold a tensor, the index says which one counts
    return held | {name: shards[shard][name] for name, shard in weight_map.items()}


def _drop_tied_head(tensors: dict[str, LazyTensor], folder: Path) -> dict[str, LazyTensor]:
    """Some tied checkpoints store the head as well; it must then be the embedding."""
    head, embedding = (tensors.get(name) for name in _TIED)
    if head is None or embedding is None:
        return tensors
    if not np.array_equal(head.read(), embedding.read()):
        raise FormatError(
            f"{folder}: tie_word_embeddings is true, but {_TIED[0]} differs from {_TIED[1]}; "
            "set tie_word_embeddings to false in config.json to use both"
        )
    return {name: tensor for name, tensor in tensors.items() if name != _TIED[0]}


def save_huggingface(
    folder: Path | str,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer: Tokenizer | None,
    template: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a folder that ``transformers`` loads, bitwise; it appears whole or not at all.

    Args:
      folder: must not exist, or be empty.
      tokenizer: of ``data/tokenizer``, written beside the weights; None writes none.
      template: name of the chat template to store with the tokenizer; None stores none.
      max_shard_bytes: a file grows to at most this (one tensor more if that alone is larger).

    Raises:
      FormatError: the folder is not empty, or ``params`` is not the tree of ``config``.
      ConfigError: an unknown template.
    """
    tensors = file_tensors(config, params, style="huggingface")
    settings = folder_settings(config, tensors, tokenizer)
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}  # HFW-4
    ends = _answer_ends(tokenizer, template)
    ends = settings["eos_token_id"] if ends is None else ends  # 0 is an id
    generation = {"bos_token_id": settings["bos_token_id"], "eos_token_id": ends} | sampling
    files = {"config.json": settings, "generation_config.json": generation}
    write_folder(
        folder, tensors, files, tokenizer=tokenizer, template=template, max_shard_bytes=max_shard_bytes
    )


def _answer_ends(tokenizer: Tokenizer | None, template: str | None) -> list[int] | int | None:
    """The ids that end an answer in this format, a number if it is one; None where they are unknown."""
    if tokenizer is None or template is None:
        return None
    try:
        ids = list(stop_ids(tokenizer, get_template(template)))
    except TokenizerError:  # it lacks the markers, and cannot be used for chat
        return None
    return ids if len(ids) > 1 else ids[0]


def write_folder(
    folder: Path | str,
    tensors: Mapping[str, LazyTensor],
    files: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None,
    template: str | None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights, JSON files (name -> content) and tokenizer, as ``save_huggingface`` does."""
    folder = Path(folder).absolute()
    if template is not None:
        require_choice("template", template, JINJA)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FormatError(f"{folder} exists and is not empty; give a new folder, nothing was written")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a save that was killed
    partial.mkdir(parents=True)
    try:
        _write_weights(partial, tensors, max_shard_bytes)
        for name, content in files.items():
            write_json(partial / name, content)
        if tokenizer is not None:
            write_tokenizer(partial, tokenizer, template_text=JINJA[template] if template else None)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk gets its space back
        raise


def _write_weights(folder: Path, tensors: Mapping[str, LazyTensor], max_shard_bytes: int) -> None:
    shards: list[dict[str, LazyTensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.byte_count > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.byte_count
    if len(shards) == 1:
        write_safetensors(folder / _WEIGHTS, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file_name, shard)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.byte_count for tensor in tensors.values())
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def folder_settings(
    config: ModelConfig, tensors: Mapping[str, LazyTensor], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The content of config.json for these weights and this tokenizer."""
    ids = {"bos_id": None, "eos_id": None}
    if tokenizer is not None:
        ids = {role: getattr(tokenizer, role) if getattr(tokenizer, role) >= 0 else None for role in ids}
    dtypes = {tensor.dtype.name for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"  # float32 loses nothing of the others
    return model_settings(config, dtype=dtype, **ids)
