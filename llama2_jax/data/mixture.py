"""Weighted mixtures of row sources, up-sampled by repetition (DATA-2, DATA-7).

Weights are shares of rows, hence of tokens: rows are full. A source whose share outlasts its
rows starts again in a new order, so the most factual sources can be seen several times. The
order depends on the seed and each source's name, weight and rows, never on hosts or threads.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.packing import Row, Rows


@dataclass(frozen=True)
class DataSource:
    """Rows to draw from. ``weight`` is relative: shares are weights over their sum."""

    name: str
    weight: float
    rows: Rows


class MixedRows(Protocol):
    """An endless random-access sequence of rows."""

    def __getitem__(self, index: int) -> Row: ...


def mix(sources: Sequence[DataSource], *, seed: int) -> MixedRows:
    """The endless mixed sequence; each row also has ``source_id``, the index of its source.

    Raises:
      ConfigError: no source, two of one name, a weight that is not positive, or no rows.
    """
    # grain imports jax for its own use; imported here so that llama2_jax.data stays without it.
    import grain

    _check_sources(sources)
    datasets = []
    for number, source in enumerate(sources):
        rows: Any = grain.MapDataset.source(source.rows)
        rows = rows.shuffle(seed=_source_seed(seed, source.name)).repeat(None, reseed_each_epoch=True)
        datasets.append(rows.map(_SetSource(number)))
    return grain.MapDataset.mix(datasets, weights=list(shares(sources).values()))


def shares(sources: Sequence[DataSource]) -> dict[str, float]:
    """Share of rows of each source; they sum to 1."""
    total = sum(source.weight for source in sources)
    return {source.name: source.weight / total for source in sources}


def source_epochs(sources: Sequence[DataSource], *, step: int, batch_size: int) -> dict[str, float]:
    """How often each source has been seen after ``step`` updates (exact to a row)."""
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


@dataclass(frozen=True)
class _SetSource:
    number: int

    def __call__(self, row: Row) -> Row:
        return {**row, "source_id": np.array(self.number, np.int32)}
