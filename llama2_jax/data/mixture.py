"""Weighted mixtures of row sources, up-sampled by repetition (DATA-2, DATA-7).

Weights are shares of rows, hence of tokens: rows are full. A source whose share outlasts its
rows starts again in a new order, so the most factual sources can be seen several times. The
order depends on the seed and each source's name, weight and rows, never on hosts or threads.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.packing import Row, Rows


@dataclass(frozen=True)
class DataSource:
    """Rows to draw from. ``weight`` is relative: shares are weights over their sum."""

    name: str
    weight: float
    rows: Rows


@dataclass(frozen=True)
class MixedRows:
    """The endless mixed sequence, by number; each row also has ``source_id``, the index of its source."""

    datasets: tuple[Rows, ...]  # endless ones
    parts: tuple[int, ...]  # relative weights

    def __getitem__(self, index: int) -> Row:
        source, number = place_of(index, self.parts)
        return {**self.datasets[source][number], "source_id": np.array(source, np.int32)}


def mix(sources: Sequence[DataSource], *, seed: int) -> MixedRows:
    """Mix sources; each repeats without end, in another order every time.

    Raises:
      ConfigError: no source, two of one name, a weight that is not positive, or no rows.
    """
    # grain imports jax for its own use; imported here so that llama2_jax.data stays without it.
    import grain

    _check_sources(sources)
    datasets: list[Any] = [
        grain.MapDataset.source(source.rows)
        .shuffle(seed=_source_seed(seed, source.name))
        .repeat(None, reseed_each_epoch=True)
        for source in sources
    ]
    return MixedRows(tuple(datasets), _whole([source.weight for source in sources]))


def place_of(index: int, parts: Sequence[int]) -> tuple[int, int]:
    """Of which source a row of the mixture is, and its number there.

    Of the first n rows the sources after the first have n times their share, rounded down, and split them in
    the same way. In whole numbers, since a share that is a little off adds up over billions of tokens; those
    of ``grain.MapDataset.mix`` are off by up to 1 %.
    """
    remaining = sum(parts)
    for source, part in enumerate(parts[:-1]):
        before, after = (n * (remaining - part) // remaining for n in (index, index + 1))
        if before == after:
            return source, index - before
        index, remaining = before, remaining - part
    return len(parts) - 1, index


def _whole(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the relation of the weights as they are written: 0.1 is a tenth."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(one.denominator for one in exact))
    return tuple(int(one * scale) for one in exact)


def shares(sources: Sequence[DataSource]) -> dict[str, float]:
    """Share of rows of each source; they sum to 1."""
    total = sum(source.weight for source in sources)
    return {source.name: source.weight / total for source in sources}


def source_epochs(sources: Sequence[DataSource], *, step: int, batch_size: int) -> dict[str, float]:
    """How often each source has been seen after ``step`` updates (to a row or so)."""
    share = shares(sources)
    return {source.name: share[source.name] * step * batch_size / len(source.rows) for source in sources}


def _check_sources(sources: Sequence[DataSource]) -> None:
    require(bool(sources), "the mixture has no source; give at least one")
    names = [source.name for source in sources]
    require(len(set(names)) == len(names), f"source names must differ, got {', '.join(names)}")
    for source in sources:
        require(
            0 < source.weight < float("inf"),
            f"source {source.name} has weight {source.weight}; give a positive number or leave it out",
        )
        require(len(source.rows) > 0, f"source {source.name} has no rows; give it text, or leave it out")


def _source_seed(seed: int, name: str) -> int:
    """A 32-bit seed per source, so that adding one does not reorder the others."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
