"""Nested subsets of data: each holds all of the smaller ones (scaling of safety data, SAFE-7)."""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from llama2_jax.config import require

T = TypeVar("T")


def check_shares(shares: Sequence[float]) -> None:
    """Raise ``ConfigError`` unless shares are numbers that rise within [0, 1]."""
    numbers = all(isinstance(share, int | float) for share in shares)
    require(numbers, f"shares {tuple(shares)} must be numbers")
    rises = all(smaller < larger for smaller, larger in itertools.pairwise(shares))
    require(
        bool(shares) and rises and shares[0] >= 0 and shares[-1] <= 1,
        f"shares {tuple(shares)} must rise, from 0 or more to at most 1",
    )


def share_name(share: float) -> str:
    """``25%`` of 0.25; shares that differ within six digits have different names."""
    return f"{100 * share:g}%"


def nested_subsets(items: Sequence[T], shares: Sequence[float], *, seed: int) -> list[list[T]]:
    """For each share that many of the items, to the nearest whole number, in the order given.

    One random order of the items is drawn; every subset is a beginning of it. So what a larger share adds is
    all that two subsets differ in.

    Args:
      shares: rising, in [0, 1].

    Raises:
      ConfigError: shares that ``check_shares`` refuses, or one above 0 that is less than half an item.
    """
    check_shares(shares)
    order = np.random.default_rng(seed).permutation(len(items))
    subsets = []
    for share in shares:
        size = int(share * len(items) + 0.5)
        require(
            size > 0 or share == 0,
            f"a share of {share:g} of {len(items)} items is none; give more items, or leave the share out",
        )
        subsets.append([items[index] for index in sorted(order[:size])])
    return subsets
