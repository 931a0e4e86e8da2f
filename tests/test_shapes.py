import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llama2_jax.shapes import DIMENSIONS, check_shapes, filled, padded_length

ROOT = Path(__file__).parents[1]


def test_agreeing_shapes_give_the_size_of_every_letter():
    found = check_shapes("here", logits_BTV=np.zeros((2, 3, 5)), targets_BT=np.zeros((2, 3)))
    assert found == {"B": 2, "T": 3, "V": 5}


def test_two_sizes_of_one_letter_are_named_with_both_arrays():
    with pytest.raises(ValueError, match=r"here: query length.*\(T\) is 3 in x_BT but 4 in y_BT"):
        check_shapes("here", x_BT=np.zeros((2, 3)), y_BT=np.zeros((2, 4)))


def test_one_array_must_agree_with_itself():
    with pytest.raises(ValueError, match="is 2 in x_DD but 3 in x_DD"):
        check_shapes("here", x_DD=np.zeros((2, 3)))


def test_a_rank_that_differs_from_the_suffix_is_named():
    with pytest.raises(ValueError, match=r"x_BT has shape \(2,\), rank 1; its suffix BT needs rank 2"):
        check_shapes("here", x_BT=np.zeros(2))


def names(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_the_key_holds_the_letters_of_all_tensors_and_no_others():
    used: dict[str, str] = {}
    for folder in ("llama2_jax", "experiments"):
        for source in (ROOT / folder).rglob("*.py"):
            for name in names(source):
                suffix = re.fullmatch(r"[a-z]\w*_([A-Z][A-Z0-9]*)", name)
                used |= {letter: name for letter in (suffix[1] if suffix else "") if letter.isalpha()}
    assert not {letter: name for letter, name in used.items() if letter not in DIMENSIONS}
    assert set(DIMENSIONS) == set(used)


def test_the_page_of_the_key_has_its_letters_in_its_words():
    page = (ROOT / "docs" / "dimensions.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([A-Z]) \| (.*) \|$", page, re.MULTILINE) == list(DIMENSIONS.items())


@pytest.mark.parametrize(
    ("length", "padded"),
    [(1, 64), (64, 64), (65, 128), (500, 512), (512, 512), (513, 640), (2049, 2560), (4096, 4096)],
)
def test_padded_lengths(length, padded):
    assert padded_length(length, multiple=64, limit=8192) == padded
    assert padded_length(length, multiple=64, limit=length) == length


@pytest.mark.parametrize("multiple", [16, 64])
def test_padded_lengths_are_few_and_at_most_a_quarter_more(multiple):
    lengths = range(8 * multiple + 1, 4097)
    padded = [padded_length(length, multiple=multiple, limit=8192) for length in lengths]
    assert all(a <= b <= 1.25 * a for a, b in zip(lengths, padded, strict=True))
    assert all(b % multiple == 0 for b in padded)
    assert len(set(padded)) == 4 * round(np.log2(4096 / (8 * multiple)))


def test_a_last_batch_is_filled_with_its_last_item():
    assert [filled(range(first, 5)[:2], 2) for first in (0, 2, 4)] == [[0, 1], [2, 3], [4, 4]]
