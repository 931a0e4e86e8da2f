"""Turn PyRIT's human harm scores into safety preferences, split by prompt.

python -m tools.fetch_assets pyrit && python -m tools.prepare_pyrit --output=runs/pyrit

People scored answers to harmful prompts with 0, 0.25, 0.5, 0.75 or 1 (one person, in two tables
three people, whose mean counts). Two answers to one prompt make a pair if their scores differ by at
least 0.25: the less harmful one is chosen, and the gap, to the nearest quarter, is the rating:
0.25 unsure (negligibly better), 0.5 slightly better, 0.75 better, 1 significantly better. An answer
is unsafe from a score of 0.5 on. Pairs lie thick on few prompts, so the split is by prompt.

Written are, for train and heldout, ``preferences_*.jsonl``, ``prompts_*.jsonl``, and
``answers_*.jsonl`` (``llama2_jax/data/rated_answers.py``), what a reward model's scores are compared
with (Figures 29 and 32).
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from llama2_jax.config import to_plain
from llama2_jax.data.chat import Message
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.preferences import RATINGS, Preference, is_heldout
from llama2_jax.data.prompts import Prompt
from llama2_jax.data.rated_answers import RatedAnswer
from tools import command_line
from tools.fetch_assets import asset_path

MIN_GAP = Fraction(1, 4)
UNSAFE_FROM = Fraction(1, 2)
HELDOUT_FRACTION = 0.25
# One prompt has 853 of the 2,788 pairs: with this seed it is trained on, and every category is held out.
SEED = 3


class ScoredPrompt(NamedTuple):
    """A prompt and the harm, from 0 to 1, of each answer to it."""

    prompt: Prompt
    harm: dict[str, Fraction]


def read_prompts_with_harm(folder: Path) -> list[ScoredPrompt]:
    """All prompts of the tables, in order; of an answer that stands twice the last score holds."""
    scored: dict[str, ScoredPrompt] = {}
    for path in sorted(folder.glob("*.csv")):
        for row in _rows(path):
            text = row["objective"].strip()
            if text not in scored:
                scored[text] = ScoredPrompt(_prompt(text, row["harm_category"], len(scored)), {})
            scored[text].harm[row["assistant_response"].strip()] = _mean_score(row)
    return list(scored.values())


def pairs_of(scored: ScoredPrompt) -> Iterator[Preference]:
    """Every two answers that differ by ``MIN_GAP`` or more."""
    for (one, one_harm), (other, other_harm) in combinations(scored.harm.items(), 2):
        if abs(one_harm - other_harm) < MIN_GAP:
            continue
        better_first = one_harm < other_harm
        low, high = sorted((one_harm, other_harm))
        yield Preference(
            messages=scored.prompt.messages,
            chosen=one if better_first else other,
            rejected=other if better_first else one,
            track="safety",
            rating=rating_of(high - low),
            safety=safety_bin(low, high),
            risk_category=scored.prompt.risk_category,
            prompt_id=scored.prompt.prompt_id,
            source="pyrit",
        )


def rated_answers(scored: ScoredPrompt) -> Iterator[RatedAnswer]:
    """The answers with their harm."""
    for answer, harm in scored.harm.items():
        yield RatedAnswer(
            scored.prompt.messages, answer, float(harm), harm >= UNSAFE_FROM, scored.prompt.risk_category
        )


def rating_of(gap: Fraction) -> str:
    """The grade of a gap in harm, by the nearest quarter."""
    return RATINGS[4 - round(4 * gap)]


def safety_bin(chosen_harm: Fraction, rejected_harm: Fraction) -> str:
    """PREF-4; the chosen answer is never the more harmful one."""
    if chosen_harm >= UNSAFE_FROM:
        return "both_unsafe"
    return "chosen_safe" if rejected_harm >= UNSAFE_FROM else "both_safe"


def prepare(folder: Path, output: Path) -> dict[Path, int]:
    """Write all files under ``output`` and return the number of rows of each."""
    sides: dict[str, list[ScoredPrompt]] = {"train": [], "heldout": []}
    for scored in read_prompts_with_harm(folder):
        heldout = is_heldout(scored.prompt.messages, heldout_fraction=HELDOUT_FRACTION, seed=SEED)
        sides["heldout" if heldout else "train"].append(scored)
    counts = {}
    for side, prompts in sides.items():
        files: dict[str, list[Any]] = {
            "preferences": [pair for scored in prompts for pair in pairs_of(scored)],
            "prompts": [scored.prompt for scored in prompts],
            "answers": [one for scored in prompts for one in rated_answers(scored)],
        }
        for name, rows in files.items():
            path = output / f"{name}_{side}.jsonl"
            write_rows(path, map(to_plain, rows))
            counts[path] = len(rows)
    return counts


def main(argv: list[str] | None = None) -> None:
    """Prepare the data and print the counts."""
    prepare_and_print(prepare, argv, description=(__doc__ or "").splitlines()[0])


def prepare_and_print(
    prepare: Callable[[Path, Path], dict[Path, int]], argv: list[str] | None, *, description: str
) -> None:
    """The command line of a tool that makes files of PyRIT's: from its folder into ``--output``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    output = parser.parse_args(argv).output
    for path, count in prepare(asset_path("pyrit"), output).items():
        print(f"{path}: {count:,} rows")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a table whose first line is a comment."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        file.readline()
        yield from csv.DictReader(file)


def _mean_score(row: dict[str, str]) -> Fraction:
    scores = [Fraction(value) for key, value in row.items() if key.startswith("human_score")]
    return sum(scores, Fraction()) / len(scores)


def _prompt(text: str, category: str, number: int) -> Prompt:
    return Prompt(
        prompt_id=f"pyrit-{number}",
        messages=(Message("user", text),),
        family="pyrit",
        is_safety=True,
        risk_category=category.lower(),
    )


if __name__ == "__main__":
    command_line.run(main)
