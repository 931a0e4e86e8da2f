"""What attention over a batch of documents costs, counted from the tiles that the kernels visit."""

from typing import NamedTuple

import numpy as np

from llama2_jax.kernels.ranges import NOTHING, document_ranges
from llama2_jax.kernels.tiles import Layout


class Cost(NamedTuple):
    """Of the forward pass over the whole batch.

    The backward pass takes 3.5 times the FLOPs: seven products instead of two.
    """

    visits: int  # tiles of scores, of each key/value head
    flops: int  # of the two matrix products in these tiles
    loaded_bytes: int  # of queries, keys and values from main memory


def forward_cost(segment_ids_BT: np.ndarray, layout: Layout, *, value_bytes: int = 2) -> Cost:
    """Cost of the TPU forward kernel in this layout; one document per row is the plain causal cost."""
    work = np.asarray(layout.work(document_ranges(segment_ids_BT)))
    visits = int((work != NOTHING).sum())
    idle = int(
        (work == NOTHING).all(-1).sum()
    )  # tiles of queries that see nothing are loaded once all the same
    queries = layout.batch * layout.query_tiles * layout.tile_rows
    keys = (visits + idle) * 2 * layout.key_tile
    return Cost(
        visits,
        4 * visits * layout.tile_rows * layout.key_tile * layout.head_dim * layout.kv_heads,
        (queries + keys) * layout.head_dim * layout.kv_heads * value_bytes,
    )
