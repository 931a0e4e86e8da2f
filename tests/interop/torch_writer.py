"""Write ``torch.save`` archives without torch, so that the reader is tested on every Python."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_TYPES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


class Global(NamedTuple):
    """A name the pickle refers to without this process importing it."""

    module: str
    name: str

    def __call__(self) -> None: ...


class Stored(NamedTuple):
    key: str
    values: np.ndarray


class FakeTensor:
    """What torch pickles for a tensor: a view (offset, shape, strides in elements) of a storage."""

    def __init__(self, stored: Stored, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (stored, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return Global("torch._utils", "_rebuild_tensor_v2"), self.arguments


class FakeParameter(NamedTuple):
    """What torch pickles for a parameter: its tensor, whether it has a gradient, and hooks."""

    data: FakeTensor

    def __reduce__(self) -> Any:
        return Global("torch._utils", "_rebuild_parameter"), (self.data, True, OrderedDict())


class _Pickler(pickle._Pickler):  # the Python one: its dispatch table can be extended
    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[str, np.ndarray] = {}

    def save_name(self, obj: Global) -> None:
        self.write(f"c{obj.module}\n{obj.name}\n".encode())

    dispatch[Global] = save_name

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Stored):
            return None
        self.storages[obj.key] = obj.values
        storage_type = Global("torch", _TYPES[obj.values.dtype.name])
        return ("storage", storage_type, obj.key, "cpu", obj.values.size)


def write_torch(path: Path, tensors: dict[str, Any]) -> None:
    """Arrays are stored whole; anything else is pickled as it is."""
    state = OrderedDict()
    for number, (name, value) in enumerate(tensors.items()):
        if isinstance(value, np.ndarray):
            strides = tuple(step // value.itemsize for step in np.ascontiguousarray(value).strides)
            value = FakeTensor(Stored(str(number), value.reshape(-1)), 0, value.shape, strides)
        state[name] = value
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(state)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("consolidated/data.pkl", buffer.getvalue())
        archive.writestr("consolidated/byteorder", "little")
        for key, values in pickler.storages.items():
            archive.writestr(f"consolidated/data/{key}", np.ascontiguousarray(values).tobytes())
