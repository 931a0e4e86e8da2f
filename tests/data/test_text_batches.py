"""Sizes of batches: by how many of the longest texts there is memory for on every device."""

import numpy as np
import pytest

from llama2_jax.data.text_batches import text_batches


def shapes(batch_size, row_multiple, *, share):
    """Rows and tokens of the first batch of 64 texts of 64 tokens that begin with the same 40."""
    ends = np.random.default_rng(0).integers(4, 32, (64, 24)).tolist()
    texts = [[1] * 40 + end for end in ends]
    batches = text_batches(
        texts, [63] * 64 if share else None, batch_size=batch_size, row_multiple=row_multiple,
        length_multiple=16,
    )  # fmt: skip
    found = [(batch.tokens_BT.shape, list(places)) for batch, places in batches]
    assert sorted(text for _, own in found for text in own) == list(range(64))
    return found[0][0]  # the largest rows come first


@pytest.mark.parametrize(
    ("batch_size", "row_multiple", "wanted"),
    [
        (1, 1, (1, 64)),
        (3, 1, (1, 192)),
        (8, 1, (2, 256)),
        (8, 4, (4, 112)),  # a device has room for two texts: 40 + 3 x 24 tokens
        (8, 8, (8, 64)),  # one text for each: nothing more fits in a row
        (16, 8, (8, 112)),
        (40, 8, (8, 256)),  # not 16 rows, which have room for 64 texts
        (3, 8, (8, 64)),  # fewer rows do not go
    ],
)
def test_no_device_has_more_tokens_than_of_its_part_of_the_texts(batch_size, row_multiple, wanted):
    assert shapes(batch_size, row_multiple, share=True) == wanted


@pytest.mark.parametrize(("batch_size", "row_multiple", "num_rows"), [(5, 1, 5), (10, 8, 8), (3, 8, 8)])
def test_rows_of_one_text(batch_size, row_multiple, num_rows):
    assert shapes(batch_size, row_multiple, share=False) == (num_rows, 64)
