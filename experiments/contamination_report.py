"""``report.md``, ``samples.jsonl`` and ``matches.jsonl`` of a contamination analysis."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report import quote, table, write_report_file
from llama2_jax.analysis.contamination import Scan, contaminated_share
from llama2_jax.analysis.contamination_index import SampleIndex
from llama2_jax.analysis.contamination_statistics import (
    LENGTHS,
    Subset,
    deviates,
    largest_effect,
    shows_effect,
    subsets,
)
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.scored_samples import ScoredSample
from llama2_jax.data.tokenizer import Tokenizer

SHOWN = 5  # matches of each dataset in the report
QUOTED = 400  # characters of each

INTRODUCTION = (
    "Llama 2, section A.6. A token is contaminated if it lies in a span of at least L tokens that a training",
    "document has too, with at most 4 differences and none in the first 10 tokens. By the paper's rule",
    "contamination moved a metric if |Z| > 2 in all four subsets: cleaner ones worse and dirtier ones better",
    "than all samples. A subset that is nearly all samples cannot differ from them, so where few are clean,",
    "or few dirty, the rule sees nothing.",
)

Shares = dict[int, np.ndarray]  # minimum length -> contaminated share of each sample
Tables = dict[int, dict[str, Subset]]  # minimum length -> rows of Table 51


def write_report(
    output: Path,
    samples: Sequence[ScoredSample],
    index: SampleIndex,
    found: Scan,
    tokenizer: Tokenizer,
    *,
    seconds: float,
    max_places: int,
) -> None:
    """Write the three files; ``seconds`` is what the scan took."""
    shares = {length: contaminated_share(index, found, length=length) for length in LENGTHS}
    rows = list(_matches(samples, index, found, tokenizer))
    write_rows(output / "samples.jsonl", _samples(samples, index, found, shares))
    write_rows(output / "matches.jsonl", rows)
    members = {
        name: np.array([sample.dataset == name for sample in samples])
        for name in dict.fromkeys(sample.dataset for sample in samples)
    }
    metrics = np.array([sample.metric for sample in samples])
    tables = {
        name: {length: subsets(shares[length][own], metrics[own]) for length in LENGTHS}
        for name, own in members.items()
    }
    lines = [
        "# Contamination of evaluation samples",
        "",
        *INTRODUCTION,
        "",
        *table(("", ""), _numbers(index, found, seconds, max_places)),
        "",
        *_verdicts(tables, shares, members),
        "",
    ]
    for name, own in members.items():
        lines += _dataset(name, tables[name], index.sizes[own])
        lines += _examples([row for row in rows if row["dataset"] == name])
    write_report_file(output, lines)


def _samples(
    samples: Sequence[ScoredSample], index: SampleIndex, found: Scan, shares: Shares
) -> Iterator[dict[str, Any]]:
    for number, sample in enumerate(samples):
        yield {
            "id": sample.id,
            "dataset": sample.dataset,
            "metric": sample.metric,
            "num_tokens": int(index.sizes[number]),
            "contaminated_percent": {
                str(length): round(100 * share[number], 4) for length, share in shares.items()
            },
            "longest_span": found.matches[number].length if number in found.matches else 0,
        }


def _matches(
    samples: Sequence[ScoredSample], index: SampleIndex, found: Scan, tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
    """The longest span of each sample that has one, longest first."""
    for number, match in sorted(found.matches.items(), key=lambda item: -item[1].length):
        begin = index.starts[number] + match.sample_offset
        tokens = index.tokens[begin : begin + match.length].tolist()
        yield {
            "id": samples[number].id,
            "dataset": samples[number].dataset,
            "length": match.length,
            "differences": sum(own != other for own, other in zip(tokens, match.tokens, strict=True)),
            "sample_offset": match.sample_offset,
            "source": match.source,
            "document": match.document,
            "document_offset": match.document_offset,
            "sample_text": tokenizer.decode(tokens),
            "document_text": tokenizer.decode(match.tokens),
        }


def _numbers(index: SampleIndex, found: Scan, seconds: float, max_places: int) -> list[tuple[str, str]]:
    unused = int((~index.usable).sum())
    return [
        ("training text", f"{found.documents:,} documents, {found.tokens:,} tokens"),
        (
            "read, encoded and searched in",
            f"{seconds:,.1f} s: {found.tokens / seconds:,.0f} tokens per second",
        ),
        ("evaluation samples", f"{index.sizes.size:,} of {index.sizes.mean():.1f} tokens on average"),
        ("different 10-grams of the samples", f"{index.hashes.size:,}"),
        (f"- no start of a span: one token repeated, or in over {max_places:,} places", f"{unused:,}"),
        ("- how often training text has one of these", f"{found.unused_hits:,}"),
    ]


def _verdicts(tables: Mapping[str, Tables], shares: Shares, members: Mapping[str, np.ndarray]) -> list[str]:
    return table(
        (
            "dataset",
            "samples",
            "metric",
            *(f"contaminated, L = {length}" for length in LENGTHS),
            "moved the metric",
        ),
        (
            (
                quote(name),
                f"{members[name].sum():,}",
                f"{by_length[LENGTHS[0]]['clean'].expected:.3f}",
                *(f"{100 * shares[length][members[name]].mean():.1f} %" for length in LENGTHS),
                _verdict(by_length),
            )
            for name, by_length in tables.items()
        ),
    )


def _verdict(by_length: Tables) -> str:
    length = largest_effect(by_length)
    if length is not None:
        return f"yes, L = {length} is the largest"
    most = max(sum(map(deviates, found, found.values())) for found in by_length.values())
    return f"no, at most {most} of 4 subsets differ"


def _dataset(name: str, by_length: Tables, sizes: np.ndarray) -> list[str]:
    lines = [f"## {quote(name)}", "", "Samples shorter than L tokens cannot be contaminated at L.", ""]
    header = ("L", "shorter", "effect", "subset", "contamination", "n", "mean", "mu_n", "Z_n")
    rows = []
    for length, found in by_length.items():
        of_all = (str(length), f"{(sizes < length).sum():,}", "yes" if shows_effect(found) else "no")
        for subset, row in found.items():
            rows.append((*of_all, subset, *_cells(row)))
            of_all = ("", "", "")
    return [*lines, *table(header, rows), ""]


def _cells(row: Subset) -> Iterator[str]:
    yield "-" if row.contamination is None else f"{100 * row.contamination:.1f} %"
    yield f"{row.size:,}"
    yield "-" if row.mean is None else f"{row.mean:.3f}"
    yield f"{row.expected:.3f}"
    yield "-" if row.z is None else f"{row.z:.2f}"


def _examples(matches: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"Longest matches, of {len(matches):,} samples that have one:", ""] if matches else []
    for match in matches[:SHOWN]:
        where = f"{match['source']}, document {match['document']}, token {match['document_offset']}"
        text = match["document_text"]
        lines += [
            f"> **{quote(match['id'])}**, {match['length']} tokens, differing in {match['differences']}; "
            f"{quote(where)}",
            ">",
            f"> {quote(text[:QUOTED])}{' [...]' if len(text) > QUOTED else ''}",
            "",
        ]
    return lines
