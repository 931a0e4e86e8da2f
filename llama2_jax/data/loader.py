"""Batches by number: batch ``n`` depends on the configuration and ``n``, on nothing else.

Rows ``n*B`` to ``n*B + B`` of the mixed sequence are global batch ``n``; host ``h`` of ``H``
holds the ``h``-th of ``H`` equal blocks of it. So the same tokens are trained on at step ``n``
for any number of hosts and after any resume, and there is no iterator state to save.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.mixture import DataSource, MixedRows, mix, source_epochs
from llama2_jax.data.packing import Row, Rows
from llama2_jax.structs import TokenBatch


@dataclass(frozen=True)
class Loader:
    """This host's share of an endless sequence of global batches; see ``make_loader``."""

    sources: tuple[DataSource, ...]
    rows: MixedRows
    batch_size: int  # global
    host_index: int
    host_count: int

    def batch(self, step: int) -> TokenBatch:
        """This host's ``batch_size / host_count`` rows of global batch ``step``, as numpy."""
        mine = host_rows(step, self.batch_size, self.host_index, self.host_count)
        return _stack([self.rows[index] for index in mine])

    def iterate(
        self, start_step: int = 0, *, num_threads: int = 2, prefetch_batches: int = 4
    ) -> Iterator[TokenBatch]:
        """``batch(start_step), batch(start_step + 1), ...`` prepared ahead by threads, without end."""
        import grain  # here, because it imports jax

        steps = grain.MapDataset.range(start_step, sys.maxsize)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch_batches)
        return iter(steps.map(self.batch).to_iter_dataset(options))

    def source_epochs(self, step: int) -> dict[str, float]:
        """How often each source has been seen after ``step`` updates."""
        return source_epochs(self.sources, step=step, batch_size=self.batch_size)


def make_loader(
    sources: Sequence[DataSource],
    *,
    batch_size: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
) -> Loader:
    """Mix ``sources`` and cut the result into global batches of ``batch_size`` rows.

    Raises:
      ConfigError: ``batch_size`` not divisible by ``host_count``, or bad sources (see ``mix``).
    """
    check_hosts(batch_size, host_index, host_count)
    return Loader(tuple(sources), mix(sources, seed=seed), batch_size, host_index, host_count)


def single_pass(
    rows: Rows, *, batch_size: int, host_index: int = 0, host_count: int = 1
) -> Iterator[TokenBatch]:
    """Every row once, in order, for evaluation; empty rows (segment 0, no loss) fill the last batch.

    Every host gets the same number of batches.

    Raises:
      ConfigError: ``batch_size`` not divisible by ``host_count``.
    """
    check_hosts(batch_size, host_index, host_count)
    return _single_pass(rows, batch_size, host_index, host_count)


def check_hosts(batch_size: int, host_index: int, host_count: int) -> None:
    """Raise ``ConfigError`` unless the batch falls into equal blocks of which this host has one."""
    require(
        batch_size > 0 and batch_size % host_count == 0,
        f"batch_size {batch_size} is not a positive multiple of the {host_count} host(s); "
        f"set config.data.batch_size to a multiple of {host_count}",
    )
    require(0 <= host_index < host_count, f"host_index {host_index} is outside 0..{host_count - 1}")


def host_rows(step: int, batch_size: int, host_index: int, host_count: int) -> range:
    """Row numbers of this host's block of global batch ``step``."""
    per_host = batch_size // host_count
    start = step * batch_size + host_index * per_host
    return range(start, start + per_host)


def _single_pass(rows: Rows, batch_size: int, host_index: int, host_count: int) -> Iterator[TokenBatch]:
    empty = {name: np.zeros_like(values) for name, values in rows[0].items()} if len(rows) else {}
    for step in range(-(-len(rows) // batch_size)):
        mine = host_rows(step, batch_size, host_index, host_count)
        chosen = [rows[index] if index < len(rows) else empty for index in mine]
        yield _stack([{**row, "source_id": np.array(0, np.int32)} for row in chosen])


def _stack(rows: Sequence[Row]) -> TokenBatch:
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return TokenBatch(
        tokens_BT=columns["tokens"],
        targets_BT=columns["targets"],
        loss_mask_BT=columns["loss_mask"],
        segment_ids_BT=columns["segment_ids"],
        positions_BT=columns["positions"],
        source_ids_B=columns["source_id"],
    )
