"""Tokenised corpora as they are read: random access to documents, whose tokens stay on disk.

``shards`` writes them. Where a document stands follows from the lengths, so nothing is kept of a shard,
neither an index nor an open file (``docs/pretraining.md``).
"""

import glob
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama2_jax.config import require
from llama2_jax.data.jsonl import read_json_file
from llama2_jax.data.offsets import Offsets
from llama2_jax.data.records import DataError
from llama2_jax.data.tokenizer import Tokenizer

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
AGAIN = "tokenise again (good shards are kept)"


class TokenisedCorpus:
    """Random access to the documents of folders that ``write_shards`` made, one folder after the other.

    ``corpus[i]`` is an int32 array of ids, BOS first and EOS last; ``lengths`` (uint32) has one
    number per document and is all that is held in memory. ``manifest`` is that of the folder; of several
    it has the numbers of all.
    """

    def __init__(self, folders: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> None:
        self.folder, self.manifest = folders[0], _joined(manifests)
        shards = [(f, shard) for f, m in zip(folders, manifests, strict=True) for shard in m["shards"]]
        self._paths = [shard_path(folder, shard["name"]) for folder, shard in shards]
        self.lengths = np.concatenate([read_lengths(folder, shard) for folder, shard in shards])
        self._offsets = Offsets(self.lengths)
        self._first_document = np.cumsum([0, *(shard["documents"] for _, shard in shards)])
        self._first_token = np.cumsum([0, *(shard["tokens"] for _, shard in shards)])

    @classmethod
    def open(cls, *folders: str | Path) -> "TokenisedCorpus":
        """Open finished corpora as one.

        Raises:
          DataError: no manifest, or one of another version; a shard that is missing or of another size than
            the manifest says.
          ConfigError: they are made with different tokenizers.
        """
        paths = [Path(folder) for folder in folders]
        manifests = [_finished_manifest(path) for path in paths]
        for path, manifest in zip(paths, manifests, strict=True):
            _check_tokenizer(path, manifest, manifests[0]["tokenizer_hash"])
            require(
                manifest["bos_id"] == manifests[0]["bos_id"],
                f"documents begin with id {manifests[0]['bos_id']} in {paths[0]} and with "
                f"{manifest['bos_id']} in {path}; tokenise one of them again",
            )
            for shard in manifest["shards"]:
                _check_size(shard_path(path, shard["name"]), shard["file_bytes"])
        return cls(paths, manifests)

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Check that the corpus was made with this tokenizer. Raises ConfigError if not."""
        _check_tokenizer(self.folder, self.manifest, tokenizer.content_hash)
        for name in ("bos_id", "eos_id"):  # they may stand in another file than what is hashed
            found, given = self.manifest[name], getattr(tokenizer, name)
            require(
                found == given,
                f"{self.folder} was made with {name} {found}, the tokenizer given has {given}; tokenise the "
                "corpus again or use its tokenizer",
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.part(index, 0, int(self.lengths[index]))

    def part(self, index: int, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` of document ``index``, int32; nothing else is read.

        Raises:
          DataError: the shard cannot be read, or is damaged: the document does not begin with BOS, or an id
            is not of the vocabulary. Not all damage is seen here; ``write_shards`` compares the sha256.
        """
        shard = int(np.searchsorted(self._first_document, index, side="right")) - 1
        begin = self._offsets.begin(index) - int(self._first_token[shard])
        try:
            ids = self._read(shard, begin + start, stop - start).astype(np.int32)
        except OSError as error:
            raise DataError(f"{self._place(shard, index)} cannot be read: {error}") from error
        if len(ids) < stop - start:
            raise DataError(f"{self._place(shard, index)}: the file ends before it; {AGAIN}")
        begins_right = start > 0 or stop == 0 or ids[0] == self.manifest["bos_id"]
        if not begins_right or ids.max(initial=0) >= self.manifest["vocab_size"]:
            raise DataError(f"{self._place(shard, index)}: the shard is damaged; {AGAIN}")
        return ids

    def _read(self, shard: int, first: int, count: int) -> np.ndarray:
        # opened for every part: a mapped file would be one open file more, read in megabytes ahead, and an
        # error in reading it would end the process without a word
        dtype = np.dtype(self.manifest["dtype"])
        return np.fromfile(self._paths[shard], dtype, count, offset=first * dtype.itemsize)

    def _place(self, shard: int, index: int) -> str:
        """Where a document stands, for messages."""
        return f"{self._paths[shard]}, document {index - self._first_document[shard]}"


def corpus_folders(path: str | Path) -> list[Path]:
    """The tokenised folders, finished or not, behind a path or pattern; none where it means text files."""
    names = [str(path)] if Path(path).is_dir() else sorted(glob.glob(str(path)))
    folders = [Path(name) for name in names if Path(name).is_dir()]
    return folders if any(_is_corpus(folder) for folder in folders) else []


def _is_corpus(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or any(folder.glob("shard-*.tokens*"))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What ``write_shards`` says of a folder; None before it has finished.

    Raises:
      DataError: the file is damaged, or none of ours.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_json_file(path)
    except DataError as error:
        raise DataError(f"{error}; delete it and {AGAIN}") from error
    if not isinstance(manifest, dict) or not {"format_version", "recipe", "shards"} <= manifest.keys():
        raise DataError(f"{path} is no manifest of a corpus; move it away, or use another folder")
    return manifest


def shard_path(folder: Path, name: str) -> Path:
    """The file of a shard's tokens."""
    return folder / f"{name}.tokens"


def read_lengths(folder: Path, shard: dict[str, Any]) -> np.ndarray:
    """Tokens of every document of a shard, uint32.

    Raises:
      DataError: they are not those of the shard.
    """
    path = folder / f"{shard['name']}.lengths.npy"
    try:
        lengths = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}; {AGAIN}") from error
    found = len(lengths), int(lengths.sum(dtype=np.int64))
    if found != (shard["documents"], shard["tokens"]):
        raise DataError(
            f"{path} has {found[0]} documents of {found[1]} tokens, the manifest says "
            f"{shard['documents']} of {shard['tokens']}; {AGAIN}"
        )
    return lengths


def _finished_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{folder / MANIFEST} is missing; run (or finish) "
            f"python -m tools.tokenize_corpus --output={folder}"
        )
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder} has format {version}, this code reads {FORMAT_VERSION}; tokenise the text again"
        )
    return manifest


def _joined(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The manifest of several folders in this order."""
    if len(manifests) == 1:
        return manifests[0]
    recipe = hashlib.sha256(json.dumps([manifest["recipe"] for manifest in manifests]).encode()).hexdigest()
    lists = {key: [entry for m in manifests for entry in m[key]] for key in ("inputs", "shards")}
    sums = {key: sum(m[key] for m in manifests) for key in ("documents", "tokens", "text_bytes", "bad_lines")}
    return {**manifests[0], "recipe": recipe, **lists, **sums}


def _check_tokenizer(folder: Path, manifest: dict[str, Any], content_hash: str) -> None:
    made_with = manifest["tokenizer_hash"]
    require(
        content_hash == made_with,
        f"{folder} was made with tokenizer {made_with[:12]}, the one given is "
        f"{content_hash[:12]}; tokenise the corpus again or use its tokenizer",
    )


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        raise DataError(
            f"{path} has {size} bytes, the manifest says {expected}: the shard is damaged; {AGAIN}"
        )
