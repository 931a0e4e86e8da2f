"""TruthfulQA, ToxiGen and BOLD with any checkpoint (Llama 2, A.4.7, A.4.8, Tables 11, 14, 44 to 50).

python -m experiments.safety_benchmarks --benchmark=truthfulqa --data=TruthfulQA.csv --checkpoint=PATH \
    --truth_judge=PATH --info_judge=PATH --output=DIR
python -m experiments.safety_benchmarks --benchmark=toxigen --data=toxiGen.json --checkpoint=PATH --output=DIR
python -m experiments.safety_benchmarks --benchmark=bold --data='prompts/*_prompt.json' --checkpoint=PATH \
    --output=DIR

Data are the official files: TruthfulQA.csv of sylinrl/TruthfulQA, data/toxiGen.json of microsoft/SafeNLP,
and prompts/*.json of amazon-science/bold. A chat model (--chat) reads each prompt as a user's message, also
that of TruthfulQA with its six examples: the paper has one prompt for all models. Sampled is as in the paper,
at temperature 0.1 with top-p 0.9 (SBM-1).

DIR gets answers.jsonl, and once all is scored scores.jsonl, results.json and report.md:

* BOLD is scored here, by VADER (needs the extra "analysis").
* TruthfulQA is scored by two judges, checkpoints that go on with " yes" or " no" after "Q: ... A: ... True:"
  and "... Helpful:". The paper's are gone; allenai/truthfulqa-truth-judge-llama2-7B and -info-judge- replace
  them.
* ToxiGen wants a classifier: let ``experiments/classify.py`` score answers.jsonl, or score "answer" in each
  row your own way, and give the same command again with --scores=FILE, JSONL rows {"id": 0, "toxicity":
  0.02}: the probability that the answer is toxic. The same way go verdicts of other judges of TruthfulQA,
  rows {"id": 0, "truth": 0.9, "info": 0.4}.

A run that is killed goes on where it was when the same command is given again; at most a batch is lost. Rows
name the model that answered: a checkpoint that has changed since is refused, until all answers are there.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import checkpoint_flags
from experiments.answer_rows import Numbered, Rows, answer_missing, drawn
from experiments.generate import complete_rows, prompt_ids
from experiments.safety_report import write_safety_report
from experiments.safety_scores import MEASURES, checked_scores, judge_answers, judged_by, score_sentiments
from experiments.settings import file_version, flag_values, keep_settings
from llama2_jax.config import require
from llama2_jax.data.jsonl import read_rows, write_rows
from llama2_jax.data.records import expand_paths
from llama2_jax.evals import bold, toxigen, truthfulqa
from llama2_jax.evals.safety_prompts import SafetyPrompt
from llama2_jax.generate.decode import check_prompts, check_seeds
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel
from llama2_jax.train.progress import counted

SETTINGS = (
    "benchmark", "checkpoint", "dtype", "template", "chat", "limit", "seed",
    "max_new_tokens", "temperature", "top_p",
)  # fmt: skip


def main() -> None:
    """Read the prompts, let the model answer, score, report; what is there is not done again."""
    args = flags.FLAGS
    output = Path(args.output)
    judges = {name: path for name in truthfulqa.JUDGED if (path := args[f"{name}_judge"].value)}
    check_flags(args.benchmark, judges, args.scores)
    sentiment = bold.sentiment_scorer() if args.benchmark == "bold" else None
    given = read_rows(args.scores) if args.scores else []
    for path in judges.values():
        checkpoint_kind(path)  # refuses what is none now, and not once all answers are sampled
    files = expand_paths(args.data)
    prompts = drawn(read_prompts(args.benchmark, files, seed=args.seed), args.limit)
    settings = flag_values(SETTINGS)
    settings["data"] = [file_version(path) for path in files]  # prompts are in its order
    keep_settings(output, settings, results="*.jsonl")
    answers = answer(output / "answers.jsonl", prompts)
    if sentiment:
        given = score_sentiments(answers, sentiment)
    elif judges:
        given = judge_answers(output, answers, judges, batch_size=args.batch_size)
    if not given:
        print(f"{len(answers)} answers are in {output / 'answers.jsonl'}; score them and give --scores=FILE")
        return
    scores = checked_scores(given, MEASURES[args.benchmark], [row["id"] for row in answers])
    write_rows(output / "scores.jsonl", scores)
    made_by = {"model": answers[0]["model"]}
    if args.scores:
        made_by["scores"] = args.scores
    if judges:
        made_by |= judged_by(given)
    write_safety_report(output, settings | made_by, answers, scores)
    print(f"{output / 'report.md'} is written")


def check_flags(benchmark: str, judges: Mapping[str, str], scores: str | None) -> None:
    """Refuse what cannot be meant, before anything is read."""
    given = [f"--{name}_judge" for name in judges]
    require(
        not given or benchmark == "truthfulqa",
        f"{', '.join(given)}: only --benchmark=truthfulqa has judges, not {benchmark}",
    )
    require(
        len(given) in (0, len(truthfulqa.JUDGED)),
        f"{', '.join(given)} alone; give --truth_judge and --info_judge",
    )
    require(not (given and scores), f"both {', '.join(given)} and --scores={scores}; leave one out")
    require(not (scores and benchmark == "bold"), f"--scores={scores}: BOLD is scored here; leave it out")


def read_prompts(benchmark: str, files: Sequence[Path], *, seed: int) -> list[SafetyPrompt]:
    """All prompts of a benchmark's official files."""
    if benchmark == "bold":
        return bold.read_prompts(files)
    require(len(files) == 1, f"--data names {len(files)} files, --benchmark={benchmark} takes one")
    if benchmark == "toxigen":
        return toxigen.read_prompts(files[0])
    return truthfulqa.few_shot_prompts(truthfulqa.read_questions(files[0]), seed=seed)


def answer(path: Path, prompts: Sequence[Numbered[SafetyPrompt]]) -> list[dict[str, Any]]:
    """The rows of ``answers.jsonl``, one per prompt and in their order; those missing are sampled and added.

    Raises:
      PromptError: a prompt is longer than the model's context.
      ConfigError: rows of other prompts or of another model are there.
    """
    args = flags.FLAGS
    asked = [_row(*one, chat=args.chat) for one in prompts]
    sampling = SamplingConfig(args.max_new_tokens, args.temperature, args.top_p)

    def sample(loaded: LoadedModel, missing: Rows) -> Iterator[Rows]:
        # of all, before the first batch and not after hours
        check_prompts(loaded.model, [prompt_ids(row, loaded, where=f"prompt {row['id']}") for row in missing])
        check_seeds([args.seed, args.seed + len(asked) - 1])
        done = len(asked) - len(missing)
        for part in counted(args.benchmark, missing, size=args.batch_size, done=done):
            completed = complete_rows(
                loaded, list(part), sampling, batch_size=args.batch_size, seed=args.seed + done
            )
            yield [_answered(row, args.benchmark) for row in completed]
            done += len(part)

    return answer_missing(path, asked, sample)


def _row(number: int, prompt: SafetyPrompt, *, chat: bool) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": prompt.prompt}]} if chat else {"prompt": prompt.prompt}
    return {"id": number, "groups": list(prompt.groups), "text": prompt.text, **asked}


def _answered(row: dict[str, Any], benchmark: str) -> dict[str, Any]:
    """What is kept of a completed row, and the answer to be judged; "stopped" says whether that ended."""
    answer, stopped = row["completion"].strip(), row["stopped"]
    if benchmark == "truthfulqa":
        answer, is_cut = truthfulqa.cut_answer(answer, chat="messages" in row)
        stopped = stopped or is_cut
    kept = {key: value for key, value in row.items() if key not in ("completion_tokens", "logprobs")}
    return {**kept, "answer": answer, "stopped": stopped}


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_enum("benchmark", None, list(MEASURES), "Which one.")
    flags.DEFINE_list("data", None, "Its official file; of BOLD files or a pattern.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_bool("chat", False, "Ask as a chat, in the checkpoint's template.")
    flags.DEFINE_string("truth_judge", None, "Checkpoint that judges whether answers are true.")
    flags.DEFINE_string("info_judge", None, "Checkpoint that judges whether answers are informative.")
    flags.DEFINE_string("scores", None, "JSONL of scores from a classifier or judges of your own.")
    flags.DEFINE_integer(
        "limit", None, "Prompts, drawn at random, to try it; all if not given.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 128, "Longest answer; the paper does not say.")
    flags.DEFINE_float("temperature", 0.1, "The paper's.")
    flags.DEFINE_float("top_p", 0.9, "The paper's.")
    flags.DEFINE_integer("seed", 0, "Of the examples and the samples.")
    flags.mark_flags_as_required(["benchmark", "data", "output"])
    launch(main, several_processes=True)
