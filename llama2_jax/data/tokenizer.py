"""Text to token ids and back: the only module that imports sentencepiece or tokenizers.

Two backends behind one protocol. ``SentencePieceTokenizer`` is Llama 2's own (BPE with byte
fallback, split digits). ``ByteLevelTokenizer`` serves imported models whose vocabulary is
byte-level BPE. Neither ever turns user text into a control id: ``"</s>"`` in a document is
ordinary text (TOK-6); only ``special_id`` gives control ids, and only ``chat`` asks for them.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from llama2_jax.files import written_whole

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


class TokenizerError(ValueError):
    """A tokenizer file, piece or id that cannot be used; the message says what to do."""


class Tokenizer(Protocol):
    """What the rest of the code may ask of a tokenizer."""

    vocab_size: int
    bos_id: int  # -1 when the vocabulary has none, likewise below
    eos_id: int
    pad_id: int
    content_hash: str  # sha256 of the tokenizer file, hex

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of ``text``, with the BOS id before and the EOS id after on request."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; control ids (BOS, EOS, chat markers) leave no trace in it.

        Ids from ``vocab_size`` on, of spare rows of an embedding, are U+FFFD, as bytes that are no
        UTF-8 are. Raises ``TokenizerError`` if one is negative.
        """
        ...

    def special_id(self, piece: str) -> int:
        """Id of the control piece ``piece``. Raises ``TokenizerError`` if there is none."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether ``token_id`` is a control piece."""
        ...

    def save(self, folder: str | Path) -> Path:
        """Write what ``load_tokenizer(folder)`` needs to return an equal tokenizer."""
        ...


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

    def __init__(self, model: bytes) -> None:
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
        self.content_hash = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Read a ``.model`` file."""
        with _naming(path):
            return cls(Path(path).read_bytes())

    @classmethod
    def from_bytes(cls, model: bytes) -> "SentencePieceTokenizer":
        """Make one from the content of a ``.model`` file."""
        return cls(model)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """See ``Tokenizer.encode``. Raises TypeError unless ``text`` is a str."""
        return _wrap(self, self._processor.encode(_require_str(text)), bos=bos, eos=eos)

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer.decode``; the leading word boundary is not printed."""
        plain = _require_ids(ids)
        if max(plain, default=0) < self.vocab_size:
            return self._processor.decode(plain)
        # by pieces, which need not be of the vocabulary
        return self._processor.decode(
            [self._processor.id_to_piece(i) if i < self.vocab_size else "\ufffd" for i in plain]
        )

    def special_id(self, piece: str) -> int:
        """See ``Tokenizer.special_id``."""
        token_id = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(token_id) != piece or not self.is_special(token_id):
            raise TokenizerError(_no_special(piece))
        return token_id

    def is_special(self, token_id: int) -> bool:
        """See ``Tokenizer.is_special``."""
        return self._processor.is_control(token_id)

    def pieces(self) -> list[Piece]:
        """The vocabulary in the order of its ids."""
        return [Piece(piece.piece, piece.score, piece.type) for piece in self._proto().pieces]

    @property
    def adds_space_prefix(self) -> bool:
        """Whether every text begins with a word boundary (the "dummy prefix")."""
        return bool(self._proto().normalizer_spec.add_dummy_prefix)

    def with_control_pieces(self, pieces: Sequence[str]) -> "SentencePieceTokenizer":
        """The same vocabulary and ``pieces`` behind it, as control ids."""
        model = self._proto()
        for piece in pieces:
            model.pieces.add(piece=piece, score=0.0, type=proto.ModelProto.SentencePiece.CONTROL)
        return SentencePieceTokenizer(model.SerializeToString(deterministic=True)) if pieces else self

    def _proto(self) -> Any:
        return proto.ModelProto.FromString(self._model)

    def save(self, folder: str | Path) -> Path:
        """Write ``tokenizer.model`` into ``folder`` and return its path."""
        path = Path(folder) / "tokenizer.model"
        _write(path, self._model)
        return path


class ByteLevelTokenizer:
    """The tokenizer of a ``tokenizer.json``, as imported models carry it: most are byte-level BPE.

    Also serves a SentencePiece BPE with added tokens, which ``tokenizer.model`` does not hold.

    ``encode`` reads chat markers in the text as ordinary characters, unlike the usual Hugging
    Face behaviour: a user must not be able to type a control token.
    """

    def __init__(self, text: str, *, bos_id: int = -1, eos_id: int = -1, pad_id: int = -1) -> None:
        library = _tokenizers()
        try:
            self._backend = library.Tokenizer.from_str(text)
        except Exception as error:  # the Rust library raises bare Exception
            raise TokenizerError(f"not a tokenizer.json ({len(text)} characters): {error}") from error
        self._backend.encode_special_tokens = True
        self._text = text
        self._special = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        if not self.vocab_size:
            raise TokenizerError("the tokenizer.json has an empty vocabulary; copy or download it again")
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.content_hash = hashlib.sha256(text.encode("utf-8")).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "ByteLevelTokenizer":
        """Read a ``tokenizer.json``; the ids come from ``tokenizer_config.json`` beside it."""
        path = Path(path)
        with _naming(path):
            text = path.read_bytes().decode("utf-8")  # read_text would change line ends, and so the hash
            plain = cls(text)
        config_path = path.with_name("tokenizer_config.json")
        if not config_path.exists():
            return plain
        with _naming(config_path):
            config = json.loads(config_path.read_text(encoding="utf-8"))
            ids = {f"{role}_id": _config_id(config, role, plain) for role in ("bos", "eos", "pad")}
        return cls(text, **ids)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """See ``Tokenizer.encode``. Raises TypeError unless ``text`` is a str."""
        ids = self._backend.encode(_require_str(text), add_special_tokens=False).ids
        return _wrap(self, ids, bos=bos, eos=eos)

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer.decode``."""
        runs = groupby(_require_ids(ids), lambda i: i < self.vocab_size)
        return "".join(
            self._backend.decode(list(run), skip_special_tokens=True) if known else "\ufffd" * len(list(run))
            for known, run in runs
        )

    def special_id(self, piece: str) -> int:
        """See ``Tokenizer.special_id``."""
        token_id = self._backend.token_to_id(piece)
        if token_id is None or token_id not in self._special:
            raise TokenizerError(_no_special(piece))
        return token_id

    def is_special(self, token_id: int) -> bool:
        """See ``Tokenizer.is_special``."""
        return token_id in self._special

    def save(self, folder: str | Path) -> Path:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``; return the former's path."""
        path = Path(folder) / "tokenizer.json"
        named = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        config = {key: self._backend.id_to_token(i) for key, i in named.items() if i >= 0}
        _write(path.with_name("tokenizer_config.json"), (json.dumps(config, indent=2) + "\n").encode())
        _write(path, self._text.encode("utf-8"))
        return path


class StreamDecoder:
    """Text of a growing token sequence, one push at a time, for printing while generating.

    The pushes and the final ``flush`` join to ``tokenizer.decode`` of all ids. Bytes of an
    unfinished character are held back. Each push decodes the whole sequence again: 0.3 ms at
    4,096 tokens, and the only way that is right for every backend's rules about spaces.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._printed = 0

    def push(self, token_id: int) -> str:
        """Add one id and return the characters that became certain."""
        self._ids.append(token_id)
        return self._advance(self._tokenizer.decode(self._ids).rstrip("\ufffd"))

    def flush(self) -> str:
        """Return what is held back, with U+FFFD in place of a character that never ended."""
        return self._advance(self._tokenizer.decode(self._ids))

    def _advance(self, text: str) -> str:
        new = text[self._printed :]
        self._printed = max(self._printed, len(text))
        return new


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Open a tokenizer file, or the one in a folder.

    Of a folder with both, ``tokenizer.model`` is taken unless ``tokenizer.json`` has added tokens
    that it lacks. Those of an ``added_tokens.json`` alone become control pieces.

    Raises:
      TokenizerError: nothing there, an unknown kind of file, or added tokens whose ids leave a gap.
    """
    path = Path(path)
    model, fast = path / "tokenizer.model", path / "tokenizer.json"
    candidates = [model, fast] if path.is_dir() else [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found == model and fast.is_file():
        plain = SentencePieceTokenizer.load(model)
        # fine-tuned models add chat markers, often the EOS among them, to this file alone
        return ByteLevelTokenizer.load(fast) if _largest_added_id(fast) >= plain.vocab_size else plain
    if found == model:
        return _with_added_tokens(SentencePieceTokenizer.load(model), path / "added_tokens.json")
    if found is None:
        raise TokenizerError(
            f"no tokenizer at {path}; give a .model file, a tokenizer.json, or a folder that holds one"
        )
    return ByteLevelTokenizer.load(found) if found.suffix == ".json" else SentencePieceTokenizer.load(found)


def _largest_added_id(path: Path) -> int:
    """The largest id among the added tokens of a ``tokenizer.json``, -1 without any."""
    with _naming(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            return max((int(token["id"]) for token in content.get("added_tokens") or []), default=-1)
        except (AttributeError, KeyError, TypeError) as error:
            raise TokenizerError("its added_tokens are no list of ids and texts; copy it again") from error


def _with_added_tokens(plain: SentencePieceTokenizer, path: Path) -> SentencePieceTokenizer:
    """The tokenizer with what an ``added_tokens.json``, text to id, adds to it; itself if there is none."""
    if not path.is_file():
        return plain
    with _naming(path):
        ids = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(ids, dict) or not all(isinstance(token_id, int) for token_id in ids.values()):
            raise TokenizerError("it is no object of texts and their ids; copy it again")
        added = sorted((token_id, text) for text, token_id in ids.items() if token_id >= plain.vocab_size)
        if [token_id for token_id, _ in added] != [plain.vocab_size + n for n in range(len(added))]:
            raise TokenizerError(
                f"it adds ids {added[0][0]} to {added[-1][0]}, but tokenizer.model has {plain.vocab_size} "
                "pieces, and ids go on from there without a gap; take the two files from one model"
            )
        return plain.with_control_pieces([text for _, text in added])


def train_sentencepiece(
    texts: Iterable[str], path: str | Path, *, vocab_size: int = 32000
) -> SentencePieceTokenizer:
    """Train a tokenizer with the settings of the released one (TOK-2), and write it to ``path``.

    The same texts give the same bytes. One thread, where the release used 80: the number is
    written into the file and so into its hash, and changes no piece.

    Raises:
      TokenizerError: too little text for ``vocab_size``.
    """
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
            f"cannot train {vocab_size} pieces: {error}; lower vocab_size or add text"
        ) from error
    _write(Path(path), model.getvalue())
    return SentencePieceTokenizer.from_bytes(model.getvalue())


def sentencepiece_from_pieces(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    bos_id: int = 1,
    eos_id: int = 2,
    unk_id: int = 0,
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
    return SentencePieceTokenizer(model.SerializeToString(deterministic=True))


def byte_level_from_merges(
    tokens: Sequence[str],
    merges: Sequence[str] | Sequence[tuple[str, str]],
    *,
    token_types: Sequence[int],
    bos_id: int = -1,
    eos_id: int = -1,
    split_digits: bool = True,
) -> ByteLevelTokenizer:
    """Rebuild a GPT-2 style BPE from the lists in a GGUF header.

    ``merges`` are ``"left right"`` strings, first merged first. Control tokens (type 3) become
    special, user-defined ones (type 4) are matched whole in text. ``split_digits`` is the
    pre-tokenizer that GGUF calls "smollm": every digit alone, then GPT-2's split.

    Raises:
      TokenizerError: lists of different lengths, or a merge that is not a pair.
    """
    if len(tokens) != len(token_types):
        raise TokenizerError(f"{len(tokens)} tokens but {len(token_types)} token types; they must agree")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise TokenizerError(f"merge {wrong!r} is not a pair of pieces")
    library = _tokenizers()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=pairs))
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [library.pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    backend.pre_tokenizer = library.pre_tokenizers.Sequence([*digits, byte_level])
    backend.decoder = library.decoders.ByteLevel()
    for kind, add in ((3, backend.add_special_tokens), (4, backend.add_tokens)):
        added = [token for token, its_kind in zip(tokens, token_types, strict=True) if its_kind == kind]
        add([library.AddedToken(token, special=kind == 3, normalized=False) for token in added])
    return ByteLevelTokenizer(backend.to_str(), bos_id=bos_id, eos_id=eos_id)


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


def _tokenizers() -> Any:
    """The optional tokenizers package."""
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(
            "this tokenizer is byte-level BPE, which needs the tokenizers package; "
            "install it with: pip install 'llama2_jax[import]'"
        ) from error
    return tokenizers


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except (ValueError, RecursionError) as error:  # Unicode and JSON errors are ValueErrors
        raise TokenizerError(f"{path}: {error}") from error


def _config_id(config: Any, role: str, tokenizer: ByteLevelTokenizer) -> int:
    """The id a ``tokenizer_config.json`` names for ``role``, or -1."""
    if not isinstance(config, dict):
        raise TokenizerError(f"it holds a {type(config).__name__}, an object is needed; copy it again")
    token = config.get(f"{role}_token")
    if token is None:
        return -1
    piece = token.get("content") if isinstance(token, dict) else token
    if not isinstance(piece, str):
        raise TokenizerError(f'{role}_token is {token!r}; it must be a piece or {{"content": piece}}')
    return tokenizer.special_id(piece)


def _require_str(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"encode needs a str, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is a lone surrogate ({text[error.start]!a}), which UTF-8 "
            "cannot express; remove it"
        ) from error
    return text


def _require_ids(ids: Sequence[int]) -> list[int]:
    plain = [int(i) for i in ids]
    if min(plain, default=0) < 0:
        raise TokenizerError(f"token id {min(plain)} is negative; an id is at least 0: drop padding first")
    return plain


def _wrap(tokenizer: Tokenizer, ids: list[int], *, bos: bool, eos: bool) -> list[int]:
    for name, wanted, token_id in (("BOS", bos, tokenizer.bos_id), ("EOS", eos, tokenizer.eos_id)):
        if wanted and token_id < 0:
            raise TokenizerError(f"{name} was asked for, but this tokenizer has no {name} token")
    return [tokenizer.bos_id] * bos + ids + [tokenizer.eos_id] * eos


def _no_special(piece: str) -> str:
    return (
        f"the tokenizer has no control piece {piece!r}; use a chat template whose markers it knows "
        "(llama2 needs only BOS and EOS)"
    )


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as partial:
        partial.write_bytes(content)
