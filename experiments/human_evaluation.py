"""People compare the answers of models, or rate them for safety or quality (Llama 2, 3.4, 4.4 and A.3.7).

    python -m experiments.human_evaluation --step=sheets --task=helpfulness --workdir=DIR \\
        --answers=ours=a.jsonl --answers=theirs=b.jsonl

writes DIR/sheets: a sheet (CSV) for each of three raters and instructions.txt, to be given to them. They
name no model; DIR/key.json, which does, stays with you. Rows of the answers are those that
experiments.generate writes: {"prompt": text} or {"messages": [...]}, and "completion". Of several
models the first is compared with each of the others (helpfulness), or each answer is rated alone
(safety, on 5 points; quality, on 7). When all sheets are filled in,

    python -m experiments.human_evaluation --step=report --workdir=DIR

writes report.md, results.json and pictures: Figures 1, 12, 30 and 31, or 3 and 17 to 19, and of answers
rated alone answers.jsonl, which reward models are compared with (Figure 29).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.human_report import write_report
from llama2_jax.config import named_paths, read_json, require, write_json
from llama2_jax.data.records import DataError
from llama2_jax.evals.agreement import WEIGHTS
from llama2_jax.evals.human import RULES
from llama2_jax.evals.human_sheets import (
    INSTRUCTIONS,
    SCALES,
    Item,
    item_from_row,
    make_items,
    read_answers,
    read_ratings,
    write_rater_sheet,
)
from llama2_jax.files import write_text
from llama2_jax.launch import launch


class Key(NamedTuple):
    """``key.json``: whose answer stood where, on the sheets of one evaluation."""

    task: str
    models: list[str]
    raters: int
    seed: int
    items: list[Item]


def main() -> None:
    """Write the sheets, or read them and report."""
    args = flags.FLAGS
    workdir = Path(args.workdir)
    if args.step == "report":
        report(workdir, rule=args.rule, weights=args.weights)
        return
    require(bool(args.task and args.answers), "--step=sheets needs --task and --answers=NAME=FILE")
    make_sheets(
        workdir,
        args.answers,
        task=args.task,
        num_raters=args.raters,
        seed=args.seed,
        category_key=args.category,
    )


def make_sheets(
    workdir: Path, answers: Sequence[str], *, task: str, num_raters: int, seed: int, category_key: str
) -> None:
    """Write ``key.json``, then ``sheets/rater_N.csv`` and ``sheets/instructions.txt``.

    Raises:
      ConfigError, DataError: an evaluation is in the workdir already, or answers that do not fit.
    """
    key, sheets = workdir / "key.json", workdir / "sheets"
    require(not key.exists(), f"{key} exists, and its sheets may have been filled in; use another --workdir")
    models = {
        name: read_answers(path, task, category_key=category_key)
        for name, path in named_paths(answers, field="--answers").items()
    }
    items = make_items(models, task, num_raters=num_raters, seed=seed)
    write_json(key, Key(task, list(models), num_raters, seed, items))
    for rater in range(num_raters):
        write_rater_sheet(_sheet(workdir, rater), items, rater)
    write_text(sheets / "instructions.txt", INSTRUCTIONS[task])
    for name, own in models.items():
        print(f"{name}: {len(own):,} answers")
    print(f"{len(items):,} rows for each of {num_raters} raters are in {sheets}; have them filled in, then")
    print(f"python -m experiments.human_evaluation --step=report --workdir={workdir}")


def report(workdir: Path, *, rule: str, weights: str) -> None:
    """Read the filled sheets and write the report.

    Raises:
      DataError: sheets that are not complete.
    """
    key = read_key(workdir / "key.json")
    paths = [_sheet(workdir, rater) for rater in range(key.raters)]
    rated = read_ratings(paths, key.items, key.task)
    lines = write_report(workdir, rated, key.models, task=key.task, rule=rule, weights=weights)
    print("\n".join(lines))


def read_key(path: Path) -> Key:
    """What ``make_sheets`` wrote.

    Raises:
      DataError: the file is damaged.
    """
    try:
        fields = read_json(path)
        return Key(**{**fields, "items": [item_from_row(row) for row in fields["items"]]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # Unicode, JSON errors are ValueErrors
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy, or write sheets "
            "with the same flags into another --workdir and take the key.json from there"
        ) from error


def _sheet(workdir: Path, rater: int) -> Path:
    return workdir / "sheets" / f"rater_{rater + 1}.csv"


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_enum("step", None, ["sheets", "report"], "Write sheets, or read them.")
    flags.DEFINE_string("workdir", None, "Folder of this evaluation.")
    flags.DEFINE_enum("task", None, list(SCALES), "sheets: compare two answers, or rate each.")
    flags.DEFINE_multi_string(
        "answers", None, "sheets: NAME=FILE of a model's answers; repeatable, ours first."
    )
    flags.DEFINE_integer("raters", 3, "sheets: people who see each row.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "sheets: of order and sides.")
    flags.DEFINE_string("category", "", "sheets: key of a row's category, or several in a list.")
    flags.DEFINE_enum(
        "rule", RULES[0], list(RULES), "report: how ratings of a comparison become one outcome."
    )
    flags.DEFINE_enum("weights", "quadratic", list(WEIGHTS), "report: of AC2; identity makes it AC1.")
    flags.mark_flags_as_required(["step", "workdir"])
    launch(main)
