"""Llama 2's own tokenizer, SentencePiece BPE: the only module that imports sentencepiece."""

import functools
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from llama2_jax.data.tokenizer.base import (
    CONFIG,
    TokenizerError,
    adds_bos,
    naming,
    no_special,
    require_ids,
    require_str,
    wrap,
    write,
)
from llama2_jax.data.tokenizer.words import Encode, by_words, pieces_end_with_words

proto: Any = sentencepiece_model_pb2  # generated code, its types are not visible


LLAMA2_TRAINER_SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "input_sentence_size": 200_000_000,
    "seed_sentencepiece_size": 1_000_000,
    "shrinking_factor": 0.75,
    "num_sub_iterations": 2,
    "max_sentence_length": 4192,
    "shuffle_input_sentence": True,
    "max_sentencepiece_length": 16,
    "split_by_unicode_script": True,
    "split_by_whitespace": True,
    "split_by_number": True,
    "split_digits": True,
    "treat_whitespace_as_suffix": False,
    "allow_whitespace_only_pieces": True,
    "vocabulary_output_piece_score": True,
    "hard_vocab_limit": True,
    "use_all_vocab": False,
    "byte_fallback": True,
    "unk_surface": " \u2047 ",
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
}
"""The trainer and normaliser fields inside the released Llama 2 tokenizer (TOK-2, TOK-3)."""


class Piece(NamedTuple):
    """An entry of a SentencePiece vocabulary; its id is its place in the list."""

    text: str
    score: float
    type: int  # 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte


class SentencePieceTokenizer:
    """Llama 2's tokenizer semantics over a SentencePiece model (TOK-4).

    Every ``encode`` call starts with a word boundary (the "dummy prefix"), so encoding two
    strings apart differs from encoding them joined (TOK-5).
    """

    def __init__(self, model: bytes, *, add_bos: bool = True) -> None:
        """``model`` is the content of a ``.model`` file; ``add_bos``: if it has BOS, texts begin with it."""
        if not model:
            raise TokenizerError("not a SentencePiece model: it is empty; copy or download it again")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise TokenizerError(f"not a SentencePiece model ({len(model)} bytes): {error}") from error
        self._model = model
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.pad_id: int = self._processor.pad_id()
        self.unk_id: int = self._processor.unk_id()
        self.begins_with_bos: bool = add_bos and self.bos_id >= 0
        self.content_hash = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Read a ``.model`` file; a ``tokenizer_config.json`` beside it may say that texts lack BOS."""
        with naming(path):
            return cls(Path(path).read_bytes(), add_bos=adds_bos(Path(path).parent) is not False)

    def encode(
        self, text: str, *, bos: bool = False, eos: bool = False, after_marker: bool = False
    ) -> list[int]:
        """See ``Tokenizer.encode``. Raises TypeError unless ``text`` is a str."""
        del after_marker  # every call begins with a word boundary, as in the release
        return wrap(self, self._encode(require_str(text)), bos=bos, eos=eos)

    @functools.cached_property
    def _encode(self) -> Encode:
        model, whole = self._proto(), self._processor.encode
        # without byte fallback unknown characters beside one another become one id
        is_plain = model.trainer_spec.byte_fallback and model.normalizer_spec.escape_whitespaces
        if is_plain and not self.own_rules() and pieces_end_with_words(piece.piece for piece in model.pieces):
            return by_words(whole, adds_space=model.normalizer_spec.add_dummy_prefix)
        return whole

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_encode"}  # made anew

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer.decode``; the leading word boundary is not printed."""
        plain = require_ids(ids)
        if max(plain, default=0) < self.vocab_size:
            return self._processor.decode(plain)
        # by pieces, which need not be of the vocabulary
        return self._processor.decode([self.piece(i) for i in plain])

    def piece(self, token_id: int) -> str:
        """See ``Tokenizer.piece``."""
        (plain,) = require_ids([token_id])
        return self._processor.id_to_piece(plain) if plain < self.vocab_size else "\ufffd"

    def special_id(self, piece: str) -> int:
        """See ``Tokenizer.special_id``."""
        token_id = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(token_id) != piece or token_id not in self._markers:
            raise TokenizerError(no_special(piece))
        return token_id

    @functools.cached_property
    def _markers(self) -> frozenset[int]:
        """Ids of the control and of the user-defined pieces."""
        kinds = (proto.ModelProto.SentencePiece.CONTROL, proto.ModelProto.SentencePiece.USER_DEFINED)
        return frozenset(i for i, piece in enumerate(self.pieces()) if piece.type in kinds)

    def pieces(self) -> list[Piece]:
        """The vocabulary in the order of its ids."""
        return [Piece(piece.piece, piece.score, piece.type) for piece in self._proto().pieces]

    @property
    def adds_space_prefix(self) -> bool:
        """Whether every text begins with a word boundary (the "dummy prefix")."""
        return bool(self._proto().normalizer_spec.add_dummy_prefix)

    def own_rules(self) -> list[str]:
        """What it does but merge neighbours in a text that stays as it is; Llama 2's has no such rules."""
        trainer, normalizer = self._proto().trainer_spec, self._proto().normalizer_spec
        kind = proto.TrainerSpec.ModelType.Name(trainer.model_type).lower()
        rules = {
            f"model_type {kind}": kind != "bpe",
            f"normalization {normalizer.name}": bool(normalizer.precompiled_charsmap),
            "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
            "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        }
        return [rule for rule, holds in rules.items() if holds]

    def with_control_pieces(self, pieces: Sequence[str]) -> "SentencePieceTokenizer":
        """The same vocabulary and ``pieces`` behind it, as control ids."""
        if not pieces:
            return self
        model = self._proto()
        for piece in pieces:
            model.pieces.add(piece=piece, score=0.0, type=proto.ModelProto.SentencePiece.CONTROL)
        return SentencePieceTokenizer(
            model.SerializeToString(deterministic=True), add_bos=self.begins_with_bos
        )

    def with_bos(self) -> "SentencePieceTokenizer":
        """See ``Tokenizer.with_bos``."""
        wrap(self, [], bos=True, eos=False)
        return self if self.begins_with_bos else SentencePieceTokenizer(self._model)

    def _proto(self) -> Any:
        return proto.ModelProto.FromString(self._model)

    def save(self, folder: str | Path) -> Path:
        """Write ``tokenizer.model`` into ``folder``, and beside it if texts lack BOS; return its path."""
        path = Path(folder) / "tokenizer.model"
        config = path.with_name(CONFIG)
        if config.exists() or (self.bos_id >= 0 and not self.begins_with_bos):
            write(config, b'{"add_bos_token": %s}\n' % (b"true" if self.begins_with_bos else b"false"))
        write(path, self._model)
        return path


def train_sentencepiece(
    texts: Iterable[str], path: str | Path, *, vocab_size: int = 32000
) -> SentencePieceTokenizer:
    """Train a tokenizer with the settings of the released one (TOK-2), and write it to ``path``.

    The same texts give the same bytes. One thread, where the release used 80: the number is
    written into the file and so into its hash, and changes no piece.

    Raises:
      TokenizerError: too little text for ``vocab_size``, or ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise TokenizerError(f"{path} is a folder; name the .model file to write")
    path.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written to is found now
    model = io.BytesIO()
    failures: list[Exception] = []

    def sentences() -> Iterator[str]:
        try:
            for text in texts:
                yield from _sentences(text)
        except Exception as error:  # the trainer would bury it in a message of its own
            failures.append(error)
            raise

    sentencepiece.set_random_generator_seed(0)  # shuffle_input_sentence draws from it
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=model,
            vocab_size=vocab_size,
            num_threads=1,
            minloglevel=2,
            **LLAMA2_TRAINER_SETTINGS,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise TokenizerError(
            f"cannot train {vocab_size} pieces: {error}; add text for more pieces, or, where every character "
            "wants its own, give a larger vocab_size"
        ) from error
    write(path, model.getvalue())
    return SentencePieceTokenizer(model.getvalue())


def sentencepiece_from_pieces(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    bos_id: int = 1,
    eos_id: int = 2,
    unk_id: int = 0,
    add_bos: bool = True,
    add_space_prefix: bool = True,
) -> SentencePieceTokenizer:
    """Rebuild a SentencePiece BPE from the lists in a GGUF header.

    ``types`` are GGUF's token types, which are SentencePiece's own: 1 normal, 2 unknown,
    3 control, 4 user defined, 5 unused, 6 byte.

    Raises:
      TokenizerError: lists of different lengths, or an id outside them.
    """
    if not len(pieces) == len(scores) == len(types):
        raise TokenizerError(
            f"{len(pieces)} pieces, {len(scores)} scores and {len(types)} types; the three lists must agree"
        )
    model = proto.ModelProto()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        model.pieces.add(piece=piece, score=float(score), type=int(kind))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = proto.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = 6 in set(types)
    trainer.unk_surface = LLAMA2_TRAINER_SETTINGS["unk_surface"]
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = unk_id, bos_id, eos_id, -1
    for name, token_id in (("unk", unk_id), ("bos", bos_id), ("eos", eos_id)):
        if not -1 <= token_id < len(pieces):
            raise TokenizerError(f"{name}_id {token_id} is outside the vocabulary of {len(pieces)} pieces")
        if token_id >= 0:
            setattr(trainer, f"{name}_piece", pieces[token_id])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = add_space_prefix
    normalizer.remove_extra_whitespaces = False
    return SentencePieceTokenizer(model.SerializeToString(deterministic=True), add_bos=add_bos)


def _sentences(text: str) -> Iterator[str]:
    """Lines of ``text``, long ones cut at spaces: the trainer skips what is over its limit."""
    # A character is at most 4 bytes, so this many characters always fit.
    limit = LLAMA2_TRAINER_SETTINGS["max_sentence_length"] // 4
    for line in filter(str.strip, text.splitlines()):
        start = 0
        while len(line) - start > limit:
            space = line.rfind(" ", start + 1, start + limit)
            cut = space if space > 0 else start + limit
            yield line[start:cut]
            start = cut
        yield line[start:]
