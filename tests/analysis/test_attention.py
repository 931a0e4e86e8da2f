import numpy as np
import pytest

from llama2_jax.analysis.attention import attention_to, binned, differing_span

WEIGHTS = np.array(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.7, 0.3, 0.0, 0.0, 0.0],
        [0.1, 0.8, 0.1, 0.0, 0.0],
        [0.2, 0.2, 0.5, 0.1, 0.0],
        [0.3, 0.1, 0.1, 0.1, 0.4],
    ]
)


def test_a_bin_holds_the_largest_weight_of_its_square():
    expected = [[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.3, 0.1, 0.4]]
    np.testing.assert_array_equal(binned(WEIGHTS, 2), expected)
    np.testing.assert_array_equal(binned(WEIGHTS, 1), WEIGHTS)


def test_attention_of_turns_to_a_span():
    # tokens 1 and 2 are the instruction; turn one is token 3, turn two tokens 3 and 4: (0.5 + 0.1) / 2
    assert attention_to(WEIGHTS, (1, 3), [(3, 4), (3, 5)]) == pytest.approx([0.5, 0.3])


def test_the_span_in_which_two_rows_differ():
    assert differing_span([1, 2, 5, 6, 7, 3], [1, 2, 9, 3]) == (2, 5)
    assert differing_span([1, 2, 3], [1, 3]) == (1, 2)
    assert differing_span([1, 2], [1, 2]) == (2, 2)
