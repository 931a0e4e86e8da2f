"""One door for models at rest: any checkpoint in, our own or a Hugging Face folder out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama2_jax.config import ConfigError, build, require, require_choice, write_json
from llama2_jax.data.chat import Template, get_template
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer
from llama2_jax.generate.sampler import make_sampler
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.interop.file_leaf import FileLeaf
from llama2_jax.interop.gguf import load_gguf
from llama2_jax.interop.huggingface import load_huggingface
from llama2_jax.interop.huggingface import save_huggingface as write_huggingface
from llama2_jax.interop.imported import Imported, check_vocabulary
from llama2_jax.interop.mapping import FLOAT_DTYPES
from llama2_jax.interop.meta import load_meta
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer, abstract_params, leaf_by_leaf
from llama2_jax.sharding.placement import place_leaf, place_parts
from llama2_jax.sharding.rules import Partitioner, single_device
from llama2_jax.structs import Params
from llama2_jax.train.checkpoint import read_meta, read_params, stored_steps, write_params

FORMATS = ("huggingface", "native")

REWARD_MODEL = "reward_model"
"""``kind`` in the metadata of a checkpoint whose head gives one score; language models have none."""


class LoadedModel(NamedTuple):
    """A model ready to use: ``model.apply({"params": params}, tokens_BT)``."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    template: Template
    model: Transformer
    source: str  # one line for logs

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ``ConfigError`` if the checkpoint came without one."""
        if self.tokenizer is None:
            raise ConfigError(
                f"{self.source} has no tokenizer; "
                "put its tokenizer.model or tokenizer.json beside the weights"
            )
        return self.tokenizer


def load(
    path: str | Path,
    *,
    dtype: str | None = "float32",
    compute_dtype: str = "float32",
    remat_policy: str = "none",
    attention_impl: str = "auto",
    template: str | None = None,
    step: int | None = None,
    partitioner: Partitioner | None = None,
    with_params: bool = True,
) -> LoadedModel:
    """Open a workdir of ours, a Hugging Face folder, a Meta folder or a GGUF file.

    Ids beyond the tokenizer, spare rows of an embedding that was padded, get no probability.

    Args:
      dtype: of the parameters in memory, float32, bfloat16 or float16; None keeps that of the file, bitwise.
      compute_dtype, remat_policy, attention_impl: as in ``ModelConfig``; a checkpoint does not decide how it
        is computed.
      template: name of the chat template; None takes the checkpoint's own.
      step: of a workdir; None = the newest checkpoint.
      partitioner: where the parameters go; None = the first device.
      with_params: False leaves them in their files, and ``params`` is None: to ask, in seconds, what else the
        checkpoint says.

    Raises:
      FormatError, CheckpointError, ConfigError: what is wrong with the path or its content.
    """
    path, partitioner = Path(path), partitioner or single_device()
    require_choice("dtype", dtype or "float32", FLOAT_DTYPES)
    if template is not None:
        get_template(template)  # refuses an unknown name before minutes of reading
    kind = checkpoint_kind(path)
    if kind == "native":
        imported = _load_native(path, step, partitioner, with_params=with_params)
    else:
        read = {"huggingface": load_huggingface, "meta": load_meta, "gguf": load_gguf}[kind]
        imported = read(path, template=template)
    config = dataclasses.replace(
        imported.config,
        tokenizer_size=_tokenizer_size(imported),
        compute_dtype=compute_dtype,
        remat_policy=remat_policy,
        attention_impl=attention_impl,
    )
    params = place_params(partitioner, imported.params, dtype) if with_params else None
    return LoadedModel(
        config,
        params,
        imported.tokenizer,
        get_template(template or imported.template),
        Transformer(config, partitioner),
        imported.source,
    )


def _tokenizer_size(imported: Imported) -> int:
    """Of ``ModelConfig``: embeddings are often padded to a round number of rows."""
    tokenizer, rows = imported.tokenizer, imported.config.vocab_size
    return tokenizer.vocab_size if tokenizer is not None and tokenizer.vocab_size < rows else 0


def for_decoding(loaded: LoadedModel) -> LoadedModel:
    """The same model as it decodes (``generate.sampler``).

    Weights that were split along ``fsdp`` are whole on every device then, but for what ``tensor`` splits.
    They are laid out leaf by leaf, and one that nothing else holds is freed before the next: so
    ``for_decoding(load(path))`` takes the memory of one model and its largest leaf. Where the caller has a
    name for the argument it takes that of two models.
    """
    sampler = make_sampler(loaded.model, loaded.model.partitioner.gathered())
    found = loaded._replace(config=sampler.model.config, model=sampler.model, params=None)
    held = [loaded.params]
    del loaded  # now ``held`` alone holds them
    return found._replace(params=leaf_by_leaf(held, sampler.weights))


def release_params(
    loaded: LoadedModel, workdir: Path, start_from: Callable[[Params], Params] = lambda params: params
) -> tuple[LoadedModel, Callable[[], Params]]:
    """The model without its parameters, and what gives, once, those that training in ``workdir`` starts from.

    The run must not keep a second copy of them; one that goes on from a checkpoint does not need them at all.

    Args:
      start_from: makes the parameters to start from out of the model's.
    """
    start_params = [] if stored_steps(workdir) else [start_from(loaded.params)]
    return loaded._replace(params=None), start_params.pop


def save_huggingface(folder: str | Path, loaded: LoadedModel) -> None:
    """Write a folder that ``transformers`` loads; it keeps the parameters bitwise."""
    _require_stacked(loaded)
    template = loaded.template.name if loaded.tokenizer is not None else None
    write_huggingface(
        folder, loaded.config, jax.device_get(loaded.params), tokenizer=loaded.tokenizer, template=template
    )


def save_native(folder: str | Path, loaded: LoadedModel) -> None:
    """Write a workdir of ours with the parameters alone, as step 0."""
    folder = Path(folder)
    _require_stacked(loaded)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; give a new folder, nothing was written")
    write_params(
        folder, loaded.params, checkpoint_meta(loaded.config, loaded.tokenizer, loaded.template.name)
    )
    if loaded.tokenizer is not None:
        loaded.tokenizer.save(folder / "tokenizer")
    write_json(folder / "config.json", {"imported_from": loaded.source, "model": loaded.config})


def _require_stacked(loaded: LoadedModel) -> None:
    if not loaded.model.stacked:
        raise ConfigError("the layers are unstacked (for_decoding); save the model that load returned")


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    output_format: str,
    dtype: str | None = None,
    template: str | None = None,
) -> LoadedModel:
    """Load any checkpoint, with its own dtype and template, and write it in one of ``FORMATS``."""
    require_choice("format", output_format, FORMATS)
    loaded = load(source, dtype=dtype, template=template)
    if output_format == "huggingface":
        save_huggingface(folder, loaded)
    else:
        save_native(folder, loaded)
    return loaded


def checkpoint_meta(config: ModelConfig, tokenizer: Tokenizer | None, template: str) -> dict[str, Any]:
    """What every checkpoint of ours says about itself."""
    model = dataclasses.asdict(config)
    del model["attention_impl"]  # of the machine, not of the weights
    del model["tokenizer_size"]  # of the tokenizer
    return {
        "model": model,
        "tokenizer_hash": tokenizer.content_hash if tokenizer is not None else "",
        "template": template,
    }


def _load_native(path: Path, step: int | None, partitioner: Partitioner, *, with_params: bool) -> Imported:
    step, meta = read_meta(path, step)
    if meta.get("kind") == REWARD_MODEL:
        raise ConfigError(
            f"{path} is a reward model, which scores answers and writes none; open it with "
            "rlhf.reward_checkpoint.load_reward_model, or give the chat model it was made from"
        )
    require(
        "model" in meta,
        f"the checkpoint of step {step} in {path} does not say what model it is of; save it with "
        "pretrained.checkpoint_meta(...) in its metadata",
    )
    config = build(ModelConfig, meta["model"], name="model")
    tokenizer = native_tokenizer(path, step, meta)
    check_vocabulary(tokenizer, config.vocab_size, where=path)
    params = read_params(path, partitioner.abstract(abstract_params(config)), step) if with_params else None
    return Imported(config, params, tokenizer, meta["template"], f"workdir {path}, step {step}")


def native_tokenizer(path: Path, step: int, meta: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer beside the checkpoint of a workdir of ours, if there is one.

    Raises:
      ConfigError: it is not the one that ``meta``, the metadata of the checkpoint, names.
    """
    folder = path / "tokenizer"
    if not folder.is_dir():
        return None
    tokenizer = load_tokenizer(folder)
    if tokenizer.content_hash != meta["tokenizer_hash"]:
        raise ConfigError(
            f"the tokenizer in {folder} (sha256 {tokenizer.content_hash[:12]}...) is not the one the "
            f"checkpoint of step {step} was trained with (sha256 {meta['tokenizer_hash'][:12]}...); "
            "restore that file"
        )
    return tokenizer


def place_params(partitioner: Partitioner, params: Params, dtype: str | None) -> Params:
    """Read, cast and place leaf by leaf: as a whole, a model would sit twice in the host's memory.

    Raises:
      ConfigError: a value is beyond the range of ``dtype``.
    """

    def place(path: Any, leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(leaf, FileLeaf):
            placed = place_parts(leaf.shape, sharding, lambda parts: leaf.read(parts, dtype or leaf.dtype))
        else:
            placed = place_leaf(leaf, sharding, dtype)
        require_same_range(path, leaf, placed)
        return placed

    return jax.tree_util.tree_map_with_path(place, params, partitioner.tree(params))


def require_same_range(path: Any, source: Any, cast: jax.Array | np.ndarray) -> None:
    """Refuse to make finite values infinite by a cast.

    Args:
      path: of the leaf in its tree, for the message.
      source, cast: the leaf before and after; the former is only read where the latter is not finite.

    Raises:
      ConfigError: there are such values.
    """
    if float(jnp.finfo(cast.dtype).max) >= float(jnp.finfo(source.dtype).max) or jnp.isfinite(cast).all():
        return
    values = np.asarray(source)
    lost = values[np.isfinite(values) & ~np.isfinite(np.asarray(cast))]
    if lost.size:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ConfigError(
            f"{name} has {lost.size} value(s) beyond the largest of {cast.dtype}, {lost[0]} among them, "
            "which would become infinite; take bfloat16 or float32"
        )
