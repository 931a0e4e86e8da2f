import math

import pytest

from llama2_jax.train.carbon import carbon_tonnes


@pytest.mark.parametrize(
    ("hours", "watts", "published"),
    [(184_320, 400, 31.22), (368_640, 400, 62.44), (1_038_336, 350, 153.90), (1_720_320, 400, 291.42)],
)
def test_table_2_follows_from_its_hours(hours, watts, published):
    # the paper's rows are cut after two digits, not rounded
    assert math.floor(100 * carbon_tonnes(hours, watts)) / 100 == published


def test_the_total_of_table_2_is_that_of_its_exact_rows():
    rows = [(184_320, 400), (368_640, 400), (1_038_336, 350), (1_720_320, 400)]
    assert round(sum(carbon_tonnes(*row) for row in rows), 2) == 539.00
