"""Scores of texts by a classifier, such as one of toxicity (Llama 2, Figure 13, Tables 11, 14 and 45).

python -m experiments.classify --classifier=tomh/toxigen_roberta --input=DIR/answers.jsonl --output=FILE
python -m experiments.classify --classifier=tomh/toxigen_hatebert --tokenizer=bert-base-uncased --lines \
    --input='corpus/*.jsonl.gz' --output=FILE

The classifier is a folder or a name on the hub of Hugging Face; transformers runs it (needs the extra
"classifiers", with torch). --label names the label whose probability is wanted, by default the second of two.

The first form scores the text under "answer" (--text_key) of each row. FILE has rows {"id": 0, "toxicity":
0.02}, with the row's own id or its number from 0, which safety_benchmarks reads as --scores; --measure names
the score. The second form scores lines of documents, for corpus_report --line_scores: of a sample of the
English documents (--sample_share, the paper's 10 %; needs the extra "analysis"), each line with text on it.
FILE has rows {"line_scores": [0.02, 0.4]}. It appears when it is complete.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

from experiments.corpus_report import sample
from experiments.row_fields import row_text
from llama2_jax.analysis.languages import ENGLISH, language_identifier
from llama2_jax.config import require
from llama2_jax.data.jsonl import read_rows, write_rows
from llama2_jax.data.records import expand_paths
from llama2_jax.data.sources import read_documents
from llama2_jax.evals.classifier import Classifier, load_classifier
from llama2_jax.launch import launch

DOCUMENTS_AT_ONCE = 256


def main() -> None:
    """Read, score, write."""
    args = flags.FLAGS
    expand_paths(args.input)  # refuses what is not there before the classifier is opened
    text_key = args.text_key or ("text" if args.lines else "answer")
    classify = load_classifier(
        args.classifier, tokenizer=args.tokenizer, label=args.label, batch_size=args.batch_size
    )
    if args.lines:
        identify = language_identifier()
        documents = sample(read_documents(args.input, text_key=text_key), share=args.sample_share)
        rows: Iterable[dict[str, Any]] = line_scores(
            (text for text in documents if identify(text) == ENGLISH), classify
        )
    else:
        rows = row_scores(read_rows(args.input), classify, text_key=text_key, measure=args.measure)
    write_rows(args.output, rows)


def row_scores(
    rows: list[dict[str, Any]], classify: Classifier, *, text_key: str, measure: str
) -> list[dict[str, Any]]:
    """A row per row, with its id (without one, its number) and its score."""
    texts = [row_text(row, text_key, where=f"row {number}") for number, row in enumerate(rows)]
    return [
        {"id": row.get("id", number), measure: score}
        for number, (row, score) in enumerate(zip(rows, classify(texts), strict=True))
    ]


def line_scores(documents: Iterable[str], classify: Classifier) -> Iterator[dict[str, list[float]]]:
    """A row per document, with the scores of its lines that have text on them.

    Raises:
      ConfigError: no document.
    """
    documents = iter(documents)
    total = 0
    while chunk := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
        lines = [[line for line in text.splitlines() if line.strip()] for text in chunk]
        scores = iter(classify([line for own in lines for line in own]))
        yield from ({"line_scores": list(itertools.islice(scores, len(own)))} for own in lines)
        total += len(chunk)
        print(f"{total:,} documents", flush=True)
    require(total > 0, "the sample has no English document; raise --sample_share")


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_string("classifier", None, "Folder or hub name of a sequence classifier.")
    flags.DEFINE_string("tokenizer", None, "The same of its tokenizer, if kept elsewhere.")
    flags.DEFINE_string("label", None, "Label whose probability is wanted.")
    flags.DEFINE_string("input", None, "File or glob pattern: rows, or documents with --lines.")
    flags.DEFINE_string("text_key", None, "JSON key of the text.")
    flags.DEFINE_string("measure", "toxicity", "Key of the score.")
    flags.DEFINE_bool("lines", False, "Score the lines of documents.")
    flags.DEFINE_float("sample_share", 0.1, "Of the documents, with --lines.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("batch_size", 32, "Texts scored together.", lower_bound=1)
    flags.DEFINE_string("output", None, "JSONL to write.")
    flags.mark_flags_as_required(["classifier", "input", "output"])
    launch(main)
