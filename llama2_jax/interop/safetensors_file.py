"""The safetensors container: 8 bytes header length, JSON header, then the raw values.

Read and written here rather than through the package because a truncated file must be
reported with both sizes, and because a shard is written tensor by tensor, never held whole.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama2_jax.files import naming
from llama2_jax.interop.imported import FormatError, LazyTensor

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Every tensor of the file, by name; values stay on disk until read.

    Raises:
      FormatError: the file is truncated or its header is damaged.
    """
    header, start = _read_header(path)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_entry(path, name, entry)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    _check_size(path, start + max(ends, default=0), "its header describes")
    return {name: _tensor(path, name, entry, start) for name, entry in header.items()}


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the file offset at which the values begin."""
    with path.open("rb") as file:
        _check_size(path, 8, "a safetensors header length needs")
        length = int.from_bytes(file.read(8), "little")
        _check_size(path, 8 + length, "its header alone needs")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"{path}: the safetensors header is not JSON ({error}); copy it again"
            ) from error
    if not isinstance(header, dict):
        raise FormatError(
            f"{path}: the safetensors header is a {type(header).__name__}, an object is needed; copy it again"
        )
    return header, 8 + length


def _check_entry(path: Path, name: str, entry: Any) -> None:
    """Raise FormatError unless the entry says what a tensor is and where it lies."""
    if not isinstance(entry, dict):
        raise FormatError(f"{path}: the header's entry for {name} is a {type(entry).__name__}; copy it again")
    offsets: Any = entry.get("data_offsets")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FormatError(
            f"{path}: {name} has data_offsets {offsets!r}; they must be two byte numbers, copy it again"
        )
    if not _are_sizes(entry.get("shape")):
        raise FormatError(
            f"{path}: {name} has shape {entry.get('shape')!r}; it must be a list of sizes, copy it again"
        )
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FormatError(
            f"{path}: {name} has dtype {dtype}; known: {', '.join(_DTYPES)}. Save it in one of these"
        )


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_size(path: Path, needed: int, what: str) -> None:
    size = path.stat().st_size
    if size < needed:
        raise FormatError(
            f"{path} is truncated: it has {size} bytes, {what} {needed} bytes; download or copy it again"
        )


def _tensor(path: Path, name: str, entry: dict[str, Any], start: int) -> LazyTensor:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]

    def read() -> np.ndarray:
        return np.memmap(path, dtype, mode="r", offset=start + begin, shape=shape)

    tensor = LazyTensor(shape, dtype, read)
    if tensor.byte_count != end - begin:
        raise FormatError(
            f"{path}: {name} {shape} {dtype.name} needs {tensor.byte_count} bytes, the header gives it "
            f"{end - begin}; the file is damaged, download or copy it again"
        )
    return tensor


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write the tensors in order, one in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.byte_count
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    with naming(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.read()).view(np.uint8).data)
