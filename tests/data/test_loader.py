import itertools
import subprocess
import sys

import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.loader import make_loader, single_pass
from llama2_jax.data.mixture import DataSource, mix, place_of, shares, source_epochs

LENGTH = 3


class CountedRows:
    """Row i of source s holds the number 100 * s + i in every token."""

    def __init__(self, source: int, count: int):
        self.source, self.count = source, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        value = np.full(LENGTH, 100 * self.source + index, np.int32)
        ones = np.ones(LENGTH, np.int32)
        mask = np.array([1, 1, self.source], np.float32)
        return {"tokens": value, "targets": value, "loss_mask": mask, "segment_ids": ones, "positions": ones}


def make_sources() -> list[DataSource]:
    return [DataSource("small", 3.0, CountedRows(0, 4)), DataSource("large", 1.0, CountedRows(1, 50))]


def numbers(batch) -> list[int]:
    return batch.tokens_BT[:, 0].tolist()


def assert_equal(left, right):
    for name, a, b in zip(left._fields, left, right, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("host_count", [1, 2, 4])
def test_hosts_together_hold_the_global_batch(host_count):
    whole = make_loader(make_sources(), batch_size=8, seed=5)
    for step in (0, 1, 17):
        parts = [
            make_loader(make_sources(), batch_size=8, seed=5, host_index=host, host_count=host_count).batch(
                step
            )
            for host in range(host_count)
        ]
        assert {part.tokens_BT.shape for part in parts} == {(8 // host_count, LENGTH)}
        joined = type(parts[0])(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))
        assert_equal(joined, whole.batch(step))


def test_iterate_gives_the_batches_from_any_start():
    loader = make_loader(make_sources(), batch_size=4, seed=5)
    from_zero = list(itertools.islice(loader.iterate(), 12))
    from_seven = list(itertools.islice(loader.iterate(7, num_threads=3, prefetch_batches=2), 5))
    for step, batch in enumerate(from_zero):
        assert_equal(batch, loader.batch(step))
    for batch, expected in zip(from_seven, from_zero[7:], strict=True):
        assert_equal(batch, expected)


GOLDEN_BATCH = [0, 3, 1, 106, 2, 3, 1, 124, 2, 0, 1, 118, 2, 3, 0, 138]


def test_batches_depend_on_the_seed():
    first, again, other = (
        make_loader(make_sources(), batch_size=16, seed=seed).batch(2) for seed in (5, 5, 6)
    )
    assert_equal(first, again)
    assert numbers(first) == GOLDEN_BATCH
    assert numbers(first) != numbers(other)


def test_weights_are_shares_of_rows_and_small_sources_repeat():
    loader = make_loader(make_sources(), batch_size=8, seed=0)
    batches = [loader.batch(step) for step in range(10)]
    sources = np.concatenate([batch.source_ids_B for batch in batches])
    assert np.bincount(sources).tolist() == [60, 20]
    seen = np.concatenate([numbers(batch) for batch in batches])
    assert (seen // 100 == sources).all()
    small = seen[sources == 0].reshape(-1, 4)
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in small.tolist())
    assert len({tuple(epoch) for epoch in small.tolist()}) > 1, "every epoch has its own order"
    large = seen[sources == 1]
    assert len(set(large)) == 20
    assert large.tolist() != sorted(large)


@pytest.mark.parametrize("weights", [(1, 48), (1, 1.0099), (3, 28), (0.3, 0.3, 0.4), (1e-3, 7, 2.5, 0.125)])
def test_shares_are_exact_for_any_weights(weights):
    rows = 7000
    mixed = mix([DataSource(str(i), weight, [{}]) for i, weight in enumerate(weights)], seed=0)
    places = [place_of(index, mixed.parts) for index in range(rows)]
    for source, weight in enumerate(weights):
        numbers = [number for own, number in places if own == source]
        assert numbers == list(range(len(numbers)))  # none is left out, none comes twice
        wanted = np.arange(1, rows + 1) * weight / sum(weights)
        found = np.cumsum([own == source for own, _ in places])
        assert np.abs(found - wanted).max() < len(weights)  # everywhere, not only at the end
    far = 10**13
    share = sum(place_of(far + i, mixed.parts)[0] == 0 for i in range(rows)) / rows
    assert abs(share - weights[0] / sum(weights)) < 2 / rows


def test_epochs_per_source():
    loader = make_loader(make_sources(), batch_size=8, seed=0)
    assert loader.source_epochs(10) == {"small": 60 / 4, "large": 20 / 50}
    assert source_epochs(make_sources(), step=1, batch_size=16) == {"small": 3.0, "large": 4 / 50}
    assert shares(make_sources()) == {"small": 0.75, "large": 0.25}


def test_adding_a_source_keeps_the_order_of_the_others():
    def order_of_large(sources):
        mixed = mix(sources, seed=3)
        rows = [mixed[i] for i in range(200)]
        return [int(row["tokens"][0]) for row in rows if row["tokens"][0] >= 100][:30]

    small, large = make_sources()
    assert order_of_large([small, large]) == order_of_large([large]) == order_of_large([large, small])


def test_mistakes_name_the_fix():
    small, large = make_sources()
    with pytest.raises(ConfigError, match=r"batch_size 6 is not a positive multiple of the 4 host"):
        make_loader([small], batch_size=6, seed=0, host_count=4)
    with pytest.raises(ConfigError, match="batch_size 6"):
        single_pass(small.rows, batch_size=6, host_count=4)
    with pytest.raises(ConfigError, match=r"host_index 2 is outside 0\.\.1"):
        make_loader([small], batch_size=6, seed=0, host_index=2, host_count=2)
    with pytest.raises(ConfigError, match="no source"):
        make_loader([], batch_size=6, seed=0)
    with pytest.raises(ConfigError, match="must differ, got small, small"):
        make_loader([small, small], batch_size=6, seed=0)
    with pytest.raises(ConfigError, match=r"large has weight 0\.0"):
        make_loader([small, DataSource("large", 0.0, large.rows)], batch_size=6, seed=0)
    with pytest.raises(ConfigError, match="large has no rows"):
        make_loader([DataSource("large", 1.0, [])], batch_size=6, seed=0)


@pytest.mark.parametrize("host_count", [1, 2])
def test_single_pass_sees_every_row_once_in_order(host_count):
    rows = CountedRows(1, 9)
    hosts = [
        list(single_pass(rows, batch_size=4, host_index=host, host_count=host_count))
        for host in range(host_count)
    ]
    assert {len(batches) for batches in hosts} == {3}
    joined = [
        [np.concatenate(leaves) for leaves in zip(*batches, strict=True)]
        for batches in zip(*hosts, strict=True)
    ]
    tokens, _, masks, segments, _, sources = (np.concatenate(column) for column in zip(*joined, strict=True))
    assert tokens[:, 0].tolist() == [*range(100, 109), 0, 0, 0]
    assert segments[:, 0].tolist() == [1] * 9 + [0] * 3
    assert masks.sum() == 9 * 3
    assert set(sources.tolist()) == {0}


def test_importing_the_data_package_does_not_import_jax():
    names = ["chat", "loader", "mixture", "packing", "shards", "sources", "tokenizer"]
    code = "; ".join(f"import llama2_jax.data.{name}" for name in names)
    code += "; import sys; sys.exit('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=False)
    assert result.returncode == 0
