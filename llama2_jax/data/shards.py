"""Tokenised corpora on disk: shards of token ids, document after document.

A document is ``BOS + text + EOS`` as little-endian uint16 (vocabulary up to 65,536) or uint32.
A folder holds ``shard-NNNNN.tokens``, beside each shard its document lengths
(``.lengths.npy``) and a ``.json`` that is written last and marks it finished, and
``manifest.json``, written when all shards are. Shards depend on the input, the tokenizer and
the settings only, not on the number of workers or on interruptions. ``corpus`` reads them.
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.config import require, write_json
from llama2_jax.data.corpus import FORMAT_VERSION, MANIFEST, read_lengths, read_manifest, shard_path
from llama2_jax.data.jsonl import read_json_file
from llama2_jax.data.records import BadLines, DataError, OnBadLine, Paths, expand_paths
from llama2_jax.data.sources import read_documents
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer
from llama2_jax.files import held, written_whole

MAX_SHARD_TOKENS = 100_000_000
DOCUMENTS_PER_TASK, CHARACTERS_PER_TASK = 256, 2**22  # whichever is reached first: books are long

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
    max_shard_tokens: int = MAX_SHARD_TOKENS,
    text_key: str = "text",
    on_bad_line: OnBadLine = "error",
    replace: bool = False,
) -> dict[str, Any]:
    """Tokenise documents into ``output_dir``; started again, it keeps the shards that are finished.

    Returns the manifest: format_version, recipe, tokenizer_hash, vocab_size, bos_id, eos_id, dtype, inputs
    (name, bytes, sha256), documents, tokens, text_bytes (UTF-8, for bits per byte), bad_lines, shards
    (``ShardInfo``).

    Args:
      input_paths: files or patterns, see ``read_documents``.
      output_dir: folder for one corpus.
      tokenizer_path: see ``load_tokenizer``.
      num_workers: processes that encode; 1 works in this process.
      max_shard_tokens: a shard ends with the document that reaches this number.
      text_key: see ``read_documents``.
      on_bad_line: see ``read_documents``.
      replace: shards in the folder that were made from another input, tokenizer or setting; otherwise they
        are an error.

    Raises:
      DataError: see ``read_documents``; or the folder holds another corpus, or an input.
      InUseError: another process writes there.
    """
    require(max_shard_tokens > 0, f"max_shard_tokens is {max_shard_tokens}; it must be positive")
    require(num_workers > 0, f"num_workers is {num_workers}; it must be positive")
    output, files = Path(output_dir), expand_paths(input_paths)
    for file in files:
        if file.resolve().parent == output.resolve():
            raise DataError(f"{file} lies in {output}, which is for the corpus alone; name another output")
    origin = corpus_origin(
        files,
        load_tokenizer(tokenizer_path),
        max_shard_tokens=max_shard_tokens,
        text_key=text_key,
        on_bad_line=on_bad_line,
    )
    if (finished := read_manifest(output)) is not None:
        shards = _finished_shards(output, origin["recipe"])
        if finished["shards"] == [asdict(shard) for shard in shards]:
            return finished  # nothing is written, where that may not even be allowed
    with held(output, another="output"):
        shards = _finished_shards(output, origin["recipe"])
        if not (shards or replace):
            _require_no_other(output, origin["recipe"])
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


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(paths: Sequence[str]) -> list[str]:
    """``file_sha256`` of the files behind paths and patterns; none of none."""
    return [file_sha256(path) for path in expand_paths(paths)] if paths else []


def corpus_origin(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    max_shard_tokens: int = MAX_SHARD_TOKENS,
    text_key: str = "text",
    on_bad_line: OnBadLine = "error",
) -> dict[str, Any]:
    """What ``write_shards`` would make its shards from; ``recipe`` is a hash of all that they depend on."""
    inputs = [{"name": f.name, "bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files]
    hashes = [entry["sha256"] for entry in inputs]
    ids = [tokenizer.content_hash, tokenizer.bos_id, tokenizer.eos_id]
    settings = (max_shard_tokens, text_key, on_bad_line)
    recipe = json.dumps([FORMAT_VERSION, hashes, ids, settings])
    return {
        "format_version": FORMAT_VERSION,
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
        "tokenizer_hash": tokenizer.content_hash,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "dtype": "<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
        "inputs": inputs,
    }


def _totals(shards: list[ShardInfo]) -> dict[str, Any]:
    sums = {key: sum(getattr(s, key) for s in shards) for key in ("documents", "tokens", "text_bytes")}
    return {**sums, "shards": [asdict(shard) for shard in shards]}


def _finished_shards(folder: Path, recipe: str) -> list[ShardInfo]:
    """Shards 0, 1, ... that are complete, undamaged and made by ``recipe``, up to the first that is not."""
    shards: list[ShardInfo] = []
    while (shard := _read_mark(folder, len(shards))) is not None:
        if shard.recipe != recipe or not _is_sound(folder, shard):
            break
        log.info("keeping %s", shard_path(folder, shard.name))
        shards.append(shard)
    return shards


def _read_mark(folder: Path, number: int) -> ShardInfo | None:
    """What says that a shard is finished; None if it is not there, or not whole after a crash."""
    mark = folder / f"shard-{number:05d}.json"
    try:
        return ShardInfo(**read_json_file(mark)) if mark.is_file() else None
    except (DataError, TypeError):
        return None


def _require_no_other(folder: Path, recipe: str) -> None:
    manifest, first = read_manifest(folder), _read_mark(folder, 0)
    made_by = {manifest["recipe"]} if manifest else {first.recipe} if first else set()
    if made_by - {recipe}:
        size = f"of {manifest['tokens']:,} tokens" if manifest else "that is not finished"
        raise DataError(
            f"{folder} holds a corpus {size}, of other input, another tokenizer or other settings, which "
            "this one would replace; write to another folder (a run reads several as one), or give --replace"
        )


def _is_sound(folder: Path, shard: ShardInfo) -> bool:
    path = shard_path(folder, shard.name)
    if not path.is_file() or file_sha256(path) != shard.sha256:
        return False
    try:
        read_lengths(folder, asdict(shard))
    except DataError:
        return False
    return True


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
    batches = _batches(texts)
    if num_workers == 1:
        yield from chain.from_iterable(_encode(batch, path, dtype) for batch in batches)
        return
    pending: deque[Future[list[_Document]]] = deque()
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_end_with_parent) as pool:
        for batch in batches:
            pending.append(pool.submit(_encode, batch, path, dtype))
            if len(pending) >= 4 * num_workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for more work for ever."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == DOCUMENTS_PER_TASK or characters >= CHARACTERS_PER_TASK:
            yield batch
            batch, characters = [], 0
    if batch:
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
    path = shard_path(folder, name)
    with written_whole(path) as partial:
        lengths, text_bytes = [], 0
        with partial.open("wb") as file:
            for document in documents:
                file.write(document.record)
                lengths.append(document.tokens)
                text_bytes += document.text_bytes
        np.save(folder / f"{name}.lengths.npy", np.array(lengths, np.uint32))
        digest, size = file_sha256(partial), partial.stat().st_size
    shard = ShardInfo(name, recipe, len(lengths), sum(lengths), text_bytes, size, digest)
    write_json(folder / f"{name}.json", asdict(shard))
    return shard


def _remove_stale(folder: Path, names: set[str]) -> None:
    """Delete shards that an earlier, different run left behind, and nothing else."""
    for path in folder.glob("shard-*"):
        ours = re.fullmatch(r"(shard-\d{5,})\.(tokens|lengths\.npy|json)(\.partial)?", path.name)
        if ours and (ours[1] not in names or ours[3]):
            path.unlink()
