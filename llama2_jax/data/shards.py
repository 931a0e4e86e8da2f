"""Tokenised corpora on disk: ArrayRecord shards, one record per document.

A record is ``BOS + text + EOS`` as little-endian uint16 (vocabulary up to 65,536) or uint32.
A folder holds ``shard-NNNNN.array_record``, beside each shard its document lengths
(``.lengths.npy``) and a ``.json`` that is written last and marks it finished, and
``manifest.json``, written when all shards are. Shards depend on the input, the tokenizer and
the settings only, not on the number of workers or on interruptions.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from llama2_jax.config import require, write_json
from llama2_jax.data.sources import BadLines, DataError, OnBadLine, Paths, expand_paths, read_documents
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer
from llama2_jax.files import written_whole

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DOCUMENTS_PER_TASK = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardInfo:
    """What a finished shard holds."""

    name: str
    recipe: str  # hash of everything the content depends on
    documents: int
    tokens: int
    text_bytes: int  # UTF-8 bytes of the texts, for bits per byte
    file_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Document:
    record: bytes
    tokens: int
    text_bytes: int


def write_shards(
    input_paths: Paths,
    output_dir: str | Path,
    tokenizer_path: str | Path,
    *,
    num_workers: int = 1,
    max_shard_tokens: int = 100_000_000,
    text_key: str = "text",
    on_bad_line: OnBadLine = "error",
) -> dict[str, Any]:
    """Tokenise documents into ``output_dir``; started again, it keeps the shards that are finished.

    Returns the manifest: recipe, tokenizer_hash, vocab_size, dtype, inputs (name, bytes, sha256),
    documents, tokens, text_bytes (UTF-8, for bits per byte), bad_lines, shards (``ShardInfo``).

    Args:
      input_paths: files or patterns, see ``read_documents``.
      output_dir: folder for one corpus; shards of another input or tokenizer in it are replaced.
      tokenizer_path: see ``load_tokenizer``.
      num_workers: processes that encode; 1 works in this process.
      max_shard_tokens: a shard ends with the document that reaches this number.
      text_key: see ``read_documents``.
      on_bad_line: see ``read_documents``.

    Raises:
      DataError: see ``read_documents``.
    """
    require(max_shard_tokens > 0, f"max_shard_tokens is {max_shard_tokens}; it must be positive")
    require(num_workers > 0, f"num_workers is {num_workers}; it must be positive")
    output, files = Path(output_dir), expand_paths(input_paths)
    output.mkdir(parents=True, exist_ok=True)
    origin = _origin(files, load_tokenizer(tokenizer_path), max_shard_tokens, text_key, on_bad_line)
    shards = _finished_shards(output, origin["recipe"])
    finished = _read_manifest(output)
    if finished is not None and finished["shards"] == [asdict(shard) for shard in shards]:
        return finished
    (output / MANIFEST).unlink(missing_ok=True)  # it would describe shards that are replaced below
    bad_lines = BadLines()
    texts = read_documents(files, text_key=text_key, on_bad_line=on_bad_line, bad_lines=bad_lines)
    remaining = islice(texts, sum(shard.documents for shard in shards), None)
    documents = _encode_all(remaining, tokenizer_path, origin["dtype"], num_workers)
    for first in documents:
        group = _until(chain([first], documents), max_shard_tokens)
        shards.append(_write_shard(output, f"shard-{len(shards):05d}", group, origin["recipe"]))
    manifest = {**origin, **_totals(shards), "bad_lines": bad_lines.count}
    write_json(output / MANIFEST, manifest)
    _remove_stale(output, {shard.name for shard in shards})
    return manifest


class TokenisedCorpus:
    """Random access to the documents of a folder that ``write_shards`` made.

    ``corpus[i]`` is an int32 array of ids, BOS first and EOS last; ``lengths`` (int64) has one
    number per document and is all that is held in memory. Reading a damaged shard is a DataError.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        names = [shard["name"] for shard in manifest["shards"]]
        lengths = [np.load(folder / f"{name}.lengths.npy") for name in names]
        self.folder = folder
        self.manifest = manifest
        self.lengths = np.concatenate(lengths).astype(np.int64)
        try:
            self._records = ArrayRecordDataSource([str(_shard_path(folder, name)) for name in names])
        except RuntimeError as error:
            raise DataError(
                f"{folder}: a shard's index is damaged: {error}; tokenise again (good shards are kept)"
            ) from error

    @classmethod
    def open(cls, folder: str | Path) -> "TokenisedCorpus":
        """Open a finished corpus.

        Raises:
          DataError: no manifest, a missing shard, one whose size differs from the manifest, or
            one with a damaged index.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        if manifest is None:
            raise DataError(
                f"{folder / MANIFEST} is missing; run (or finish) "
                f"python -m tools.tokenize_corpus --output={folder}"
            )
        for shard in manifest["shards"]:
            path = _shard_path(folder, shard["name"])
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["file_bytes"]:
                raise DataError(
                    f"{path} has {size} bytes, the manifest says {shard['file_bytes']}: "
                    "the shard is damaged; tokenise again (good shards are kept)"
                )
        return cls(folder, manifest)

    def require_tokenizer(self, content_hash: str) -> None:
        """Check that the corpus was made with this tokenizer. Raises ConfigError if not."""
        made_with = self.manifest["tokenizer_hash"]
        require(
            content_hash == made_with,
            f"{self.folder} was made with tokenizer {made_with[:12]}, the one given is "
            f"{content_hash[:12]}; tokenise the corpus again or use its tokenizer",
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            record = self._records[index]
        except RuntimeError as error:
            raise DataError(
                f"{self._shard_of(index)} cannot be read: {error}; the shard is damaged, tokenise again "
                "(good shards are kept)"
            ) from error
        return np.frombuffer(record, dtype=self.manifest["dtype"]).astype(np.int32)

    def _shard_of(self, index: int) -> str:
        """The place of a document, for messages."""
        number = index
        for shard in self.manifest["shards"]:
            if number < shard["documents"]:
                return f"{_shard_path(self.folder, shard['name'])}, record {number},"
            number -= shard["documents"]
        raise IndexError(index)


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _origin(files: list[Path], tokenizer: Tokenizer, *settings: Any) -> dict[str, Any]:
    """What the shards are made from; ``recipe`` is a hash of all that their content depends on."""
    inputs = [{"name": f.name, "bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files]
    hashes = [entry["sha256"] for entry in inputs]
    ids = [tokenizer.content_hash, tokenizer.bos_id, tokenizer.eos_id]
    recipe = json.dumps([FORMAT_VERSION, hashes, ids, settings])
    return {
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
        "tokenizer_hash": tokenizer.content_hash,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
        "inputs": inputs,
    }


def _totals(shards: list[ShardInfo]) -> dict[str, Any]:
    sums = {key: sum(getattr(s, key) for s in shards) for key in ("documents", "tokens", "text_bytes")}
    return {**sums, "shards": [asdict(shard) for shard in shards]}


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _shard_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.array_record"


def _finished_shards(folder: Path, recipe: str) -> list[ShardInfo]:
    """Shards 0, 1, ... that are complete, undamaged and made by ``recipe``, up to the first that is not."""
    shards: list[ShardInfo] = []
    while True:
        mark = folder / f"shard-{len(shards):05d}.json"
        if not mark.is_file():
            return shards
        shard = ShardInfo(**json.loads(mark.read_text(encoding="utf-8")))
        path = _shard_path(folder, shard.name)
        if shard.recipe != recipe or not path.is_file() or file_sha256(path) != shard.sha256:
            return shards
        log.info("keeping %s", path)
        shards.append(shard)


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    """The tokenizer of this process: a worker loads it once, not once per task."""
    return load_tokenizer(path)


def _encode(texts: list[str], tokenizer_path: str, dtype: str) -> list[_Document]:
    tokenizer = _tokenizer(tokenizer_path)
    documents = []
    for text in texts:
        ids = np.array(tokenizer.encode(text, bos=True, eos=True), dtype=dtype)
        documents.append(_Document(ids.tobytes(), len(ids), len(text.encode("utf-8"))))
    return documents


def _encode_all(
    texts: Iterable[str], tokenizer_path: str | Path, dtype: str, num_workers: int
) -> Iterator[_Document]:
    """Encode in order, with a bounded number of tasks ahead (a corpus need not fit in memory)."""
    path = str(tokenizer_path)
    batches = _batches(texts, DOCUMENTS_PER_TASK)
    if num_workers == 1:
        yield from chain.from_iterable(_encode(batch, path, dtype) for batch in batches)
        return
    pending: deque[Future[list[_Document]]] = deque()
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        for batch in batches:
            pending.append(pool.submit(_encode, batch, path, dtype))
            if len(pending) >= 4 * num_workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _until(documents: Iterator[_Document], max_tokens: int) -> Iterator[_Document]:
    """Take documents until their tokens reach ``max_tokens``; the rest stays in the iterator."""
    tokens = 0
    for document in documents:
        tokens += document.tokens
        yield document
        if tokens >= max_tokens:
            return


def _write_shard(folder: Path, name: str, documents: Iterator[_Document], recipe: str) -> ShardInfo:
    path = _shard_path(folder, name)
    with written_whole(path) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")  # a group is read whole: one document each
        lengths, text_bytes = [], 0
        for document in documents:
            writer.write(document.record)
            lengths.append(document.tokens)
            text_bytes += document.text_bytes
        writer.close()
        np.save(folder / f"{name}.lengths.npy", np.array(lengths, np.uint32))
        digest, size = file_sha256(partial), partial.stat().st_size
    shard = ShardInfo(name, recipe, len(lengths), sum(lengths), text_bytes, size, digest)
    write_json(folder / f"{name}.json", asdict(shard))
    return shard


def _remove_stale(folder: Path, names: set[str]) -> None:
    """Delete what an earlier, different run left behind."""
    for path in folder.glob("shard-*"):
        if path.name.split(".")[0] not in names or path.name.endswith(".partial"):
            path.unlink()
