import itertools

import numpy as np
import pytest

from llama2_jax.data.offsets import BLOCK, Offsets


@pytest.mark.parametrize("count", [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("shuffled", [False, True])
def test_places_equal_running_sums(count, shuffled):
    random = np.random.default_rng(count)
    lengths = random.integers(0, 4, count).astype(np.uint32)  # documents without tokens among them
    order = random.permutation(count) if shuffled else None
    offsets = Offsets(lengths, order)
    sizes = [int(lengths[index]) for index in (range(count) if order is None else order)]
    begins = [0, *itertools.accumulate(sizes)]
    assert offsets.total == begins[-1]
    assert [offsets.begin(number) for number in range(count)] == begins[:-1]
    owners = [number for number, size in enumerate(sizes) for _ in range(size)]
    assert [offsets.at(token) for token in range(offsets.total)] == [(n, begins[n]) for n in owners]


def test_sums_beyond_32_bits():
    offsets = Offsets(np.full(600, 2**32 - 1, np.uint32))
    assert offsets.total == 600 * (2**32 - 1)
    assert offsets.begin(599) == 599 * (2**32 - 1)
    assert offsets.at(offsets.total - 1) == (599, 599 * (2**32 - 1))
