import pytest

from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.interop.imported import FormatError


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF" if name.endswith(".gguf") else b"{}")
    return folder


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("native", ["config.json", "checkpoints/10/x"]),
        ("native", ["checkpoints/10/x"]),
        ("huggingface", ["config.json", "model.safetensors", "checkpoints/10/x"]),
        ("meta", ["params.json", "consolidated.00.pth"]),
        ("huggingface", ["config.json", "model.safetensors"]),
        ("huggingface", ["config.json", "model.safetensors.index.json"]),
        ("huggingface", ["config.json", "pytorch_model.bin"]),
        ("huggingface", ["config.json", "pytorch_model.bin.index.json"]),
    ],
)
def test_folders(tmp_path, kind, names):
    assert checkpoint_kind(_touch(tmp_path, *names)) == kind


def test_gguf_is_known_by_its_magic(tmp_path):
    assert checkpoint_kind(_touch(tmp_path, "x.gguf") / "x.gguf") == "gguf"
    (tmp_path / "y.gguf").write_bytes(b"<!doctype html>")
    with pytest.raises(FormatError, match="begins with GGUF"):
        checkpoint_kind(tmp_path / "y.gguf")


def test_anything_else_says_what_was_found_and_looked_for(tmp_path):
    with pytest.raises(FormatError, match="does not exist"):
        checkpoint_kind(tmp_path / "nothing")
    with pytest.raises(FormatError, match=r"found an empty folder.*params.json"):
        checkpoint_kind(tmp_path)
    with pytest.raises(FormatError, match=r"found config.json"):
        checkpoint_kind(_touch(tmp_path, "config.json"))
