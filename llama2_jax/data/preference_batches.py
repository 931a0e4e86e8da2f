"""Pairs of answers to ``PreferenceBatch``: what a reward model is trained on.

A response is scored with the whole dialogue before it, up to and with the token that ends it. Batch
``n`` depends on the configuration and ``n`` alone, and every pair comes once per epoch.

The pairs of a batch are packed into rows, both responses of a pair into the same one: rows of one response
each, as long as the longest of all, would mostly be padding.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.chat import Message, Template, encode_dialogue
from llama2_jax.data.loader import host_rows
from llama2_jax.data.packing import pack_side_by_side, shuffled_order
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
        """Tokens of a row of every batch: those of the longest response, rounded up."""
        return -(-int(self._lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE

    @property
    def num_rows(self) -> int:
        """Rows of every global batch: those of the fullest."""
        return self._room.rows

    @property
    def fill_fraction(self) -> float:
        """Tokens of all batches / room in them."""
        return self._room.tokens / (self.num_batches * self.num_rows * 2 * self.row_length)

    def batch(self, step: int) -> PreferenceBatch:
        """This host's ``num_rows / host_count`` rows of global batch ``step``, as numpy."""
        require(0 <= step < self.num_batches, f"there is no batch {step}; there are {self.num_batches}")
        num_rows, num_pairs, _ = self._room
        rows = self._packed(step) + [[]] * num_rows
        mine = host_rows(0, num_rows, self.host_index, self.host_count)
        made = [self._make_row(rows[number], num_pairs) for number in mine]
        return PreferenceBatch(*map(np.stack, zip(*made, strict=True)))

    def iterate(self, start_step: int = 0) -> Iterator[PreferenceBatch]:
        """``batch(start_step), batch(start_step + 1), ...`` to the last."""
        return map(self.batch, range(start_step, self.num_batches))

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([(len(pair.chosen), len(pair.rejected)) for pair in self.pairs])

    @functools.cached_property
    def _room(self) -> _Room:
        rows = pairs = tokens = 0
        for packed in map(self._packed, range(self.num_batches)):
            rows = max(rows, len(packed))
            pairs = max(pairs, *map(len, packed))
            tokens += int(self._lengths[list(itertools.chain(*packed))].sum())
        return _Room(-(-rows // self.row_multiple) * self.row_multiple, pairs, tokens)

    def _packed(self, step: int) -> list[list[int]]:
        """Which pairs are in each row of a batch."""
        epoch, number = divmod(step, self._batches_per_epoch)
        chosen = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        rows = pack_side_by_side(self._lengths[chosen], self.row_length)
        return [chosen[row].tolist() for row in rows]

    @functools.cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        """Of an epoch's number: which pair comes when. The last one is kept, for every batch asks for it."""
        return functools.lru_cache(maxsize=1)(
            lambda epoch: shuffled_order(len(self.pairs), (self.seed, epoch))
        )

    def _make_row(self, numbers: Sequence[int], room: int) -> PreferenceBatch:
        """One row, without the leading dimension, with room for so many pairs."""
        tokens_CT, segment_ids_CT, positions_CT = np.zeros((3, 2, self.row_length), np.int32)
        last_CP, safe_CP = np.full((2, 2, room), -1, np.int32)
        margin_P = np.zeros(room, np.float32)
        ends_C = [0, 0]
        for p, pair in enumerate(map(self.pairs.__getitem__, numbers)):
            for c, tokens in enumerate((pair.chosen, pair.rejected)):
                start, ends_C[c] = ends_C[c], ends_C[c] + len(tokens)
                place = slice(start, ends_C[c])
                tokens_CT[c, place] = tokens
                segment_ids_CT[c, place] = p + 1
                positions_CT[c, place] = np.arange(len(tokens))
                last_CP[c, p] = ends_C[c] - 1
            if pair.rating >= 0:
                margin_P[p] = self.margins[pair.rating]
            safe_CP[:, p] = pair.safe
        return PreferenceBatch(tokens_CT, segment_ids_CT, positions_CT, last_CP, margin_P, safe_CP)
