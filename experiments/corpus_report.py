"""Tables 9a, 9b and 10 and Figure 13 for the text that a model is pretrained on (Llama 2, section 4.1).

python -m experiments.corpus_report --source=web='web/*.jsonl.gz' --source=books='books/*.txt' \
    --descriptors=descriptors.json --output=DIR

Sources are the files that ``tools.tokenize_corpus`` reads. Each is a column, and so are all together,
where every document counts once, whatever the weights of a mixture. Without --descriptors there is no
Table 9b; for HolisticBias see llama2_jax/analysis/identity_terms.py.

Figure 13 needs line scores, which ``experiments/classify.py --lines`` makes: --line_scores=web=scored.jsonl,
with a row {"line_scores": [0.02, 0.4]} for each document of a sample, the toxicity in [0, 1] of each of its
lines that is not blank.

DIR gets report.md, counts.json (numbers of documents) and, with line scores, toxicity.png. Memory does
not grow with the text. A core takes about 4 MB of English a second, most of it to tell the language;
--sample_share=0.1 takes a tenth of the documents.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from absl import flags

from experiments import corpus_tables
from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.corpus import CorpusCounts, count_documents, together
from llama2_jax.analysis.demographics import PRONOUNS, mention_finder
from llama2_jax.analysis.identity_terms import identity_families, read_identity_axes
from llama2_jax.analysis.languages import language_identifier
from llama2_jax.analysis.toxicity import document_score, plot_toxicity, score_bin, toxic_share
from llama2_jax.config import named_paths, require, write_json
from llama2_jax.data.records import BadLines, expand_paths, read_records
from llama2_jax.data.sources import read_documents
from llama2_jax.launch import launch

ALL = "all"  # the column of all sources together


def main() -> None:
    """Read, count, write."""
    args = flags.FLAGS
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)  # what cannot be written to is found now
    sources, scored = (
        named_files(args.source, field="--source"),
        named_files(args.line_scores, field="--line_scores"),
    )
    axes = read_identity_axes(args.descriptors) if args.descriptors else {}
    families = {**PRONOUNS, **identity_families(axes)}
    identify, mentioned = language_identifier(), mention_finder(families)
    bins = {name: toxicity_bins(files) for name, files in scored.items()}
    notes = [f"A random {100 * args.sample_share:g} % of the documents."] if args.sample_share < 1 else []
    columns = {}
    for name, files in sources.items():
        bad_lines = BadLines()
        texts = read_documents(
            files, text_key=args.text_key, on_bad_line=args.on_bad_line, bad_lines=bad_lines
        )
        kept = sample(texts, share=args.sample_share)
        columns[name] = count_documents(kept, identify=identify, mentioned=mentioned)
        require(columns[name].documents > 0, f"the sample has no document of {name}; raise --sample_share")
        print(f"{name}: {columns[name].documents:,} documents", flush=True)
        notes += [f"{name}: {bad_lines.count:,} bad record(s) skipped."] if bad_lines.count else []
    if len(columns) > 1:
        columns[ALL] = together(columns.values())
    plain = {name: corpus_tables.plain_counts(one, families) for name, one in columns.items()}
    write_json(output / "counts.json", {"sources": plain, "toxicity_bins": bins})
    if bins:
        plot_toxicity(output / "toxicity.png", bins)
    write_report_file(output, report_lines(columns, axes, bins, notes))
    print(f"{output / 'report.md'} is written")


def named_files(values: Iterable[str], *, field: str) -> dict[str, list[Path]]:
    """The files of each source, from texts ``NAME=PATH``; a name may come several times.

    Raises:
      ConfigError: a text of another form.
      DataError: a path without a file.
    """
    patterns: dict[str, list[str]] = {}
    for value in values:
        ((name, pattern),) = named_paths([value], field=field).items()
        require(name != ALL, f"{field} names {ALL!r}, which is the column of all sources; name it otherwise")
        patterns.setdefault(name, []).append(pattern)
    return {name: expand_paths(paths) for name, paths in patterns.items()}


def sample(texts: Iterable[str], *, share: float) -> Iterator[str]:
    """Each text with the probability ``share``, the same ones every time."""
    draw = random.Random(0)
    return (text for text in texts if draw.random() < share)


def toxicity_bins(files: list[Path]) -> Counter[int]:
    """How many documents have a score in each bin, from rows with ``line_scores``."""
    scores = read_records(
        files, lambda row: document_score(row["line_scores"]), keys=("line_scores",), on_bad_line="error"
    )
    return Counter(map(score_bin, scores))


def report_lines(
    columns: Mapping[str, CorpusCounts],
    axes: Mapping[str, frozenset[str]],
    bins: Mapping[str, Mapping[int, int]],
    notes: Iterable[str] = (),
) -> list[str]:
    """The report as Markdown."""
    return [
        "# Text to pretrain on",
        "",
        "Llama 2, section 4.1. Shares are of documents, in percent. Pronouns and identity terms are counted",
        'in English ones, as whole words in any case: "US" is "us", and "Americans" is not "American".',
        *notes,
        "",
        *corpus_tables.size_table(columns),
        "",
        "## Pronouns (Table 9a)",
        "",
        'Of documents with any pronoun of a family, those with one of each group. "i" is not counted as "I".',
        "",
        *corpus_tables.pronoun_table(columns),
        "",
        *(_identities(columns, axes) if axes else []),
        "## Languages (Table 10)",
        "",
        "Unknown: fastText gives no language 50 %, as of code. Languages below 0.005 % have no row.",
        "",
        *corpus_tables.language_table(columns),
        *(_toxicity(bins) if bins else []),
    ]


def _identities(columns: Mapping[str, CorpusCounts], axes: Mapping[str, frozenset[str]]) -> list[str]:
    number = sum(map(len, axes.values()))
    return [
        "## Identity terms (Table 9b)",
        "",
        f"Documents with any of {number} terms, by axis.",
        "",
        *corpus_tables.axis_table(columns, axes),
        "",
        "Of the documents of an axis, those with each term; the five most frequent, where as in the paper",
        "black, straight and white are passed over, which mostly are not said of people (SPRE-3):",
        "",
        *corpus_tables.term_table(columns, axes),
        "",
    ]


def _toxicity(bins: Mapping[str, Mapping[int, int]]) -> list[str]:
    rows = [
        (quote(name), f"{sum(own.values()):,}", f"{100 * toxic_share(own):.2f}") for name, own in bins.items()
    ]
    return [
        "",
        "## Toxicity (Figure 13)",
        "",
        "A document has the mean score of its lines, by the classifier that gave them.",
        "",
        *table(
            ("", "documents", "% of at least 0.5"),
            [("paper, 10 % of the English text", "", "about 0.2"), *rows],
        ),
        "",
        "![toxicity](toxicity.png)",
    ]


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_multi_string("source", None, "NAME=PATH, a file or glob pattern of a source; repeatable.")
    flags.DEFINE_string("descriptors", None, "JSON of identity terms by axis, as that of HolisticBias.")
    flags.DEFINE_multi_string("line_scores", [], "NAME=PATH, JSONL rows with line_scores; repeatable.")
    flags.DEFINE_float(
        "sample_share", 1.0, "Of the documents, drawn at random.", lower_bound=0, upper_bound=1
    )
    flags.DEFINE_string("text_key", "text", "JSON key or Parquet column of the text.")
    flags.DEFINE_enum("on_bad_line", "error", ["error", "skip"], "Stop at a bad record, or count it.")
    flags.DEFINE_string("output", None, "Folder to write to.")
    flags.mark_flags_as_required(["source", "output"])
    launch(main)
