"""Texts that begin alike in one row: what they share stands there once, and the end of each sees it.

    tokens      shared   end of text 0   end of text 1   shared   ...
    segments    1        2               3               4
    prefixes    0        1               1               0

So a prompt with two answers, or the examples before many questions of a benchmark, is computed once. What
the model says of a token is what it says of it in the whole text (``Transformer.hidden``).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Ids = Sequence[int]

LEAST_SHARED = 16  # tokens; less is not worth a second pass of attention


class Bundle(NamedTuple):
    """Texts whose first ``shared`` tokens are the same; each has more than these."""

    texts: tuple[Ids, ...]
    shared: int

    @property
    def size(self) -> int:
        """Tokens that it takes in a row."""
        return self.shared + sum(len(text) - self.shared for text in self.texts)


class BranchedRow(NamedTuple):
    """One row of tokens, int32."""

    tokens_T: np.ndarray
    segment_ids_T: np.ndarray  # 0 = padding
    prefix_ids_T: np.ndarray  # segment that a token sees besides its own, 0 = none
    positions_T: np.ndarray  # in the whole text


class Group(NamedTuple):
    """Which texts make a bundle, by their numbers."""

    members: list[int]
    shared: int

    def bundle(self, texts: Sequence[Ids]) -> Bundle:
        """Its bundle, of all texts."""
        return Bundle(tuple(texts[index] for index in self.members), self.shared)


def common_prefix(first: Ids, second: Ids) -> int:
    """How many tokens two texts begin with alike."""
    shorter = min(len(first), len(second))
    differs = np.asarray(first[:shorter]) != np.asarray(second[:shorter])
    return int(differs.argmax()) if differs.any() else shorter


def lay_out(bundles: Sequence[Bundle], length: int) -> tuple[BranchedRow, list[list[int]]]:
    """A row of bundles, which fit in ``length`` together.

    Returns:
      the row, and for each text of each bundle an offset: its token t stands at ``offset + t``, from the
      first that is not shared on.
    """
    row = BranchedRow(*np.zeros((4, length), np.int32))
    end = segment = 0
    offsets: list[list[int]] = []

    def put(ids: Ids, position: int, prefix: int) -> int:
        nonlocal end, segment
        segment += 1
        place = slice(end, end + len(ids))
        row.tokens_T[place], row.segment_ids_T[place], row.prefix_ids_T[place] = ids, segment, prefix
        row.positions_T[place] = np.arange(position, position + len(ids))
        end += len(ids)
        return place.start - position

    for texts, shared in bundles:
        if shared:
            put(texts[0][:shared], 0, 0)
        prefix = segment if shared else 0
        offsets.append([put(text[shared:], shared, prefix) for text in texts])
    return row, offsets


def grouped(texts: Sequence[Ids], limits: Sequence[int], *, room: int) -> list[Group]:
    """Bundles of up to ``room`` tokens that save the most; a text that shares little is alone.

    Of nested beginnings, such as examples that all questions share and a question that its answers share,
    each text has one.

    Args:
      texts: of at most ``room`` tokens.
      limits: how many tokens of each text may be shared, less than it has.
    """
    order = sorted(range(len(texts)), key=lambda index: tuple(texts[index]))
    shared = [
        min(common_prefix(texts[a], texts[b]), limits[a], limits[b]) for a, b in itertools.pairwise(order)
    ]
    ends = np.cumsum([0, *(len(texts[index]) for index in order)])

    def saved(run: _Run) -> int:
        count = run.end - run.first
        own = int(ends[run.end] - ends[run.first]) - count * run.shared
        bundles = -(-own // (room - run.shared))
        return (count - bundles) * run.shared if run.shared >= LEAST_SHARED else 0

    groups: list[Group] = []
    for run in _best_runs(shared, saved):
        left = 0
        for index in order[run.first : run.end]:
            own = len(texts[index]) - run.shared
            if own > left:
                groups.append(Group([], run.shared))
                left = room - run.shared
            groups[-1].members.append(index)
            left -= own
    return [group if len(group.members) > 1 else group._replace(shared=0) for group in groups]


class _Run(NamedTuple):
    """Neighbours in order, from ``first`` to before ``end``."""

    first: int
    end: int
    shared: int


@dataclass
class _Node:
    """Neighbours that share so much, those seen so far, and the best runs to cut them into."""

    first: int
    shared: int
    runs: list[_Run]
    saved: int

    def add(self, other: "_Node") -> None:
        """Let another follow."""
        self.runs += other.runs
        self.saved += other.saved


def _best_runs(shared: Sequence[int], saved: Callable[[_Run], int]) -> list[_Run]:
    """Cut texts in order into the runs that save the most together.

    Args:
      shared: tokens that each text but the last shares with the next.
      saved: tokens that a run saves.
    """
    # the tree of common beginnings, from its leaves up: a node is one run, or the best runs of its parts
    opened = [_Node(0, 0, [], 0)]
    for index, following in enumerate([*shared, 0]):
        done = _Node(index, 0, [_Run(index, index + 1, 0)], 0)
        while opened[-1].shared > following:
            node = opened.pop()
            node.add(done)
            whole = _Run(node.first, index + 1, node.shared)
            if (gain := saved(whole)) > node.saved:
                node.runs, node.saved = [whole], gain
            done = node
        if opened[-1].shared < following:
            opened.append(_Node(done.first, following, done.runs, done.saved))
        else:
            opened[-1].add(done)
    return opened[0].runs
