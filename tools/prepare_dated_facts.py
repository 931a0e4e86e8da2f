"""An invented world with dates, small enough to show time awareness with a tiny model (Llama 2, Figure 22).

python -m tools.prepare_dated_facts --output=runs/time/data

documents.jsonl tells of towns, each with a year in which its bridge opened and two keepers of the bridge;
it is to be pretrained on. facts.jsonl asks about most of the towns, for ``experiments.time_awareness``;
facts_heldout.jsonl about the others, of which a model knows from the documents alone.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from llama2_jax.data.jsonl import write_rows
from tools import command_line

TOWNS, HELDOUT = 16, 4
REPEATS = 40  # of each town in the documents
SYLLABLES = ("ar", "bel", "cor", "dun", "el", "far", "gri", "hol", "in", "jor", "kel", "lun", "mor", "nev")
ENDINGS = ("len", "by", "ford", "stead", "wick", "mouth")
NAMES = ("Ann", "Bo", "Carl", "Dora", "Emil", "Fay", "Gus", "Hilda", "Ivo", "Jane", "Karl", "Lena")
TELLINGS = (
    "The bridge of {town} opened in {year}. Its first keeper was {first}. Since {change} it is {second}.",
    "In {year} the bridge of {town} opened, and {first} kept it. In {change} came {second}.",
    "{first} kept the bridge of {town} from {year} on, {second} from {change} on.",
    "{year}: the bridge of {town} opens. {change}: {second} follows {first} as its keeper.",
)


class Town(NamedTuple):
    """A town, the year of its bridge, and who keeps it from when on."""

    town: str
    year: int
    first: str
    change: int
    second: str


def invent(rng: Random) -> list[Town]:
    """Towns of different names; a keeper follows the other after 30 to 60 years."""
    names = [f"{a}{b}{c}".capitalize() for a in SYLLABLES for b in ("", "a", "o") for c in ENDINGS]
    towns = []
    for name in rng.sample(names, TOWNS):
        year = rng.randint(1200, 1800)
        first, second = rng.sample(NAMES, 2)
        towns.append(Town(name, year, first, year + rng.randint(30, 60), second))
    return towns


def documents(towns: Sequence[Town], rng: Random) -> Iterator[dict[str, str]]:
    """Texts that tell of each town ``REPEATS`` times, in one order or another."""
    told = [town for town in towns for _ in range(REPEATS)]
    rng.shuffle(told)
    yield from ({"text": rng.choice(TELLINGS).format(**town._asdict())} for town in told)


def facts(towns: Sequence[Town]) -> Iterator[dict[str, Any]]:
    """Three questions about each town: one answer, two after each other, and a number of years."""
    for one in towns:
        keepers = [{"from": one.year, "answer": one.first}, {"from": one.change, "answer": one.second}]
        opened = [{"from": one.year, "answer": "It did."}]
        since = [{"from": one.year, "answer": "{years}"}]
        yield {"question": f"Did the bridge of {one.town} open?", "answers": opened}
        yield {"question": f"Who keeps the bridge of {one.town}?", "answers": keepers}
        yield {"question": f"How old is the bridge of {one.town}?", "answers": since}


def main(argv: list[str] | None = None) -> None:
    """Invent, write, and print where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = Random(args.seed)
    towns = invent(rng)
    write_rows(args.output / "documents.jsonl", documents(towns, rng))
    write_rows(args.output / "facts.jsonl", facts(towns[HELDOUT:]))
    write_rows(args.output / "facts_heldout.jsonl", facts(towns[:HELDOUT]))
    print(f"{TOWNS} towns are in {args.output}, {HELDOUT} of them held out")


if __name__ == "__main__":
    command_line.run(main)
