"""Rows of fixed length from documents or dialogues, with random access.

A row is a dict of numpy arrays of ``sequence_length`` elements, named as the fields of
``TokenBatch``. Rows are cut from a stream of ``sequence_length + 1`` tokens, so neighbouring
rows of a document share one token: the last target of the first is the first input of the
second, and every token is a target exactly once.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.chat import EncodedDialogue
from llama2_jax.data.offsets import Offsets
from llama2_jax.data.records import DataError

Row = Mapping[str, np.ndarray]


class Rows(Protocol):
    """A random-access source of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class Documents(Protocol):
    """What ``PackedDocuments`` needs of a corpus; ``TokenisedCorpus`` has it."""

    lengths: np.ndarray

    def part(self, index: int, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` of a document."""
        ...


class PackedDocuments:
    """Documents in shuffled order, concatenated, then cut into rows (D8).

    Row ``i`` covers stream tokens ``i*T`` to ``i*T + T`` inclusive; the last row is padded.
    With ``document_mask`` attention and targets stay within a document; without it a row is one
    segment with full causal attention, and the BOS of the next document is a target too.
    A document cut by a row's edge continues in the next row with positions from 0.

    Memory is 4 bytes per document for the order, beside the 4 of its length; tokens stay on disk.

    Args:
      corpus: documents with their lengths.
      sequence_length: T.
      seed: order of the documents, or None for corpus order.
      document_mask: see above.
    """

    def __init__(
        self, corpus: Documents, *, sequence_length: int, seed: int | None, document_mask: bool
    ) -> None:
        require(sequence_length > 0, f"sequence_length is {sequence_length}; it must be positive")
        self._corpus = corpus
        self._length = sequence_length
        self._document_mask = document_mask
        order = shuffled_order(len(corpus.lengths), seed)
        self._order = order.astype(np.min_scalar_type(len(order)))
        self._offsets = Offsets(corpus.lengths, self._order)
        self.num_tokens = self._offsets.total
        if self.num_tokens < 2:
            raise DataError(f"the corpus has {self.num_tokens} token(s); a row needs at least 2")

    def __len__(self) -> int:
        return -(-(self.num_tokens - 1) // self._length)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self._length
        stop = min(start + self._length + 1, self.num_tokens)
        slot, begin = self._offsets.at(start)
        parts = []
        while begin < stop:
            document = int(self._order[slot])
            length = int(self._corpus.lengths[document])
            parts.append(self._corpus.part(document, max(start - begin, 0), min(stop - begin, length)))
            slot, begin = slot + 1, begin + length
        return make_row(parts, sequence_length=self._length, document_mask=self._document_mask)


@dataclass(frozen=True)
class PackingReport:
    """What packing did to the dialogues."""

    dialogues: int
    split_dialogues: int  # longer than a row, continued in further pieces
    dropped_pieces: int  # nothing to learn in them
    rows: int
    tokens: int
    learned_tokens: int
    fill_fraction: float  # tokens / room


class PackedDialogues:
    """Dialogues in rows by best-fit decreasing: the longest first, each where least room is left.

    Unlike the paper's plain concatenation (SFT-5) a dialogue that fits a row is never cut. A
    longer one is cut into pieces of a row, and pieces without anything to learn are dropped;
    ``report`` counts both. Row order is by length: shuffle when loading.

    Args:
      dialogues: from ``encode_dialogue``.
      sequence_length: T.
      document_mask: whether attention stays within a dialogue (the paper does not say, D24).

    Raises:
      DataError: no dialogue has anything to learn.
    """

    def __init__(
        self, dialogues: Iterable[EncodedDialogue], *, sequence_length: int, document_mask: bool
    ) -> None:
        require(sequence_length > 0, f"sequence_length is {sequence_length}; it must be positive")
        self._length = sequence_length
        self._document_mask = document_mask
        cut = [_cut(dialogue, sequence_length) for dialogue in dialogues]
        pieces = [piece for piece_list in cut for piece in piece_list]
        self._pieces = [piece for piece in pieces if piece[1].any()]
        if not self._pieces:
            raise DataError(
                f"the loss mask is zero in all of {len(cut)} dialogue(s): no answer tokens to learn; "
                "check the roles and sequence_length"
            )
        self._bins = best_fit_decreasing([len(tokens) for tokens, _ in self._pieces], sequence_length + 1)
        tokens = sum(len(tokens) for tokens, _ in self._pieces)
        self.report = PackingReport(
            dialogues=len(cut),
            split_dialogues=sum(len(piece_list) > 1 for piece_list in cut),
            dropped_pieces=len(pieces) - len(self._pieces),
            rows=len(self._bins),
            tokens=tokens,
            learned_tokens=int(sum(mask.sum() for _, mask in self._pieces)),
            fill_fraction=tokens / (len(self._bins) * (sequence_length + 1)),
        )

    def __len__(self) -> int:
        return len(self._bins)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        pieces = [self._pieces[i] for i in self._bins[index]]
        return make_row(
            [tokens for tokens, _ in pieces],
            learned=[mask for _, mask in pieces],
            sequence_length=self._length,
            document_mask=self._document_mask,
        )


def make_row(
    parts: Sequence[np.ndarray],
    *,
    learned: Sequence[np.ndarray] | None = None,
    sequence_length: int,
    document_mask: bool,
) -> Row:
    """One row from token runs of at most ``sequence_length + 1`` tokens together.

    Args:
      parts: ids of consecutive documents (or pieces of them).
      learned: for each part, 1 where a token is to be predicted; all of them if None.
      sequence_length: T.
      document_mask: one segment per part and no target across parts, or one segment in all.

    Raises:
      ConfigError: more tokens, or masks of other lengths than their parts.
    """
    stream = np.concatenate(parts)
    require(
        len(stream) <= sequence_length + 1,
        f"{len(stream)} tokens do not fit in a row of {sequence_length} and the target of its last",
    )
    owner = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
    inside = owner[1:] == owner[:-1]
    if learned is None:
        learned = [np.ones(len(part)) for part in parts]
    lengths, masked = [len(part) for part in parts], [len(mask) for mask in learned]
    require(lengths == masked, f"parts of {lengths} tokens have masks of {masked}; give one number per token")
    wanted = np.concatenate(learned)
    counted = (wanted[1:] > 0) & (inside | (not document_mask))
    # A stream shorter than T + 1 ends inside the row: its last token is an input without a target.
    segments = owner if document_mask else np.ones_like(owner)
    first_of_segment = np.searchsorted(segments, segments, side="left")
    columns = {
        "tokens": stream,
        "targets": np.where(inside | (not document_mask), stream[1:], 0),
        "loss_mask": counted,
        "segment_ids": segments,
        "positions": np.arange(len(stream)) - first_of_segment,
    }
    return {name: _fit(values, sequence_length, name) for name, values in columns.items()}


def _fit(values: np.ndarray, length: int, name: str) -> np.ndarray:
    """Cut or zero-pad to ``length``: padding is token 0 in segment 0 without loss."""
    row = np.zeros(length, np.float32 if name == "loss_mask" else np.int32)
    row[: len(values)] = values[:length]
    return row


def shuffled_order(count: int, seed: int | tuple[int, ...] | None) -> np.ndarray:
    """The numbers 0 to ``count`` - 1 in an order that depends on ``count`` and ``seed`` only.

    From raw generator output, which numpy guarantees never to change, unlike ``permutation``.

    Args:
      seed: None for 0, 1, 2, ...; of a tuple zeros at the end do not count: (3, 0) is 3.
    """
    if seed is None:
        return np.arange(count)
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")


def _cut(dialogue: EncodedDialogue, sequence_length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pieces of at most T + 1 tokens that overlap by one, as (tokens, mask) pairs."""
    tokens = np.array(dialogue.tokens, np.int32)
    mask = np.array(dialogue.loss_mask, np.int8)
    pieces = []
    for start in range(0, max(len(tokens) - 1, 1), sequence_length):
        stop = start + sequence_length + 1
        piece_mask = mask[start:stop].copy()
        # The first token of a piece must not be predicted from whatever is packed before it.
        piece_mask[:1] = 0
        pieces.append((tokens[start:stop], piece_mask))
    return pieces


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of items per bin: longest item first, into the fullest bin that still has room."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        slot = bisect_left(rooms, (sizes[item], -1))
        if slot == len(rooms):
            room, target = capacity, len(bins)
            bins.append([])
        else:
            room, target = rooms.pop(slot)
        bins[target].append(item)
        if room > sizes[item]:
            insort(rooms, (room - sizes[item], target))
    return bins
