from pathlib import Path

import pytest

from llama2_jax.data.pair_scores import both_sides, read_by_all, read_pair_scores, write_pair_scores
from llama2_jax.data.records import DataError
from tests.experiments.runs import write_lines


def test_scores_and_choices_in_any_order(tmp_path: Path) -> None:
    rows = [
        {"id": 2, "choice": "tie", "why": "the same"},
        {"id": 0, "chosen": 3, "rejected": -0.5},
        {"id": 1, "chosen": None, "rejected": None},
        {"id": 3, "choice": "rejected"},
    ]
    found = read_pair_scores(write_lines(tmp_path / "a.jsonl", rows), count=4)
    assert found == {0: (3.0, -0.5), 1: None, 2: (0.0, 0.0), 3: (0.0, 1.0)}
    write_pair_scores(tmp_path / "b.jsonl", found)
    assert read_pair_scores(tmp_path / "b.jsonl", count=4) == found


def test_what_everyone_could_read_is_compared() -> None:
    first = {0: (3.0, -0.5), 1: None, 2: (0.0, 0.0)}
    second = {0: (1.0, 2.0), 1: (1.0, 0.0), 2: (4, 5)}
    assert read_by_all([first, second], 3) == [0, 2]
    chosen, rejected = both_sides(second, [0, 2])
    assert (chosen.tolist(), rejected.tolist()) == ([1, 4], [2, 5])
    assert both_sides(first, []).shape == (2, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": 1, "rejected": 2}, "'id' is None; it must be 0 or more"),
        ({"id": True, "choice": "tie"}, "'id' is True"),
        ({"id": 0, "choice": "A"}, "'choice' is 'A'; known: chosen, tie, rejected"),
        ({"id": 0, "chosen": 1}, "needs 'choice', or 'chosen' and 'rejected'"),
        ({"id": 0, "chosen": 1, "rejected": None}, "'rejected' is None; it must be a number"),
        ({"id": 0, "chosen": "1", "rejected": 2}, "'chosen' is '1'"),
        ({"id": 0, "chosen": float("nan"), "rejected": 2}, "'chosen' is nan"),
        ({"id": 2, "choice": "tie"}, "id 2, of 2 comparisons; give a row for each of the ids 0 to 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row, {"id": 1, "choice": "tie"}])
    with pytest.raises(DataError, match=message):
        read_pair_scores(path, count=2)


def test_every_comparison_has_one_row(tmp_path: Path) -> None:
    tie = {"id": 0, "choice": "tie"}
    with pytest.raises(DataError, match="a second row of id 0"):
        read_pair_scores(write_lines(tmp_path / "a.jsonl", [tie, tie]), count=2)
    with pytest.raises(DataError, match="has 1 of 3 comparisons, id 1 is missing"):
        read_pair_scores(write_lines(tmp_path / "a.jsonl", [tie]), count=3)
