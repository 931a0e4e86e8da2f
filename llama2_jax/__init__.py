"""The Llama 2 paper in JAX. ``llama2_jax.load(path)`` opens any checkpoint the project knows."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["LoadedModel", "load", "save_huggingface"]


def __getattr__(name: str) -> Any:
    # Lazy: ``llama2_jax.data`` must stay importable in worker processes without importing jax.
    if name in __all__:
        from llama2_jax import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
