"""Between a dict of lazily read file tensors and our parameter tree, both ways."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama2_jax.interop.file_leaf import FileLeaf
from llama2_jax.interop.imported import FormatError, LazyTensor, listed
from llama2_jax.interop.mapping import (
    Row,
    Slot,
    check_tensors,
    expected_shapes,
    file_shape,
    from_file,
    our_shape,
    rows,
    slots,
    to_file,
)
from llama2_jax.model.config import ModelConfig
from llama2_jax.structs import Params


def file_params(config: ModelConfig, tensors: Mapping[str, LazyTensor], *, style: str, where: Path) -> Params:
    """Our parameter tree from the tensors of a checkpoint; its leaves are read when they are placed.

    Raises:
      FormatError: tensors are missing, left over, or of the wrong shape or dtype.
    """
    check_tensors(expected_shapes(config, style), tensors, where=where)
    params: dict[str, Any] = {}
    for row in rows(config):
        *folders, name = row.path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = _file_leaf(row, config, tensors, style)
    return params


def _file_leaf(row: Row, config: ModelConfig, tensors: Mapping[str, LazyTensor], style: str) -> FileLeaf:
    pattern = getattr(row, style)
    layers = range(config.num_layers) if row.per_layer else [0]
    sources = tuple(tensors[pattern.format(layer=layer)] for layer in layers)
    return FileLeaf(
        our_shape(row, config),
        _joint_dtype(sources),
        sources,
        functools.partial(from_file, row, config=config, style=style),
        stacked=row.per_layer,
    )


def _joint_dtype(sources: Sequence[LazyTensor]) -> np.dtype:
    """The dtype of all layers; float32, which holds the others exactly, where they differ."""
    dtypes = {source.dtype for source in sources}
    return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)


def file_tensors(config: ModelConfig, params: Params, *, style: str) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint of ``style``, in model order, bitwise; made when read.

    Raises:
      FormatError: ``params`` is not the tree of ``config``.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    _check_leaves(config, leaves)

    def tensor(slot: Slot) -> LazyTensor:
        leaf = leaves[slot.row.path]

        def read() -> np.ndarray:
            array = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
            return to_file(slot.row, array, config, style=style)

        return LazyTensor(file_shape(slot.row, config), np.dtype(leaf.dtype), read)

    return {name: tensor(slot) for name, slot in slots(config, style)}


def _check_leaves(config: ModelConfig, leaves: Mapping[str, Any]) -> None:
    wanted = {row.path: our_shape(row, config) for row in rows(config)}
    problems = [f"missing: {path} {shape}" for path, shape in wanted.items() if path not in leaves]
    problems += [f"extra: {path} {tuple(leaves[path].shape)}" for path in leaves if path not in wanted]
    problems += [
        f"shape: {path} is {tuple(leaves[path].shape)}, {shape} by the config"
        for path, shape in wanted.items()
        if path in leaves and tuple(leaves[path].shape) != shape
    ]
    if problems:
        raise FormatError(
            "the parameters are not those of this config; pass the config they were made with"
            + listed(problems)
        )
