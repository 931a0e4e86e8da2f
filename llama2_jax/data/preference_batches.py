"""Pairs of answers to ``PreferenceBatch``: what a reward model is trained on.

A response is scored with the whole dialogue before it, up to and with the token that ends it. Batch
``n`` depends on the configuration and ``n`` alone, and every pair comes once per epoch: the last batch
of an epoch is filled with empty pairs.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama2_jax.data.chat import Message, Template, encode_dialogue
from llama2_jax.data.loader import check_hosts, host_rows
from llama2_jax.data.packing import shuffled_order
from llama2_jax.data.preferences import RATINGS, UNSAFE, Preference
from llama2_jax.data.sources import DataError, OnBadLine
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
                raise DataError(
                    f"pair {number} (prompt {preference.prompt_id!r}) takes {length} tokens, more than "
                    f"{max_length}; raise config.data.sequence_length, or set config.data.on_bad_line=skip "
                    "to leave such pairs out"
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
    """This host's share of an endless sequence of global batches; every epoch in an order of its own."""

    pairs: Sequence[EncodedPair]
    margins: tuple[float, float, float, float]  # of ratings 0 to 3
    batch_size: int  # global, in pairs
    seed: int
    host_index: int = 0
    host_count: int = 1

    def __post_init__(self) -> None:
        check_hosts(self.batch_size, self.host_index, self.host_count)

    @property
    def batches_per_epoch(self) -> int:
        """Updates that see every pair once."""
        return -(-len(self.pairs) // self.batch_size)

    @functools.cached_property
    def row_length(self) -> int:
        """Tokens of a row of every batch: those of the longest response, rounded up."""
        longest = max(len(tokens) for pair in self.pairs for tokens in (pair.chosen, pair.rejected))
        return -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE

    def batch(self, step: int) -> PreferenceBatch:
        """This host's ``batch_size / host_count`` pairs of global batch ``step``, as numpy."""
        epoch, number = divmod(step, self.batches_per_epoch)
        rows = host_rows(number, self.batch_size, self.host_index, self.host_count)
        mine = [self.pairs[index] for index in self._order(epoch)[rows.start : rows.stop]]
        return self._stack(mine, len(rows))

    def iterate(self, start_step: int = 0) -> Iterator[PreferenceBatch]:
        """``batch(start_step), batch(start_step + 1), ...`` without end."""
        return map(self.batch, itertools.count(start_step))

    @functools.cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        """Of an epoch's number: which pair comes when. The last one is kept, for every batch asks for it."""
        return functools.lru_cache(maxsize=1)(
            lambda epoch: shuffled_order(len(self.pairs), (self.seed, epoch))
        )

    def _stack(self, pairs: Sequence[EncodedPair], size: int) -> PreferenceBatch:
        tokens_BCT = np.zeros((size, 2, self.row_length), np.int32)
        lengths_BC = np.zeros((size, 2), np.int32)
        margin_B = np.zeros(size, np.float32)
        safe_BC = np.full((size, 2), -1, np.int32)
        for b, pair in enumerate(pairs):
            for c, tokens in enumerate((pair.chosen, pair.rejected)):
                tokens_BCT[b, c, : len(tokens)] = tokens
                lengths_BC[b, c] = len(tokens)
            if pair.rating >= 0:
                margin_B[b] = self.margins[pair.rating]
            safe_BC[b] = pair.safe
        return PreferenceBatch(tokens_BCT, lengths_BC, margin_B, safe_BC)
