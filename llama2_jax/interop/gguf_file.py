"""The GGUF container: magic, metadata, tensor directory, then aligned tensor values.

The header is parsed here so that a truncated file is found before anything is read, with
both sizes, and quickly (large vocabularies sit in the header); what the quantised blocks
mean is left to the ``gguf`` package (extra ``[import]``).
"""

import mmap
import struct
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llama2_jax.interop.fields import read_count
from llama2_jax.interop.imported import FormatError, LazyTensor

MAGIC = b"GGUF"
_PLAIN_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SUPPORTED_TYPES = (*_PLAIN_DTYPES, *_BLOCK_TYPES)
# value type number -> struct code (GGUF specification)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GGUFFile(NamedTuple):
    """Header values by key, and tensors by name (dequantised to float32 when read)."""

    metadata: dict[str, Any]
    tensors: dict[str, LazyTensor]


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]  # (out, in): the file lists the fastest dim first
    type_number: int
    offset: int  # from the start of the values


def gguf_package() -> ModuleType:
    """The optional ``gguf`` package.

    Raises:
      FormatError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise FormatError(
            "reading GGUF files needs the gguf package: pip install 'llama2_jax[import]'"
        ) from error
    return gguf


class _Cursor:
    """Reads little-endian values one after another from the mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.position)[0]
        self.position += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        raw = self.data[self.position : self.position + length]
        if len(raw) < length:
            raise struct.error("text ends after the file")
        self.position += length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item_kind, count = self.scalar("I"), self.scalar("Q")
        if item_kind in (_STRING, _ARRAY):
            return [self.value(item_kind) for _ in range(count)]
        code = f"<{count}{_SCALARS[item_kind]}"
        values = list(struct.unpack_from(code, self.data, self.position))
        self.position += struct.calcsize(code)
        return values


def open_gguf(path: Path) -> GGUFFile:
    """Header and directory of the file; tensor values stay on disk until read.

    Raises:
      FormatError: no GGUF file, truncated, a tensor type that is not supported, or the ``gguf``
        package is missing.
    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise FormatError(
                f"{path} does not begin with {MAGIC.decode()}: it is not a GGUF file; download it again"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                metadata, entries, position = _read_header(_Cursor(data), path)
            except (struct.error, KeyError, UnicodeDecodeError) as error:
                raise FormatError(
                    f"{path}: its {len(data)} bytes end inside the header, or the header is damaged "
                    f"({error}); download or copy it again"
                ) from error
    alignment = read_count(metadata, "general.alignment", 32, where=path)
    start = position + -position % alignment
    return GGUFFile(metadata, _tensors(path, entries, start))


def _read_header(cursor: _Cursor, path: Path) -> tuple[dict[str, Any], list[_Entry], int]:
    cursor.position = len(MAGIC)
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise FormatError(
            f"{path}: GGUF version {version}, only little-endian versions 2 and 3 can be read; "
            "convert the model again with a current llama.cpp"
        )
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = []
    for _ in range(tensor_count):
        name = cursor.text()
        shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))[::-1]
        entries.append(_Entry(name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    return metadata, entries, cursor.position


def _tensors(path: Path, entries: list[_Entry], start: int) -> dict[str, LazyTensor]:
    gguf = gguf_package()
    types = {entry.name: _type_name(gguf, entry.type_number) for entry in entries}
    refused = [f"{name} is {kind}" for name, kind in types.items() if kind not in SUPPORTED_TYPES]
    if refused:
        raise FormatError(
            f"{path}: {len(refused)} tensor(s) of an unsupported type: {', '.join(refused[:4])}"
            f"{', ...' if len(refused) > 4 else ''}; supported: {', '.join(SUPPORTED_TYPES)}. "
            "Take another quantisation of the model, Q8_0 or Q4_K_M for instance"
        )
    sizes = {entry.name: _byte_count(gguf, entry, path) for entry in entries}
    needed = max((start + entry.offset + sizes[entry.name] for entry in entries), default=0)
    size = path.stat().st_size
    if size < needed:
        raise FormatError(
            f"{path} is truncated: it has {size} bytes, its header describes {needed} bytes; "
            "download or copy it again"
        )
    return {
        entry.name: _tensor(path, entry, types[entry.name], start + entry.offset, sizes[entry.name])
        for entry in entries
    }


def _type_name(gguf: ModuleType, number: int) -> str:
    try:
        return str(gguf.GGMLQuantizationType(number).name)
    except ValueError:
        return f"type {number} (unknown)"


def _byte_count(gguf: ModuleType, entry: _Entry, path: Path) -> int:
    values, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(entry.type_number)]
    if entry.shape[-1:] and entry.shape[-1] % values:
        raise FormatError(
            f"{path}: {entry.name} has rows of {entry.shape[-1]} values, a block of its type "
            f"{_type_name(gguf, entry.type_number)} has {values}; the file is damaged, download it again"
        )
    return int(np.prod(entry.shape, dtype=np.int64)) // values * block_bytes


def _tensor(path: Path, entry: _Entry, kind: str, offset: int, byte_count: int) -> LazyTensor:
    def read() -> np.ndarray:
        if kind in _PLAIN_DTYPES:
            return np.memmap(path, _PLAIN_DTYPES[kind], "r", offset, entry.shape)
        gguf = gguf_package()
        blocks = np.memmap(path, np.uint8, "r", offset, (byte_count,))
        rows = np.asarray(blocks).reshape(*entry.shape[:-1], -1)
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(entry.type_number))

    return LazyTensor(entry.shape, _PLAIN_DTYPES.get(kind, np.dtype(np.float32)), read)
