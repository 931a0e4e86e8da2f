"""HumanEval and MBPP, pass@k (Llama 2, section 2.3, A.2.2, Tables 3 and 21).

python -m experiments.evaluate_code --humaneval=HumanEval.jsonl.gz --mbpp=mbpp.jsonl --checkpoint=PATH \
    --output=DIR --allow_code_execution
python -m experiments.evaluate_code --humaneval=HumanEval.jsonl.gz --k=1,100 ... (of MBPP, --k=1,80)

Data are the official files: data/HumanEval.jsonl.gz of openai/human-eval, mbpp/mbpp.jsonl of
google-research/google-research. pass@1 is sampled at temperature 0.1, 10 times; pass@100 and pass@80 at 0.8,
twice as often as k (D18).

What the model writes is executed on this machine: in a process of its own with limits, but with your rights
(``llama2_jax/evals/code_execution.py``). Use a container without network, and say so by
--allow_code_execution.

DIR gets samples_BENCHMARK_K.jsonl, every completion and how its program ended, problems_BENCHMARK_K.jsonl,
the share of each problem's samples that passed (which ``experiments.contamination`` reads), results.json and
report.md. A run that is killed goes on where it was when the same command is given again; at most a batch is
lost.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import checkpoint_flags
from experiments.answer_rows import check_models
from experiments.code_report import write_code_report
from experiments.code_runs import Rows, Run, check_sampled, chosen_runs, result, solved_problems
from experiments.generate import prompt_ids
from experiments.settings import file_version, flag_values, keep_settings
from llama2_jax.answers import model_version
from llama2_jax.config import require
from llama2_jax.data.jsonl import append_rows, read_appended, write_rows
from llama2_jax.evals.code_benchmarks import CODE, TOP_P, CodeProblem, program
from llama2_jax.evals.code_execution import check_execution, run_programs
from llama2_jax.evals.text_completion import complete_before
from llama2_jax.generate.decode import check_prompts
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel, for_decoding
from llama2_jax.train.progress import counted

SETTINGS = (
    "checkpoint",
    "dtype",
    "template",
    "limit",
    "num_samples",
    "max_new_tokens",
    "timeout_secs",
    "seed",
)


def main() -> None:
    """Read the problems, let the model write, run what it wrote; what is there is not done again."""
    args = flags.FLAGS
    output = Path(args.output)
    require(
        args.allow_code_execution,
        "programs that the model writes would be executed on this machine, with your rights; use a "
        "container without network, and give --allow_code_execution",
    )
    files = {key: Path(path) for key in CODE if (path := args[key].value)}
    runs = chosen_runs(files, args.k, num_samples=args.num_samples, limit=args.limit)
    check_execution()
    settings = flag_values(SETTINGS)
    settings |= {key: file_version(path) for key, path in files.items()}
    keep_settings(output, settings, results="samples_*.jsonl")
    rows = sample_missing(output, runs)
    solved = [solved_problems(*one) for one in zip(runs, rows, strict=True)]
    for run, problems in zip(runs, solved, strict=True):
        write_rows(run.path(output, "problems"), problems)
    results = [result(*one) for one in zip(runs, rows, solved, strict=True)]
    write_code_report(output, settings | {"model": rows[0][0]["model"]}, results)
    print(f"{output / 'report.md'} is written")


def sample_missing(output: Path, runs: Sequence[Run]) -> list[Rows]:
    """The rows of each run, one per sample; those missing are sampled, run and added.

    Raises:
      ConfigError: rows of other problems or of another model are there, or a prompt that leaves too little
      room.
    """
    args = flags.FLAGS
    done = [read_appended(run.path(output, "samples"), dict) for run in runs]
    for run, rows in zip(runs, done, strict=True):
        check_sampled(run.path(output, "samples"), rows, run)
    if all(len(rows) == run.num_rows for run, rows in zip(runs, done, strict=True)):
        return done
    loaded = for_decoding(checkpoint_flags.load_checkpoint())
    model = model_version(loaded)
    for run, rows in zip(runs, done, strict=True):
        check_models(run.path(output, "samples"), rows, model)
    prompts = [encoded_prompts(run.problems, loaded, max_new_tokens=args.max_new_tokens) for run in runs]
    for run, rows, ids in zip(runs, done, prompts, strict=True):
        missing, name = range(len(rows), run.num_rows), f"{run.benchmark.name} pass@{run.setting.k}"
        for numbers in counted(name, missing, size=args.batch_size, done=len(rows)):
            added = [{**row, "model": model} for row in sampled(loaded, run, ids, numbers)]
            append_rows(run.path(output, "samples"), added)
            rows += added
    return done


def encoded_prompts(
    problems: Sequence[CodeProblem], loaded: LoadedModel, *, max_new_tokens: int
) -> dict[str, list[int]]:
    """Token ids by the problem's id. Raises ``ConfigError`` if one leaves no room for a completion."""
    prompts = {one.id: prompt_ids({"prompt": one.prompt}, loaded, where=one.id) for one in problems}
    check_prompts(loaded.model, list(prompts.values()), list(prompts))
    longest = max(prompts, key=lambda name: len(prompts[name]))
    context = loaded.model.config.max_context
    require(
        len(prompts[longest]) + max_new_tokens <= context,
        f"{longest} has {len(prompts[longest])} tokens, and --max_new_tokens={max_new_tokens} more do not "
        f"fit in the model's context of {context}; lower it",
    )
    return prompts


def sampled(
    loaded: LoadedModel, run: Run, prompts: Mapping[str, list[int]], numbers: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of these numbers: each depends on its number alone, not on the batch."""
    args = flags.FLAGS
    places = [run.place(number) for number in numbers]
    completions = complete_before(
        loaded,
        [prompts[problem.id] for problem, _ in places],
        SamplingConfig(args.max_new_tokens, run.setting.temperature, TOP_P),
        until=run.benchmark.until,
        seeds=[run.seed(number, args.seed) for number in numbers],
        batch_size=args.batch_size,
    )
    outcomes = run_programs(
        [program(problem, text) for (problem, _), text in zip(places, completions, strict=True)],
        timeout_secs=args.timeout_secs,
        num_workers=args.num_workers,
    )
    return [
        {"id": problem.id, "sample": sample, "completion": text, "outcome": outcome}
        for (problem, sample), text, outcome in zip(places, completions, outcomes, strict=True)
    ]


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_string("humaneval", None, "HumanEval.jsonl or .jsonl.gz.")
    flags.DEFINE_string("mbpp", None, "mbpp.jsonl.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_bool("allow_code_execution", False, "Execute what the model writes, on this machine.")
    flags.DEFINE_list("k", ["1"], "Of pass@k: 1, 100 (HumanEval), 80 (MBPP).")
    flags.DEFINE_integer("num_samples", None, "Of each problem; see above if not given.", lower_bound=1)
    flags.DEFINE_integer(
        "limit", None, "The first so many problems of each file, to try it; all if not given.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 16, "Samples decoded together.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 512, "Longest completion; the paper does not say.", lower_bound=1)
    flags.DEFINE_float("timeout_secs", 3.0, "Processor time of one program with its tests.", lower_bound=0.1)
    flags.DEFINE_integer("num_workers", os.cpu_count() or 1, "Programs run at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of all samples; each has one of its own, made from it.")
    flags.mark_flags_as_required(["output"])
    launch(main)
