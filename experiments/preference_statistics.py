"""Tables 6 and 26 for preference files: sizes and lengths by source and by batch, and rating drift.

python -m experiments.preference_statistics --input=preferences.jsonl --tokenizer=PATH --output=OUT.md

The total is computed from the rows: that of the paper's Table 6 is not the sum of its rows (D35).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments.report import table
from llama2_jax.data.chat import TEMPLATES, get_template
from llama2_jax.data.preferences import (
    RATINGS,
    SAFETY_BINS,
    Preference,
    group_by,
    rating_shares,
    read_preferences,
    statistics,
)
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer
from llama2_jax.files import write_text
from llama2_jax.launch import launch


def main() -> None:
    """Read, count, print, write."""
    args = flags.FLAGS
    pairs = read_preferences(args.input, template=get_template(args.template))
    report = report_text(pairs, load_tokenizer(args.tokenizer))
    write_text(args.output, report)
    print(report, end="")


def report_text(pairs: Sequence[Preference], tokenizer: Tokenizer) -> str:
    """The tables as Markdown."""
    lines = ["# Preference data", "", "By source (Table 6):", ""]
    lines += _lengths("source", {**group_by(pairs, lambda pair: pair.source), "all": pairs}, tokenizer)
    by_batch = group_by(pairs, lambda pair: pair.batch)
    lines += ["", "By batch (Table 26):", "", *_lengths("batch", by_batch, tokenizer)]
    lines += ["", "Ratings by batch (Figure 25), of the pairs that have one:", "", *_ratings(by_batch)]
    lines += ["", "Safety labels:", "", *_safety(pairs)]
    return "\n".join(lines) + "\n"


def _lengths(title: str, groups: Mapping[Any, Sequence[Preference]], tokenizer: Tokenizer) -> list[str]:
    rows = []
    for name, own in groups.items():
        size, *means = statistics(own, tokenizer)
        rows.append((_name(name), f"{size:,}", *(f"{mean:.1f}" for mean in means)))
    return table((title, "comparisons", "turns", "tokens/example", "tokens/prompt", "tokens/response"), rows)


def _ratings(by_batch: Mapping[Any, Sequence[Preference]]) -> list[str]:
    rows = []
    for batch, own in by_batch.items():
        shares = rating_shares(own)
        cells = (f"{100 * shares[rating]:.1f} %" if shares else "" for rating in RATINGS)
        rows.append((str(batch), *cells))
    return table(("batch", *(rating.replace("_", " ") for rating in RATINGS)), rows)


def _safety(pairs: Sequence[Preference]) -> list[str]:
    labelled = [pair.safety for pair in pairs if pair.safety is not None]
    rows = []
    for name in SAFETY_BINS if labelled else ():
        size = labelled.count(name)
        rows.append((name.replace("_", " "), f"{size:,}", f"{100 * size / len(labelled):.1f} %"))
    return table(("label", "pairs", "share"), rows)


def _name(group: Any) -> str:
    return str(group) or "(not named)"


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_multi_string("input", None, "Preference file or glob pattern; repeatable.")
    flags.DEFINE_string("tokenizer", None, "tokenizer.model, tokenizer.json or their folder.")
    flags.DEFINE_string("output", None, "Markdown file to write.")
    flags.DEFINE_enum("template", "llama2", list(TEMPLATES), "Chat template; its markers are refused.")
    flags.mark_flags_as_required(["input", "tokenizer", "output"])
    launch(main)
