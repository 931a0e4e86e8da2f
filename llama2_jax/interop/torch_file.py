"""Read ``torch.save`` files without torch and without executing what is pickled in them.

A ``.pth`` file is a zip of one pickle (names, shapes, strides) and one uncompressed entry
per storage. The pickle may ask for five kinds of names only; anything else is refused by
name, so a malicious checkpoint cannot run code.
"""

import functools
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llama2_jax.interop.imported import FormatError, LazyTensor

_STORAGE_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

_SAVE_AGAIN = "Save the state dict alone (a dict of tensors) and try again"


class _Storage(NamedTuple):
    key: str  # entry "<archive>/data/<key>"
    dtype: np.dtype
    size: int  # elements


class _View(NamedTuple):
    """A strided window on a storage; offset and strides count elements, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows tensors, parameters, ordered dicts and storage types; refuses every other global."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names a state dict needs, as objects a pickle can do no harm with."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return functools.partial(_rebuild_tensor)  # a copy: pickles may set attributes
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return functools.partial(_rebuild_parameter)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        raise FormatError(
            f"the pickle asks for {module}.{name}, which a file of plain tensors does not need; "
            f"it was not run. {_SAVE_AGAIN}"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage reference: ("storage", type, key, device, element count)."""
        kind, storage_type, key, _, count = pid
        if kind != "storage" or storage_type not in _STORAGE_DTYPES:
            raise FormatError(f"the pickle refers to {pid!r}, which is no storage of tensors. {_SAVE_AGAIN}")
        return _Storage(str(key), _STORAGE_DTYPES[storage_type], int(count))


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _View:
    return _View(storage, int(offset), tuple(shape), tuple(strides))


def _rebuild_parameter(data: _View, *_: Any) -> _View:
    """A parameter is its tensor; what else there is of it is for training."""
    return data


def open_torch(path: Path) -> dict[str, LazyTensor]:
    """Every tensor of a state dict saved by ``torch.save`` (zip format, torch >= 1.6).

    Raises:
      FormatError: not such a file, truncated, or a pickle that holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _open_archive(path, archive)
    except zipfile.BadZipFile as error:
        raise FormatError(
            f"{path} ({path.stat().st_size} bytes) is not a complete torch.save archive ({error}): it is "
            "truncated, or written by torch < 1.6. Download it again, or save it again with a newer torch"
        ) from error


def _open_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, LazyTensor]:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise FormatError(
            f"{path}: found {len(names)} entries named data.pkl, one is needed; download it again"
        )
    root = names[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise FormatError(f"{path}: big-endian values are not supported; save it on a little-endian machine")
    state = _unpickle(path, archive.read(names[0]))
    tensors = {}
    for name, view in state.items():
        if not isinstance(view, _View):
            raise FormatError(
                f"{path}: {name!r} is a {type(view).__name__}, every entry must be a tensor. {_SAVE_AGAIN}"
            )
        tensors[str(name)] = _lazy(path, archive, f"{root}data/{view.storage.key}", view)
    return tensors


def _unpickle(path: Path, data: bytes) -> dict[Any, Any]:
    try:
        state = _Unpickler(io.BytesIO(data)).load()
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise FormatError(f"{path}: the pickle is damaged ({error!r}); download or copy it again") from error
    if not isinstance(state, dict):
        raise FormatError(
            f"{path} holds a {type(state).__name__}, a state dict (name -> tensor) is needed. {_SAVE_AGAIN}"
        )
    return state


def _lazy(path: Path, archive: zipfile.ZipFile, entry: str, view: _View) -> LazyTensor:
    storage = view.storage
    try:
        info = archive.getinfo(entry)
    except KeyError:
        raise FormatError(f"{path}: the archive lacks {entry}; download or copy it again") from None
    needed = storage.size * storage.dtype.itemsize
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != needed:
        raise FormatError(
            f"{path}: {entry} has {info.file_size} bytes, its {storage.size} {storage.dtype.name} values "
            f"need {needed}, uncompressed; download or copy it again"
        )
    _check_bounds(path, entry, view)

    def read() -> np.ndarray:
        values = np.memmap(path, storage.dtype, "r", _data_offset(path, info), (storage.size,))
        byte_strides = [stride * storage.dtype.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(
            values[view.offset :], view.shape, byte_strides, writeable=False
        )

    return LazyTensor(view.shape, storage.dtype, read)


def _check_bounds(path: Path, entry: str, view: _View) -> None:
    """A window outside its storage would read foreign memory."""
    steps = [(size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)]
    last = view.offset + sum(steps)
    if min([view.offset, *view.shape, *view.strides]) < 0 or (
        0 not in view.shape and last >= view.storage.size
    ):
        raise FormatError(
            f"{path}: a tensor {view.shape} with strides {view.strides} at {view.offset} leaves its storage "
            f"{entry} of {view.storage.size} values: the file is damaged; "
            "download or copy it again"
        )


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the entry's bytes begin: after a local header whose name and extra lengths vary."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
    return info.header_offset + 30 + name_length + extra_length
