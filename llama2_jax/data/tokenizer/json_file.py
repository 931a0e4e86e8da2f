"""Tokenizers of a ``tokenizer.json``: the only module that imports the tokenizers package, an extra."""

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from llama2_jax.data.tokenizer.base import (
    CONFIG,
    TokenizerError,
    naming,
    no_special,
    require_ids,
    require_str,
    wrap,
    write,
)

# of ours, beside the tokenizer of a model that we trained on texts after BOS. Hugging Face's add_bos_token is
# not asked: for a tokenizer.json transformers does not either, its post-processor decides
_ADD_BOS = "begins_with_bos"


class JsonTokenizer:
    """The tokenizer of a ``tokenizer.json``, as imported models carry it: most are byte-level BPE.

    Also serves a SentencePiece BPE with added tokens, which ``tokenizer.model`` does not hold.

    ``encode`` reads chat markers in the text as ordinary characters, unlike the usual Hugging
    Face behaviour: a user must not be able to type a control token.
    """

    def __init__(
        self,
        text: str,
        *,
        bos_id: int = -1,
        eos_id: int = -1,
        pad_id: int = -1,
        add_bos: bool = False,
    ) -> None:
        """``add_bos``: texts begin with BOS, whether the post-processor of ``text`` says so or not."""
        library = _tokenizers()
        try:
            content = _as_we_read(json.loads(text), {bos_id, eos_id})
            self._backend = _open_backend(library, content, {bos_id, eos_id})
            inner = _after_marker(content)
            self._inner = (
                self._backend if inner == content else _open_backend(library, inner, {bos_id, eos_id})
            )
        except Exception as error:  # a file of others; the Rust library raises bare Exception
            raise TokenizerError(f"not a tokenizer.json ({len(text)} characters): {error}") from error
        self._text = text
        self._added = self._backend.get_added_tokens_decoder()
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        self.vocab_size: int = 1 + max(ids, default=-1)  # not their number: some files leave ids out
        if not self.vocab_size:
            raise TokenizerError("the tokenizer.json has an empty vocabulary; copy or download it again")
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self._add_bos = add_bos
        self.content_hash = hashlib.sha256(text.encode("utf-8")).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "JsonTokenizer":
        """Read a ``tokenizer.json``; the ids come from ``tokenizer_config.json`` beside it."""
        path = Path(path)
        with naming(path):
            text = path.read_bytes().decode("utf-8")  # read_text would change line ends, and so the hash
            plain = cls(text)
        config_path = path.with_name(CONFIG)
        if not config_path.exists():
            return plain
        with naming(config_path):
            config = json.loads(config_path.read_text(encoding="utf-8"))
            ids = {f"{role}_id": _config_id(config, role, plain) for role in ("bos", "eos", "pad")}
            add_bos = config.get(_ADD_BOS) is True
        return cls(text, **ids, add_bos=add_bos)

    @property
    def begins_with_bos(self) -> bool:
        """See ``Tokenizer.begins_with_bos``."""
        before = self._backend.encode("", add_special_tokens=True).ids[:1]
        return self.bos_id >= 0 and (self._add_bos or before == [self.bos_id])

    def encode(
        self, text: str, *, bos: bool = False, eos: bool = False, after_marker: bool = False
    ) -> list[int]:
        """See ``Tokenizer.encode``. Raises TypeError unless ``text`` is a str."""
        backend = self._inner if after_marker else self._backend
        ids = backend.encode(require_str(text), add_special_tokens=False).ids
        return wrap(self, ids, bos=bos, eos=eos)

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer.decode``."""
        runs = groupby(require_ids(ids), lambda i: i < self.vocab_size)
        return "".join(
            self._backend.decode(list(run), skip_special_tokens=True) if known else "\ufffd" * len(list(run))
            for known, run in runs
        )

    def piece(self, token_id: int) -> str:
        """See ``Tokenizer.piece``; spaces and bytes are written as the vocabulary does: "Ġthe"."""
        (plain,) = require_ids([token_id])
        if plain in self._added:  # the library may write a word boundary before it
            return self._added[plain].content
        return (self._backend.id_to_token(plain) if plain < self.vocab_size else None) or "\ufffd"

    def special_id(self, piece: str) -> int:
        """See ``Tokenizer.special_id``."""
        token_id = self._backend.token_to_id(piece)
        if token_id is None or token_id not in self._added:
            raise TokenizerError(no_special(piece))
        return token_id

    def with_bos(self) -> "JsonTokenizer":
        """See ``Tokenizer.with_bos``."""
        wrap(self, [], bos=True, eos=False)
        ids = {"bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id}
        return JsonTokenizer(self._text, **ids, add_bos=True)

    def with_ends(self, bos_id: int, eos_id: int) -> "JsonTokenizer":
        """The same with these ids as BOS and EOS, -1 for none."""
        return JsonTokenizer(
            self._text, bos_id=bos_id, eos_id=eos_id, pad_id=self.pad_id, add_bos=self._add_bos
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``; return the former's path."""
        path = Path(folder) / "tokenizer.json"
        named = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        config: dict[str, Any] = {key: self.piece(i) for key, i in named.items() if i >= 0}
        if self._add_bos:
            config[_ADD_BOS] = True
        write(path.with_name(CONFIG), (json.dumps(config, indent=2) + "\n").encode())
        write(path, self._text.encode("utf-8"))
        return path


def byte_level_from_merges(
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    token_types: Sequence[int],
    bos_id: int = -1,
    eos_id: int = -1,
    add_bos: bool = False,
    split_digits: bool = True,
) -> JsonTokenizer:
    """Rebuild a GPT-2 style BPE from the lists in a GGUF header.

    ``merges`` are ``"left right"`` strings, first merged first. Control tokens (type 3) become
    special, user-defined ones (type 4) are matched whole in text. ``split_digits`` is the
    pre-tokenizer that GGUF calls "smollm": every digit alone, then GPT-2's split.

    Raises:
      TokenizerError: lists of different lengths, a token twice, or a merge that is not a pair of tokens.
    """
    if len(tokens) != len(token_types):
        raise TokenizerError(f"{len(tokens)} tokens but {len(token_types)} token types; they must agree")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise TokenizerError(f"merge {wrong!r} is not a pair of pieces")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise TokenizerError(f"{len(tokens)} tokens, but {len(vocabulary)} different ones; each has one id")
    unknown = next(
        (piece for pair in pairs for piece in (*pair, "".join(pair)) if piece not in vocabulary), None
    )
    if unknown is not None:  # the library would end the process
        raise TokenizerError(f"the merges have {unknown!r}, which is no token; take both lists from one file")
    library = _tokenizers()
    backend = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=pairs))
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [library.pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    backend.pre_tokenizer = library.pre_tokenizers.Sequence([*digits, byte_level])
    backend.decoder = library.decoders.ByteLevel()
    for kind, add in ((3, backend.add_special_tokens), (4, backend.add_tokens)):
        added = [token for token, its_kind in zip(tokens, token_types, strict=True) if its_kind == kind]
        add([library.AddedToken(token, special=kind == 3, normalized=False) for token in added])
    return JsonTokenizer(backend.to_str(), bos_id=bos_id, eos_id=eos_id, add_bos=add_bos)


def _as_we_read(content: dict[str, Any], ends: set[int]) -> dict[str, Any]:
    """A ``tokenizer.json`` without what would change the ids of a text, or leave control pieces in it.

    Settings to cut and fill batches are of whoever saved the file; ``transformers`` does not heed them
    either. "normalized" only matters to pieces that are looked for in texts, but where it is true the
    library does not know a control piece again when it decodes.

    Args:
      ends: ids of BOS and EOS, which are control pieces whatever the file takes them for.
    """
    control = {"special": True, "normalized": False}
    added = [
        token | control if token["special"] or token["id"] in ends else token
        for token in content.get("added_tokens") or []
    ]
    return content | {"added_tokens": added, "truncation": None, "padding": None}


def _after_marker(content: dict[str, Any]) -> dict[str, Any]:
    """The ``tokenizer.json`` for text after a marker.

    Only a ``Metaspace`` with the scheme "first" asks where in the whole a text stands: it puts a word
    boundary before the very first, and none after a marker.
    """
    return content | {"pre_tokenizer": _never_first(content.get("pre_tokenizer"))}


def _open_backend(library: Any, content: dict[str, Any], ends: set[int]) -> Any:
    """The library's tokenizer, which reads markers in a text as text; ``ends`` as in ``_as_we_read``."""
    backend = library.Tokenizer.from_str(json.dumps(content))
    backend.encode_special_tokens = True
    added = backend.get_added_tokens_decoder()
    pieces = [backend.id_to_token(token_id) for token_id in ends if token_id >= 0 and token_id not in added]
    backend.add_special_tokens([library.AddedToken(piece, normalized=False) for piece in pieces])
    return backend


def _never_first(before: Any) -> Any:
    """The pre-tokenizer, or the sequence of them, for text that is not the first."""
    if not isinstance(before, dict):
        return before
    if before.get("type") == "Sequence":
        return before | {"pretokenizers": [_never_first(each) for each in before["pretokenizers"]]}
    first = before.get("type") == "Metaspace" and before.get("prepend_scheme") == "first"
    return before | {"prepend_scheme": "never"} if first else before


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


def _config_id(config: Any, role: str, tokenizer: JsonTokenizer) -> int:
    """The id a ``tokenizer_config.json`` names for ``role``, or -1."""
    if not isinstance(config, dict):
        raise TokenizerError(f"it holds a {type(config).__name__}, an object is needed; copy it again")
    token = config.get(f"{role}_token")
    if token is None:
        return -1
    piece = token.get("content") if isinstance(token, dict) else token
    if not isinstance(piece, str):
        raise TokenizerError(f'{role}_token is {token!r}; it must be a piece or {{"content": piece}}')
    token_id = tokenizer._backend.token_to_id(piece)
    if token_id is not None:
        return token_id
    if role == "pad":  # often named for others to add to the vocabulary; nothing here needs one
        return -1
    raise TokenizerError(
        f"{role}_token is {piece!r}, which tokenizer.json does not have; take both files from one model"
    )
