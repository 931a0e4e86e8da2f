"""Which format a checkpoint path holds."""

from collections.abc import Callable
from pathlib import Path

from llama2_jax.interop.gguf_file import MAGIC
from llama2_jax.interop.imported import FormatError


def checkpoint_kind(path: Path | str) -> str:
    """ "gguf", "native" (a workdir of ours), "meta" or "huggingface", by looking at the path.

    Raises:
      FormatError: nothing is there, or it is none of these; says what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path} does not exist; give a checkpoint folder or a .gguf file")
    for kind, holds in _KINDS.items():
        if holds(path):
            return kind
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise FormatError(
        f"{path} is no checkpoint: found {found or 'an empty folder'}. Looked for a file that begins with "
        f"{MAGIC.decode()}; checkpoints/ (one of our workdirs); params.json beside "
        "consolidated.NN.pth (Meta); config.json beside *.safetensors or pytorch_model*.bin (Hugging Face)"
    )


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _is_native(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def _is_meta(path: Path) -> bool:
    return (path / "params.json").is_file() and any(path.glob("consolidated.*.pth"))


def _is_huggingface(path: Path) -> bool:
    kinds = ("*.safetensors", "pytorch_model*.bin")
    has_weights = any(any(path.glob(kind + ending)) for kind in kinds for ending in ("", ".index.json"))
    return (path / "config.json").is_file() and has_weights


_KINDS: dict[str, Callable[[Path], bool]] = {
    "gguf": _is_gguf,
    "meta": _is_meta,
    "huggingface": _is_huggingface,
    "native": _is_native,
}
