"""Pairs of answers to ``PreferenceBatch``: what a reward model is trained on.

A response is scored with the whole dialogue before it, up to and with the token that ends it. Batch
``n`` depends on the configuration and ``n`` alone, and every pair comes once per epoch.

The pairs of a batch are packed into rows, each pair whole: rows of one response each, as long as the longest
of all, would mostly be padding. What both responses of a pair begin with, the dialogue before them, stands in
its row once (``branches.py``): 38 % of the tokens of 2,299 of Anthropic's pairs need not be computed.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.branches import Bundle, common_prefix, lay_out
from llama2_jax.data.chat import Message, Template, encode_dialogue
from llama2_jax.data.loader import host_rows
from llama2_jax.data.packing import best_fit_decreasing, shuffled_order
from llama2_jax.data.preferences import RATINGS, UNSAFE, Preference
from llama2_jax.data.records import DataError, OnBadLine
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.structs import PreferenceBatch

LENGTH_MULTIPLE = 16

log = logging.getLogger(__name__)


class EncodedPair(NamedTuple):
    """A comparison as ids; labels as in ``PreferenceBatch``."""

    chosen: list[int]
    rejected: list[int]
    rating: int
    safe: tuple[int, int]


class EncodedPairs(NamedTuple):
    """Pairs to learn from, and how many were left out."""

    pairs: list[EncodedPair]
    numbers: list[int]  # of the preferences that the pairs are
    too_long: int
    identical: int  # equal as tokens, though not as texts


class _Room(NamedTuple):
    """What is enough for every batch: rows, and pairs in a row; and the tokens of all batches."""

    rows: int
    pairs: int
    tokens: int


def encode_response(dialogue: Sequence[Message], tokenizer: Tokenizer, template: Template) -> list[int]:
    """Ids of a dialogue that ends with an answer, up to and with the stop token: a score is read there.

    Raises:
      DialogueError, SpecialTagError: see ``encode_dialogue``.
    """
    tokens, loss_mask = encode_dialogue(dialogue, tokenizer, template, train_on="last")
    return tokens[: len(tokens) - loss_mask[::-1].index(1)]


def encode_pairs(
    preferences: Sequence[Preference],
    tokenizer: Tokenizer,
    template: Template,
    *,
    max_length: int,
    on_bad_line: OnBadLine = "error",
) -> EncodedPairs:
    """Encode comparisons; nothing is cut off, since the difference may be in the end.

    Pairs that are equal as tokens are left out and counted.

    Args:
      max_length: tokens of a dialogue with its answer.
      on_bad_line: "skip" leaves longer pairs out and counts them; "error" refuses them.

    Raises:
      DataError: a pair that is too long, or no pair is left.
    """
    kept: dict[int, EncodedPair] = {}
    too_long = identical = 0
    for number, preference in enumerate(preferences):
        pair = _encode_pair(preference, tokenizer, template)
        length = max(len(pair.chosen), len(pair.rejected))
        if length > max_length:
            if on_bad_line == "error":
                asked = preference.messages[-1].content[:60]
                raise DataError(
                    f"pair {number} (prompt {preference.prompt_id!r}, {asked!r}) takes {length} tokens, more "
                    f"than {max_length}; raise config.data.sequence_length, or set "
                    "config.data.on_bad_line=skip to leave such pairs out"
                )
            too_long += 1
        elif pair.chosen == pair.rejected:
            identical += 1
        else:
            kept[number] = pair
    if not kept:
        raise DataError(
            f"none of {len(preferences)} pair(s) is usable: {too_long} longer than {max_length} tokens, "
            f"{identical} with two equal answers"
        )
    if too_long or identical:
        log.warning(
            "%d of %d pair(s) left out: %d longer than %d tokens, %d with equal tokens",
            too_long + identical, len(preferences), too_long, max_length, identical,
        )  # fmt: skip
    return EncodedPairs(list(kept.values()), list(kept), too_long, identical)


def _encode_pair(preference: Preference, tokenizer: Tokenizer, template: Template) -> EncodedPair:
    chosen, rejected = (
        encode_response((*preference.messages, Message("assistant", answer)), tokenizer, template)
        for answer in (preference.chosen, preference.rejected)
    )
    rating = -1 if preference.rating is None else len(RATINGS) - 1 - RATINGS.index(preference.rating)
    unsafe = UNSAFE.get(str(preference.safety))
    safe = (-1, -1) if unsafe is None else (int(not unsafe[0]), int(not unsafe[1]))
    return EncodedPair(chosen, rejected, rating, safe)


@dataclass(frozen=True)
class PairLoader:
    """This host's share of all global batches; every epoch in an order of its own."""

    pairs: Sequence[EncodedPair]
    margins: tuple[float, float, float, float]  # of ratings 0 to 3
    batch_size: int  # global, in pairs
    epochs: float
    seed: int
    share_prompts: bool = True  # where attention does not serve prefixes each response has its own
    row_multiple: int = 1  # the rows of a batch are a multiple of it
    host_index: int = 0
    host_count: int = 1

    def __post_init__(self) -> None:
        require(
            self.row_multiple % self.host_count == 0 and 0 <= self.host_index < self.host_count,
            f"{self.host_count} hosts, of which this is {self.host_index}, cannot share "
            f"{self.row_multiple} rows",
        )

    @property
    def num_batches(self) -> int:
        """Updates; an epoch sees every pair once, and its last batch has what is left."""
        return math.ceil(self.epochs * self._batches_per_epoch)

    @property
    def _batches_per_epoch(self) -> int:
        return -(-len(self.pairs) // self.batch_size)

    @functools.cached_property
    def row_length(self) -> int:
        """Tokens of a row of every batch: those of the longest pair, rounded up."""
        return -(-int(self._sizes.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE

    @property
    def num_rows(self) -> int:
        """Rows of every global batch: those of the fullest."""
        return self._room.rows

    @property
    def fill_fraction(self) -> float:
        """Tokens of all batches / room in them."""
        return self._room.tokens / (self.num_batches * self.num_rows * self.row_length)

    def batch(self, step: int) -> PreferenceBatch:
        """This host's ``num_rows / host_count`` rows of global batch ``step``, as numpy."""
        require(0 <= step < self.num_batches, f"there is no batch {step}; there are {self.num_batches}")
        num_rows, num_pairs, _ = self._room
        rows = self._packed(step) + [[]] * num_rows
        mine = host_rows(0, num_rows, self.host_index, self.host_count)
        made = [self._make_row(rows[number], num_pairs) for number in mine]
        columns = {name: [row[name] for row in made] for name in made[0]}
        return PreferenceBatch(**{name: np.stack(column) for name, column in columns.items()})

    def iterate(self, start_step: int = 0) -> Iterator[PreferenceBatch]:
        """``batch(start_step), batch(start_step + 1), ...`` to the last."""
        return map(self.batch, range(start_step, self.num_batches))

    @functools.cached_property
    def _bundles(self) -> list[Bundle]:
        """The pairs as what their responses begin with and how each goes on."""
        return [
            Bundle((pair.chosen, pair.rejected), _shared(pair) if self.share_prompts else 0)
            for pair in self.pairs
        ]

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([bundle.size for bundle in self._bundles])

    @functools.cached_property
    def _room(self) -> _Room:
        rows = pairs = tokens = 0
        for packed in map(self._packed, range(self.num_batches)):
            rows = max(rows, len(packed))
            pairs = max(pairs, *map(len, packed))
            tokens += sum(int(self._sizes[row].sum()) for row in packed)
        return _Room(-(-rows // self.row_multiple) * self.row_multiple, pairs, tokens)

    def _packed(self, step: int) -> list[list[int]]:
        """Which pairs are in each row of a batch."""
        epoch, number = divmod(step, self._batches_per_epoch)
        chosen = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        rows = best_fit_decreasing(self._sizes[chosen].tolist(), self.row_length)
        return [chosen[row].tolist() for row in rows]

    @functools.cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        """Of an epoch's number: which pair comes when. The last one is kept, for every batch asks for it."""
        return functools.lru_cache(maxsize=1)(
            lambda epoch: shuffled_order(len(self.pairs), (self.seed, epoch))
        )

    def _make_row(self, numbers: Sequence[int], room: int) -> dict[str, np.ndarray]:
        """One row, without the leading dimension of ``PreferenceBatch``, with room for so many pairs."""
        row, offsets = lay_out([self._bundles[number] for number in numbers], self.row_length)
        last_PC, safe_PC = np.full((2, room, 2), -1, np.int32)
        margin_P = np.zeros(room, np.float32)
        for p, (pair, offset_C) in enumerate(zip(map(self.pairs.__getitem__, numbers), offsets, strict=True)):
            last_PC[p] = offset_C[0] + len(pair.chosen) - 1, offset_C[1] + len(pair.rejected) - 1
            safe_PC[p] = pair.safe
            if pair.rating >= 0:
                margin_P[p] = self.margins[pair.rating]
        columns = {
            "tokens_BT": row.tokens_T,
            "segment_ids_BT": row.segment_ids_T,
            "positions_BT": row.positions_T,
            "last_BPC": last_PC,
            "margin_BP": margin_P,
            "safe_BPC": safe_PC,
        }
        return columns | ({"prefix_ids_BT": row.prefix_ids_T} if self.share_prompts else {})


def _shared(pair: EncodedPair) -> int:
    """Tokens that both responses begin with; the last of each, where its score is read, is its own."""
    shorter = min(len(pair.chosen), len(pair.rejected))
    return min(common_prefix(pair.chosen, pair.rejected), shorter - 1)
