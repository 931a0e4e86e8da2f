"""What the TPU kernels compute and load for a batch of documents, counted along their lists of visits."""

from typing import NamedTuple

import numpy as np

from llama2_jax.kernels.ranges import NOTHING, Visits, document_ranges, visits_by_key, visits_by_query
from llama2_jax.kernels.tiles import Layout


class Cost(NamedTuple):
    """Of one kernel over the whole batch."""

    steps: int  # of the grid for each key/value head
    flops: int  # of the matrix products
    loaded_bytes: int  # tiles of queries (and their gradients), keys, values; one that stays is not loaded


def kernel_costs(segment_ids_BT: np.ndarray, layout: Layout) -> dict[str, Cost]:
    """Costs of ``forward``, ``dq`` and ``dkv`` in bfloat16; of rows of one document the plain causal cost."""
    work = layout.work(document_ranges(segment_ids_BT))
    by_query, by_key = visits_by_query(work), visits_by_key(work)

    def cost(visits: Visits, *, products: int, row_arrays: int) -> Cost:
        steps = int(visits.total)
        row, query, key, kind = layout.code.decode(np.asarray(visits.code_I)[:steps])
        products_done = products * int((kind != NOTHING).sum())
        rows = row_arrays * _loads(row, query) * layout.tile_rows
        keys = 2 * _loads(row, key) * layout.key_tile
        return Cost(
            steps,
            products_done * 2 * layout.tile_rows * layout.key_tile * layout.head_dim * layout.kv_heads,
            (rows + keys) * layout.head_dim * layout.kv_heads * 2,
        )

    return {
        "forward": cost(by_query, products=2, row_arrays=1),
        "dq": cost(by_query, products=3, row_arrays=2),
        "dkv": cost(by_key, products=4, row_arrays=2),
    }


def _loads(row: np.ndarray, tile: np.ndarray) -> int:
    """How often the tile changes from one step to the next; the first one is loaded too."""
    return 1 + int(((np.diff(row) != 0) | (np.diff(tile) != 0)).sum())
