"""Which evaluation samples stand in the training text, and whether that moved the metric (A.6, Table 51).

python -m experiments.contamination --tokenizer=PATH --train='text/*.jsonl' --samples=FILE --output=DIR

``--train`` are files of text or folders made by ``tools.tokenize_corpus`` with the same tokenizer; encoding
takes most of the time, so a corpus that is looked at twice is best tokenised first. A folder's shards and
different files are worked on by ``--num_workers`` processes. The samples are rows
{"id", "text", "dataset", "metric"} or logs of lm_eval, see ``llama2_jax/data/scored_samples.py``; the metric
is one of which more is better.

Writes into ``--output``:
  report.md      each dataset at each minimum length L, as in Table 51, and the largest L with an effect
  samples.jsonl  each sample: number of tokens, contaminated percent at each L, longest span
  matches.jsonl  of each sample that has one, its longest span (one of them): where it stands, both texts

Offsets are in tokens. Those of a document count its BOS, those of a sample have none.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial, reduce
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.contamination_report import write_report
from llama2_jax.analysis.contamination import Document, Scan, empty_scan, merge, scan
from llama2_jax.analysis.contamination_index import SampleIndex, index_samples
from llama2_jax.data.corpus import TokenisedCorpus, corpus_folders
from llama2_jax.data.records import expand_paths
from llama2_jax.data.scored_samples import read_scored_samples
from llama2_jax.data.sources import read_documents
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer
from llama2_jax.launch import launch

TASKS_PER_WORKER = 8  # more than one, because files differ in size

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A training file, or of a tokenised folder the documents of one shard."""

    path: str
    documents: range | None = None


def main() -> None:
    """Read, index, scan, write."""
    args = flags.FLAGS
    Path(args.output).mkdir(parents=True, exist_ok=True)  # what cannot be written to is found now
    tokenizer = load_tokenizer(args.tokenizer)
    parts = training_parts(args.train, tokenizer)
    samples = read_scored_samples(
        args.samples, metric=args.metric, fewshot_delimiter=args.fewshot_delimiter.replace("\\n", "\n")
    )
    if args.dataset:
        samples = [sample._replace(dataset=args.dataset) for sample in samples]
    index = index_samples([tokenizer.encode(sample.text) for sample in samples], max_places=args.max_places)
    begin = time.perf_counter()
    found = scan_parts(index, parts, args.tokenizer, num_workers=args.num_workers)
    seconds = time.perf_counter() - begin
    write_report(
        Path(args.output), samples, index, found, tokenizer, seconds=seconds, max_places=args.max_places
    )
    print(f"{args.output}/report.md")


def training_parts(paths: Sequence[str], tokenizer: Tokenizer) -> list[Part]:
    """What can be read apart, checked before any of it is.

    Raises:
      DataError: no such file, or a damaged folder.
      ConfigError: a folder made with another tokenizer.
    """
    parts = []
    for path in paths:
        folders = corpus_folders(path)
        if not folders:
            parts += [Part(str(file)) for file in expand_paths(path)]
        for folder in folders:
            corpus = TokenisedCorpus.open(folder)
            corpus.require_tokenizer(tokenizer)
            ends = list(itertools.accumulate(shard["documents"] for shard in corpus.manifest["shards"]))
            parts += [Part(str(folder), range(begin, end)) for begin, end in itertools.pairwise([0, *ends])]
    return list(dict.fromkeys(parts))


def scan_parts(index: SampleIndex, parts: Sequence[Part], tokenizer_path: str, *, num_workers: int) -> Scan:
    """What all parts have of the samples; the same for any number of workers."""
    if num_workers == 1:
        return _scan_some(parts, index, tokenizer_path)
    size = -(-len(parts) // (TASKS_PER_WORKER * num_workers))
    tasks = [parts[begin : begin + size] for begin in range(0, len(parts), size)]
    work = partial(_scan_some, index=index, tokenizer_path=tokenizer_path)
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        return reduce(merge, pool.map(work, tasks), empty_scan(index))


def _scan_some(parts: Sequence[Part], index: SampleIndex, tokenizer_path: str) -> Scan:
    tokenizer = load_tokenizer(tokenizer_path)
    return scan(index, itertools.chain.from_iterable(_documents(part, tokenizer) for part in parts))


def _documents(part: Part, tokenizer: Tokenizer) -> Iterator[Document]:
    log.info("reading %s", part.path)
    if part.documents is not None:
        corpus = TokenisedCorpus.open(part.path)
        yield from (Document(part.path, number, corpus[number]) for number in part.documents)
        return
    for number, text in enumerate(read_documents(part.path)):
        ids = tokenizer.encode(text, bos=tokenizer.bos_id >= 0, eos=tokenizer.eos_id >= 0)
        yield Document(part.path, number, np.array(ids, np.int32))


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_string("tokenizer", None, "tokenizer.model, tokenizer.json or their folder.")
    flags.DEFINE_multi_string(
        "train", None, "Training text: file or tokenised folder, or a pattern of them; repeatable."
    )
    flags.DEFINE_multi_string("samples", None, "Samples with metrics: file or glob pattern; repeatable.")
    flags.DEFINE_string("output", None, "Folder to write to.")
    flags.DEFINE_string("dataset", "", "One name for all samples, to look at them together.")
    flags.DEFINE_string("metric", "", "Of lm_eval's metrics, this one instead of the first.")
    flags.DEFINE_string(
        "fewshot_delimiter", "", r"What ends an example in lm_eval's prompts, such as '\n\n'."
    )
    flags.DEFINE_integer(
        "max_places", 256, "No span starts at a 10-gram in more places of the samples.", lower_bound=1
    )
    flags.DEFINE_integer("num_workers", 1, "Processes that encode and search.", lower_bound=1)
    flags.mark_flags_as_required(["tokenizer", "train", "samples", "output"])
    launch(main)
