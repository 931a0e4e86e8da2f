"""In-context temperature rescaling: Self-BLEU by temperature and version (Llama 2, 5.1, Figure 21).

python -m experiments.temperature_rescaling --version=SFT=PATH --version=RLHF-V1=PATH \\
    --prompts=FILE --output=DIR

In the paper RLHF makes answers to factual prompts alike at any temperature, those to creative prompts less.
Rows of the prompts: {"prompt": text} or {"messages": [...]}, and "group": the paper has 10 factual and 10
creative ones (--group names another key, such as "family" of our prompt files). Each version gives 25
answers to each at temperatures 0.1, 0.2 .. 1.5 (DISC-2). Needs the extra "analysis", for BLEU.

DIR gets answers/NAME.jsonl, an archive of what was sampled, then results.json, self_bleu.png and report.md.
A run that is killed goes on where it was when the same command is given again; more versions, temperatures
and answers may be asked for, and only those are sampled.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import checkpoint_flags
from experiments.report import quote, table, write_report_file
from experiments.settings import flag_values, keep_settings
from llama2_jax.analysis.temperature_plots import plot_self_bleu
from llama2_jax.config import named_paths, require, write_json
from llama2_jax.data.jsonl import parse_rows
from llama2_jax.data.prompts import Prompt, asked_messages
from llama2_jax.data.records import check, text_of
from llama2_jax.evals.self_bleu import SelfBleu, Spread, self_bleu_scorer, spread
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel, for_decoding
from llama2_jax.rlhf.archive import Sample, draw

TEMPERATURES = tuple(k / 10 for k in range(1, 16))
SETTINGS = ("max_new_tokens", "top_p", "dtype", "template")  # the archive does not tell these apart


class Point(NamedTuple):
    """One version's answers to one group of prompts at one temperature."""

    self_bleu: Spread  # over prompts
    finished: float  # share of the answers that ended before --max_new_tokens
    empty: int  # answers without text, whose BLEU is 0


Points = dict[str, dict[str, dict[float, Point]]]
"""Group, then version, then temperature."""


def main() -> None:
    """Sample what is missing, measure, report."""
    args = flags.FLAGS
    output = Path(args.output)
    scorer = self_bleu_scorer()
    versions = named_paths(args.version, field="--version")
    for path in versions.values():
        checkpoint_kind(path)  # refuses what is none now, and not once others have answered
    temperatures = checked_temperatures(args.temperatures)
    prompts = read_grouped_prompts(args.prompts, group_key=args.group)
    keep_settings(output, flag_values(SETTINGS), results="answers/*.jsonl")
    samplings = [SamplingConfig(args.max_new_tokens, one, args.top_p) for one in temperatures]
    answers = {
        name: sample_version(
            output / "answers" / f"{name}.jsonl",
            for_decoding(checkpoint_flags.load_checkpoint(path=path)),
            prompts,
            samplings,
            num_samples=args.answers,
            batch_size=args.batch_size,
            seed=args.seed,
        )
        for name, path in versions.items()
    }
    points = measured(answers, scorer)
    write_json(output / "results.json", {"answers": args.answers, "points": points})
    write_report(output, points, answers=args.answers, top_p=args.top_p)
    print(f"{output / 'report.md'} is written")


def checked_temperatures(texts: Sequence[str]) -> list[float]:
    """The temperatures of the flag, rising.

    Raises:
      ConfigError: one that is no positive number; at 0 all answers would be the same.
    """
    try:
        found = sorted({float(text) for text in texts})
    except ValueError:
        found = []
    require(
        bool(found) and found[0] > 0 and found[-1] < float("inf"),
        f"--temperatures={','.join(texts)}: give positive numbers, such as 0.1,0.5,1",
    )
    return found


def read_grouped_prompts(path: str, *, group_key: str) -> list[Prompt]:
    """The prompts, numbered as they stand, with their group as family.

    Raises:
      DataError: a row without prompt or group (file, line, reason).
      ConfigError: a group of one prompt, over which nothing can be spread.
    """

    def parse(row: dict[str, Any]) -> Prompt:
        group = text_of(row, group_key)
        check(group.strip(), f"{group_key!r} is empty; say which group the prompt is of")
        return Prompt("", tuple(asked_messages(row)), group)

    prompts = [one._replace(prompt_id=f"{i}") for i, one in enumerate(parse_rows(path, parse))]
    groups = [prompt.family for prompt in prompts]
    alone = [group for group in dict.fromkeys(groups) if groups.count(group) < 2]
    require(
        not alone, f"{path} has one prompt of {', '.join(alone)}; the deviation needs two or more of each"
    )
    return prompts


def sample_version(
    archive: Path,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    samplings: Sequence[SamplingConfig],
    **options: int,
) -> list[Sample]:
    """All answers of a version, those missing sampled and kept; ``options`` are those of ``draw``."""
    return [
        sample
        for sampling in samplings
        for sample in draw(archive, loaded, prompts, sampling, round=0, **options)
    ]


def measured(answers: Mapping[str, Sequence[Sample]], scorer: SelfBleu) -> Points:
    """Self-BLEU of the answers to each prompt at each temperature, spread over the prompts of a group."""
    points: Points = {}
    for name, samples in answers.items():
        cells: dict[tuple[str, float], dict[str, list[Sample]]] = {}
        for sample in samples:
            by_prompt = cells.setdefault((sample.prompt.family, sample.temperature), {})
            by_prompt.setdefault(sample.prompt.prompt_id, []).append(sample)
        for (group, temperature), by_prompt in cells.items():
            points.setdefault(group, {}).setdefault(name, {})[temperature] = _point(by_prompt, scorer)
    return points


def _point(by_prompt: Mapping[str, Sequence[Sample]], scorer: SelfBleu) -> Point:
    own = [sample for several in by_prompt.values() for sample in several]
    return Point(
        spread([scorer([sample.text for sample in several]) for several in by_prompt.values()]),
        finished=sum(sample.stopped for sample in own) / len(own),
        empty=sum(not sample.text.strip() for sample in own),
    )


def write_report(output: Path, points: Points, *, answers: int, top_p: float) -> None:
    """``report.md`` and the picture: a column per version, a table per group."""
    plot_self_bleu(
        output / "self_bleu.png",
        {
            group: {
                name: {t: point.self_bleu[:2] for t, point in own.items()} for name, own in versions.items()
            }
            for group, versions in points.items()
        },
    )
    lines = [
        "# In-context temperature rescaling",
        "",
        f"Llama 2, 5.1, Figure 21. Self-BLEU of {answers} answers to each prompt (100: all the same): BLEU-4",
        "of each against the others, by sacrebleu with tokenizer 13a, smoothing exp and effective order,",
        f"averaged over the answers. Mean and standard deviation (n - 1) over prompts. Top-p is {top_p:g}.",
        "",
        "![Self-BLEU by temperature](self_bleu.png)",
    ]
    for group, versions in points.items():
        prompts = next(iter(next(iter(versions.values())).values())).self_bleu.prompts
        lines += ["", f"## {quote(group)} ({prompts} prompts)", ""]
        temperatures = next(iter(versions.values()))
        rows = [(f"{t:g}", *(_cell(own[t].self_bleu) for own in versions.values())) for t in temperatures]
        lines += table(("temperature", *map(quote, versions)), rows)
        lines += [_doubts(name, list(own.values())) for name, own in versions.items()]
    write_report_file(output, lines)


def _cell(found: Spread) -> str:
    return f"{found.mean:.1f} ± {found.deviation:.1f}"


def _doubts(name: str, points: Sequence[Point]) -> str:
    finished = sum(point.finished for point in points) / len(points)
    empty = sum(point.empty for point in points)
    return (
        f"\n{quote(name)}: {100 * finished:.1f} % of the answers ended by themselves; {empty:,} have no text "
        "and count as 0."
    )


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_multi_string("version", None, "NAME=PATH of a checkpoint; repeatable, oldest first.")
    flags.DEFINE_string("prompts", None, "JSONL of prompts in groups.")
    flags.DEFINE_string("group", "group", "Key of a row's group.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_list("temperatures", [f"{t:g}" for t in TEMPERATURES], "The paper's.")
    flags.DEFINE_integer("answers", 25, "To each prompt at each temperature.", lower_bound=2)
    flags.DEFINE_integer("max_new_tokens", 256, "Longest answer; the paper does not say.")
    flags.DEFINE_float("top_p", 1.0, "Nucleus; 1 is off. The paper does not say.")
    flags.DEFINE_integer("batch_size", 25, "Rows decoded together.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the first answer; the next have the next.")
    checkpoint_flags.define_reading()
    flags.mark_flags_as_required(["version", "prompts", "output"])
    launch(main)
