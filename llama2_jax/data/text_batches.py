"""Texts in rows of like size, batch by batch, for models that only read them.

Where texts begin alike, several are a row (``branches.py``).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llama2_jax.data.branches import Group, Ids, grouped, lay_out
from llama2_jax.shapes import filled, padded_length

ROW_TEXTS = 4  # a row of several texts is as long as so many, and a batch has so many times fewer rows


class TextBatch(NamedTuple):
    """Rows on the host, int32; the last ones may only fill the batch."""

    tokens_BT: np.ndarray
    segment_ids_BT: np.ndarray  # 0 = padding
    prefix_ids_BT: np.ndarray | None  # segment that a token sees besides its own; None: nobody does
    positions_BT: np.ndarray  # in the whole text


class Place(NamedTuple):
    """Where a text is: its token t stands at ``offset + t`` of a row, if no other text has it too."""

    row: int
    offset: int


def text_batches(
    texts: Sequence[Ids],
    limits: Sequence[int] | None,
    *,
    batch_size: int,
    row_multiple: int = 1,
    length_multiple: int,
) -> Iterator[tuple[TextBatch, dict[int, Place]]]:
    """Batches, the largest rows first, and by the number of each text in them its place.

    Args:
      texts: none empty.
      limits: how many tokens of each text may be shared with others; less than it has. None: nothing is.
      batch_size: a batch has at most the tokens of so many of the longest texts, or of ``row_multiple`` if
        these are more.
      row_multiple: the rows of a batch are a multiple of it.
      length_multiple: of rows, see ``padded_length``.
    """
    parts = max(batch_size // row_multiple, 1)  # of row_multiple texts each: a device has as many texts
    factor = min(ROW_TEXTS, parts)
    if limits is None:
        groups = [Group([index], 0) for index in range(len(texts))]
    else:
        groups = grouped(texts, limits, room=factor * max(map(len, texts), default=0))
    for several, most in ((True, parts // factor), (False, parts)):
        chosen = [group for group in groups if (len(group.members) > 1) == several]
        chosen.sort(key=lambda group: -group.bundle(texts).size)
        few = 1 << max(len(chosen) - 1, 0).bit_length()  # rows enough for all, and few sizes to compile
        num_rows = min(most, -(-few // row_multiple)) * row_multiple
        for first in range(0, len(chosen), num_rows):
            yield _batch(texts, chosen[first : first + num_rows], num_rows, length_multiple)


def _batch(
    texts: Sequence[Ids], groups: Sequence[Group], num_rows: int, length_multiple: int
) -> tuple[TextBatch, dict[int, Place]]:
    bundles = [group.bundle(texts) for group in groups]
    length = padded_length(bundles[0].size, multiple=length_multiple)
    rows, offsets = zip(*(lay_out([bundle], length) for bundle in bundles), strict=True)
    # a full batch, to compile few shapes
    tokens, segments, prefixes, positions = map(np.stack, zip(*filled(rows, num_rows), strict=True))
    places = {
        text: Place(row, offset)
        for row, (group, (own,)) in enumerate(zip(groups, offsets, strict=True))
        for text, offset in zip(group.members, own, strict=True)
    }
    return TextBatch(tokens, segments, prefixes if prefixes.any() else None, positions), places
