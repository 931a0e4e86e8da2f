import math

import pytest

from llama2_jax.data.packing import Row, make_row
from llama2_jax.evals.heldout import heldout_loss
from tests.model import numpy_llama, tiny

DOCUMENTS = [tiny.tokens(n, seed=n) for n in (9, 5, 7)]


@pytest.mark.parametrize(("batch_size", "loss_chunk"), [(1, 0), (2, 4)])
def test_it_is_the_mean_over_tokens_of_all_rows_the_last_batch_filled_up(batch_size, loss_chunk):
    rows: list[Row] = [make_row([one], sequence_length=8, document_mask=True) for one in DOCUMENTS]
    found = heldout_loss(
        tiny.MODEL, tiny.params(), rows, num_bytes=50, batch_size=batch_size, loss_chunk=loss_chunk
    )
    nats = -sum(numpy_llama.next_logprobs(tiny.params(), one, tiny.CONFIG).sum() for one in DOCUMENTS)
    assert found["eval/heldout/loss"] == pytest.approx(nats / (8 + 4 + 6), rel=1e-4)
    assert found["eval/heldout/bits_per_byte"] == pytest.approx(nats / math.log(2) / 50, rel=1e-4)
