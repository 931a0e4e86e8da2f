"""The dimension key of the whole repository, a shape check for public boundaries, and lengths to compile for.

Letters follow ``jax.nn.dot_product_attention``: one underscore, then one letter per dim in
array order (``w_q_DNH``, ``mask_BTS``); a digit is a dim of that fixed size (``scores_B2``).
Scalars and structs carry no suffix.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")

DIMENSIONS = {
    "B": "batch (rows)",
    "T": "query length (tokens of a row)",
    "S": "key length (cache slots)",
    "N": "query heads",
    "K": "key/value heads",
    "G": "query heads per key/value head, N / K",
    "H": "head dim",
    "D": "model width",
    "F": "feed-forward width",
    "V": "vocabulary",
    "L": "layers",
    "C": "new tokens of a completion; completions per prompt where P is present; answers of a pair",
    "P": "prompts; pairs of a row; parts of a row's cache in decoding kernels",
    "M": "rows of scores in kernels: tokens times the G query heads of a key/value head",
    "R": "the G query heads of a key/value head, filled up to the rows that a product takes",
    "A": "answers: places of a row where scores are read",
    "X": "tiles of a row in kernels",
    "I": "entries of a kernel's list: visits, blocks",
}


def check_shapes(where: str, **arrays: Any) -> dict[str, int]:
    """Check that the suffix letters of all ``arrays`` agree, and return their sizes.

    ``check_shapes("loss", logits_BTV=x, targets_BT=y)`` gives ``{"B": .., "T": .., "V": ..}``.

    Raises:
      ValueError: a rank differs from the suffix, or one letter stands for two sizes.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        letters = name.rsplit("_", 1)[1]
        if len(letters) != len(array.shape):
            raise ValueError(
                f"{where}: {name} has shape {tuple(array.shape)}, rank {len(array.shape)}; "
                f"its suffix {letters} needs rank {len(letters)}"
            )
        for letter, size in zip(letters, array.shape, strict=True):
            known = sizes.setdefault(letter, (size, name))
            if known[0] != size:
                raise ValueError(
                    f"{where}: {DIMENSIONS.get(letter, letter)} ({letter}) is {known[0]} in "
                    f"{known[1]} but {size} in {name}"
                )
    return {letter: size for letter, (size, _) in sizes.items()}


def padded_length(length: int, *, multiple: int, limit: int | None = None) -> int:
    """``length`` rounded up, so that few shapes are compiled: to a multiple of ``multiple`` (a power of two).

    Beyond eight times ``multiple`` to one of four lengths per power of two: at most a quarter more. Never
    beyond ``limit``, such as a model's context.
    """
    step = max(multiple, 2 ** (length - 1).bit_length() // 8)
    padded = -(-length // step) * step
    return padded if limit is None else min(padded, limit)


def filled(items: Sequence[Item], size: int) -> list[Item]:
    """A last batch filled up to ``size`` with copies of its last item: one compiled shape for all batches."""
    return [*items, *[items[-1]] * (size - len(items))]
