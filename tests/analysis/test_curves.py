from llama2_jax.analysis.curves import moving_average


def test_moving_average_by_hand() -> None:
    assert moving_average([1, 2, 3, 4, 9], 2) == [1, 1.5, 2.5, 3.5, 6.5]
    assert moving_average([1, 2, 6], 5) == [1, 1.5, 3]  # of those there are
