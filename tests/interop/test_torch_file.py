import os
import pickle
import zipfile

import numpy as np
import pytest

from llama2_jax.interop.imported import FormatError
from llama2_jax.interop.torch_file import open_torch
from tests.interop.models import DTYPES
from tests.interop.torch_writer import FakeParameter, FakeTensor, Global, Stored, write_torch


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_was_written(tmp_path, dtype):
    array = np.arange(12).reshape(3, 4).astype(DTYPES[dtype])
    write_torch(tmp_path / "x.pth", {"a": array, "b": array[0]})
    tensors = open_torch(tmp_path / "x.pth")
    assert tensors["a"].shape == (3, 4)
    assert tensors["a"].dtype == DTYPES[dtype]
    np.testing.assert_array_equal(tensors["a"].read(), array)
    np.testing.assert_array_equal(tensors["b"].read(), array[0])


def test_honours_offset_and_strides(tmp_path):
    values = np.arange(24, dtype=np.float32)
    stored = Stored("0", values)
    write_torch(
        tmp_path / "x.pth",
        {"transposed": FakeTensor(stored, 0, (6, 4), (1, 6)), "tail": FakeTensor(stored, 18, (2, 3), (3, 1))},
    )
    tensors = open_torch(tmp_path / "x.pth")
    np.testing.assert_array_equal(tensors["transposed"].read(), values.reshape(4, 6).T)
    np.testing.assert_array_equal(tensors["tail"].read(), values[18:].reshape(2, 3))


def test_a_parameter_is_its_tensor(tmp_path):
    stored = Stored("0", np.arange(6, dtype=np.float32))
    write_torch(tmp_path / "x.pth", {"a": FakeParameter(FakeTensor(stored, 2, (2, 2), (2, 1)))})
    np.testing.assert_array_equal(open_torch(tmp_path / "x.pth")["a"].read(), [[2, 3], [4, 5]])


@pytest.mark.parametrize(
    "view", [(20, (2, 3), (3, 1)), (0, (5, 5), (5, 1)), (0, (2,), (-1,)), (-1, (1,), (1,))]
)
def test_a_view_outside_its_storage_is_refused(tmp_path, view):
    stored = Stored("0", np.zeros(24, np.float32))
    write_torch(tmp_path / "x.pth", {"a": FakeTensor(stored, *view)})
    with pytest.raises(FormatError, match="leaves its storage"):
        open_torch(tmp_path / "x.pth")


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_pickle_does_not_run(tmp_path):
    write_torch(tmp_path / "x.pth", {"a": Malicious(f"touch {tmp_path}/owned")})
    with pytest.raises(FormatError, match=r"(posix|nt)\.system.*not run"):
        open_torch(tmp_path / "x.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("module", "name"), [("builtins", "eval"), ("torch.load", "x"), ("collections", "OrderedDict.__init__")]
)
def test_forbidden_names_are_named(tmp_path, module, name):
    write_torch(tmp_path / "x.pth", {"a": Global(module, name)})
    with pytest.raises(FormatError, match=f"{module}.{name}"):
        open_torch(tmp_path / "x.pth")


def test_a_value_that_is_no_tensor_is_refused(tmp_path):
    write_torch(tmp_path / "x.pth", {"step": 3})
    with pytest.raises(FormatError, match="'step' is a int"):
        open_torch(tmp_path / "x.pth")


def test_a_truncated_archive_is_refused_with_its_size(tmp_path):
    path = tmp_path / "x.pth"
    write_torch(path, {"a": np.zeros((64, 64), np.float32)})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FormatError, match=r"5000 bytes.*truncated"):
        open_torch(path)


def _rewrite(path, changes, *, compression=zipfile.ZIP_STORED, extra=b""):
    """The archive again, with other content of entries; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.extra = compression, extra
            if content is not None:
                archive.writestr(info, content)


def test_values_are_found_behind_extra_fields(tmp_path):
    """With which torch aligns them."""
    array = np.arange(12, dtype=np.float32)
    write_torch(tmp_path / "x.pth", {"a": array})
    _rewrite(tmp_path / "x.pth", {}, extra=b"FB\x04\x00ZZZZ")
    np.testing.assert_array_equal(open_torch(tmp_path / "x.pth")["a"].read(), array)


@pytest.mark.parametrize(
    ("changes", "how", "message"),
    [
        ({"consolidated/byteorder": b"big"}, {}, "big-endian values are not supported"),
        ({"consolidated/data.pkl": pickle.dumps([1], 2)}, {}, "holds a list, a state dict .* is needed"),
        ({"consolidated/data.pkl": b"\x80\x02"}, {}, "the pickle is damaged"),
        ({"other/data.pkl": b""}, {}, "found 2 entries named data.pkl, one is needed"),
        ({"consolidated/data/0": None}, {}, "the archive lacks consolidated/data/0; download"),
        ({"consolidated/data/0": bytes(44)}, {}, "has 44 bytes, its 12 float32 values need 48, uncompressed"),
        ({}, {"compression": zipfile.ZIP_DEFLATED}, "has 48 bytes, .* need 48, uncompressed"),
    ],
)
def test_archives_that_hold_values_otherwise_are_refused(tmp_path, changes, how, message):
    write_torch(tmp_path / "x.pth", {"a": np.zeros(12, np.float32)})
    _rewrite(tmp_path / "x.pth", changes, **how)
    with pytest.raises(FormatError, match=message):
        open_torch(tmp_path / "x.pth")


def test_reads_what_torch_saves(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"whole": base, "transposed": base.T, "rows": base[2:], "bf16": base.to(torch.bfloat16)}
    torch.save(torch.nn.ParameterDict(state).state_dict(), tmp_path / "x.pth")
    tensors = open_torch(tmp_path / "x.pth")
    for name, value in state.items():
        np.testing.assert_array_equal(tensors[name].read().astype(np.float32), value.float().numpy())
    torch.save({"a": torch.nn.Parameter(base)}, tmp_path / "x.pth")
    np.testing.assert_array_equal(open_torch(tmp_path / "x.pth")["a"].read(), base.numpy())
