"""Tokenising text, and reading rows of the corpus, beside the same documents in ArrayRecord files.

python -m benchmarks.corpus --workers=2
"""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.record import own_memory, record
from llama2_jax.data.corpus import TokenisedCorpus
from llama2_jax.data.packing import PackedDocuments
from llama2_jax.data.shards import write_shards
from llama2_jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece

MAX_SHARD_TOKENS = 10_000_000


class ArrayRecords:
    """Documents of the files that ``write_array_records`` left."""

    def __init__(self, folder: Path) -> None:
        self.lengths = TokenisedCorpus.open(folder).lengths
        self._records = ArrayRecordDataSource(sorted(map(str, folder.glob("*.array_record"))))

    def part(self, index: int, start: int, stop: int) -> np.ndarray:
        """See ``TokenisedCorpus``; the document is read whole."""
        return np.frombuffer(self._records[index], "<u2")[start:stop].astype(np.int32)


OPEN: dict[str, Any] = {"tokens": TokenisedCorpus.open, "array_record": ArrayRecords}


def write_array_records(folder: Path) -> None:
    """A file beside each shard, with the same documents."""
    corpus, first = TokenisedCorpus.open(folder), 0
    for shard in corpus.manifest["shards"]:
        writer = ArrayRecordWriter(str(folder / f"{shard['name']}.array_record"), "group_size:1")
        for index in range(first, first + shard["documents"]):
            writer.write(corpus[index].astype("<u2").tobytes())
        writer.close()
        first += shard["documents"]


def read(folder: Path, kind: str, sequence_length: int, count: int) -> dict[str, float]:
    """Milliseconds per row at random, and memory per document in bytes that no file backs."""
    before = own_memory()
    corpus = OPEN[kind](folder)
    rows = PackedDocuments(corpus, sequence_length=sequence_length, seed=0, document_mask=False)
    chosen = np.random.default_rng(0).integers(0, len(rows), count)
    start = time.perf_counter()
    for index in chosen:
        rows[int(index)]
    secs = time.perf_counter() - start
    held = (own_memory() - before) * 2**20 / len(corpus.lengths)
    disk = sum(path.stat().st_size for path in folder.glob(f"*.{kind}"))
    return {"ms_per_row": 1e3 * secs / count, "bytes_per_document": held, "disk_mib": disk / 2**20}


def read_apart(*args: Any) -> dict[str, float]:
    """``read`` in a process of its own, whose memory nothing else has used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(read, *args).result()


def texts(source: str, documents: int) -> Iterator[str]:
    """Pieces of the text, half of them below 1,600 characters."""
    generator = random.Random(0)
    for _ in range(documents):
        length = min(int(generator.lognormvariate(7.4, 1.0)), len(source) // 2) + 1
        start = generator.randrange(len(source) - length)
        yield source[start : start + length]


def encoding(tokenizer: SentencePieceTokenizer) -> dict[str, dict[str, float]]:
    """MB/s of processor time, word by word as ``encode`` does and by SentencePiece of the whole text."""
    draw = random.Random(0)
    python = [path.read_text(encoding="utf-8") for path in sorted(Path(jax.__file__).parent.rglob("*.py"))]
    numbers = [" ".join(str(draw.randrange(10**9)) for _ in range(1000)) for _ in range(1000)]
    symbols = ["".join(chr(draw.randrange(0x4E00, 0x5A00)) for _ in range(4000)) for _ in range(1000)]
    whole = tokenizer._processor.encode
    rates = {}
    for name, own in (("Python", python), ("numbers", numbers), ("no spaces", symbols)):
        size = sum(len(text.encode()) for text in own) / 1e6
        rates[name] = {"by words": size / spent(tokenizer.encode, own), "whole": size / spent(whole, own)}
    return rates


def spent(encode: Callable[[str], list[int]], texts: list[str]) -> float:
    """Processor seconds."""
    start = time.process_time()
    for text in texts:
        encode(text)
    return time.process_time() - start


def main(_: list[str]) -> None:
    """Tokenise once, read both forms."""
    given = flags.FLAGS
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path("docs").glob("*.md")))
    with tempfile.TemporaryDirectory() as name:
        text, folder, tokenizer = (
            Path(name) / "text.jsonl",
            Path(name) / "corpus",
            Path(name) / "tokenizer.model",
        )
        with text.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts(source, given.documents))
        encoded = encoding(train_sentencepiece(source.splitlines(), tokenizer, vocab_size=given.vocab_size))
        start = time.perf_counter()
        settings = {"num_workers": given.workers, "max_shard_tokens": MAX_SHARD_TOKENS}
        manifest = write_shards(text, folder, tokenizer, **settings)
        rate = manifest["tokens"] / (time.perf_counter() - start)
        write_array_records(folder)
        reading = {kind: read_apart(folder, kind, given.sequence_length, given.rows) for kind in OPEN}
    counts = {key: manifest[key] for key in ("documents", "tokens", "text_bytes")}
    of_form = "; ".join(
        f"{kind}: {form['ms_per_row']:.2f} ms per row, {form['bytes_per_document']:.0f} bytes of memory per "
        f"document, {form['disk_mib']:.0f} MiB"
        for kind, form in reading.items()
    )
    line = f"{rate / 1e6:.2f} million tokens/s by {given.workers} worker(s); {of_form}"
    line += "; MB/s of a core by words (whole): " + ", ".join(
        f"{name} {one['by words']:.1f} ({one['whole']:.1f})" for name, one in encoded.items()
    )
    found = {**counts, "tokens_per_sec": rate, "encoding_mb_per_sec": encoded, "reading": reading}
    record("corpus", found, line=line)


if __name__ == "__main__":  # flags are global: the processes that read must not define them again
    flags.DEFINE_integer("documents", 300_000, "pieces of docs/*.md")
    flags.DEFINE_integer("workers", 2, "processes that tokenise")
    flags.DEFINE_integer("vocab_size", 4096, "of the tokenizer, trained on docs/*.md")
    flags.DEFINE_integer("sequence_length", 4096, "tokens of a row")
    flags.DEFINE_integer("rows", 2000, "rows that are read, at random")
    app.run(main)
